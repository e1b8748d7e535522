"""The quality branch: one logit an anchor point, predicted from the localisation towers.

What it means (centre-ness, IoU, objectness, ...) is decided by the loss that trains it; its shape is the same for all
but one, DeFCN's 3-D max filtering (arXiv:2012.03544, Section 3.3; consulted: Megvii-BaseDetection/DeFCN, MaxFiltering).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxFilter3d(nn.Module):
    """Add to each map the largest value in a 3x3 window over its level and both neighbours, then norm and ReLU.

    The reference pools a stack of three levels with MaxPool3d, which several runtimes lack. Its window spans the whole
    stack, so the maximum over levels followed by a 2-D pool is the same. Weights are shared by all levels.

    Args:
        channels: of all maps; GroupNorm takes 32 groups or, if that does not divide them, the largest divisor.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """L maps (B, C, H_l, W_l), finest first, to as many of the same sizes."""
        maps = [self.conv(x) for x in levels]
        out = []
        for i, (x, own) in enumerate(zip(levels, maps, strict=True)):
            peak = own
            for neighbour in maps[max(0, i - 1) : i] + maps[i + 1 : i + 2]:
                resized = F.interpolate(neighbour, size=own.shape[-2:], mode="bilinear", align_corners=False)
                peak = torch.maximum(peak, resized)
            out.append(F.relu(self.norm(F.max_pool2d(peak, 3, stride=1, padding=1) + x)))
        return out


class QualityBranch(nn.Module):
    """3x3 predictors of one logit, one for each localisation tower.

    Args:
        channels: of the towers' features: one entry a level, or a single one if all levels share a tower.
        filter3d: filter the features by `MaxFilter3d` first; one predictor serves all levels then, as in DeFCN.

    Raises:
        ValueError: `filter3d` with unequal channels.
    """

    def __init__(self, channels: Sequence[int], filter3d: bool = False):
        super().__init__()
        if filter3d and len(set(channels)) > 1:
            raise ValueError(f"quality filter3d is shared by all levels: expected equal channels, got {list(channels)}")
        self.filter = MaxFilter3d(channels[0]) if filter3d else None
        self.predictors = nn.ModuleList(nn.Conv2d(c, 1, 3, padding=1) for c in (channels[:1] if filter3d else channels))

    def forward(self, features: list[Tensor]) -> Tensor:
        """L maps (B, C, H_l, W_l) of the towers, finest first, to (B, 1, A) logits."""
        if self.filter is not None:
            features = self.filter(features)
        shared = len(self.predictors) == 1
        maps = [self.predictors[0 if shared else i](x) for i, x in enumerate(features)]
        return torch.cat([m.flatten(2) for m in maps], -1)
