"""The stride-2 step of DPE's sum with an up-sampled map, DConv(P_{l-1} + up(P_l)) of Eq. 5, at the small map's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from tscode_yolo.blocks import LevelSequential
from tscode_yolo.resample import crop, writable


class DownOfSum(LevelSequential):
    """A separable stride-2 block that takes a sum with an up-sampled map without making anything of the larger size.

    A 3x3 stride-2 conv (padding 1) reads rows 2i-1, 2i and 2i+1. In a map that was up-sampled twice, nearest, these are
    rows i-1, i and i of the small one: a 2x2 conv with kernel rows [w0, w1 + w2], columns alike.

    Children: depthwise 3x3 of stride 2, bare or with norm and activation (the host's Conv), then anything.
    """

    __module__ = "tscode_yolo.context"  # where checkpoints look for it, under restricted loading too
    kernel: Tensor | None

    def __init__(self, *children: Any):
        super().__init__(*children)
        self.register_buffer("kernel", None, persistent=False)

    def of_sum(self, below: Tensor, small: Tensor) -> Tensor:
        """self(below + up(small)) of below (B, C, 2h, 2w) and small (B, C, h, w)."""
        first: Any = self[0]
        conv = self._depthwise
        kernel = _half_kernel(conv.weight) if self.kernel is None else self.kernel
        if writable():  # a row and a column too many cost less than a padded copy
            x = crop(F.conv2d(small, kernel, padding=1, groups=conv.groups), small)
        else:
            x = F.conv2d(F.pad(small, (1, 0, 1, 0)), kernel, groups=conv.groups)
        x = conv(below) + x
        if not isinstance(first, nn.Conv2d):  # by type: torch.export hands out a new proxy at each access
            x = first.act(first.bn(x) if hasattr(first, "bn") else x)
        return self[1:](x)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """As the host's; a kernel that was kept is made of the weights that come."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        name = "0.weight" if isinstance(self[0], nn.Conv2d) else "0.conv.weight"
        if self.kernel is not None and prefix + name in state_dict:
            self.kernel.copy_(_half_kernel(state_dict[prefix + name].detach()))

    @property
    def _depthwise(self) -> Any:
        first: Any = self[0]
        return first if isinstance(first, nn.Conv2d) else first.conv

    def fuse(self) -> None:
        """Fold the norm and keep the small kernel: not every runtime takes one that is computed in the graph."""
        first: Any = self[0]
        if hasattr(first, "bn"):
            first.conv, first.forward = fuse_conv_and_bn(first.conv, first.bn), first.forward_fuse
            del first.bn
        self.kernel = _half_kernel(self._depthwise.weight).detach()


def _half_kernel(weight: Tensor) -> Tensor:
    """The (C, 1, 2, 2) kernel that does on a map what a stride-2 conv of this (C, 1, 3, 3) does on it up-sampled."""
    rows = torch.cat((weight[:, :, :1], weight[:, :, 1:].sum(2, True)), 2)
    return torch.cat((rows[..., :1], rows[..., 1:].sum(3, True)), 3)


def of_sums(block: nn.Module) -> nn.Module:
    """The block as a `DownOfSum` where it can be one: in two convs, the first bare or with BatchNorm of its own."""
    if isinstance(block, LevelSequential) and isinstance(block[0], (nn.Conv2d, Conv)):
        return DownOfSum(*block)
    return block
