"""Slow oracles written straight from the paper's equations; they share no code with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def rearrange(coarse: Tensor, height: int, width: int) -> Tensor:
    """Eq. 4 literally, channels sub-position major: C^[2y+i, 2x+j, c] = C~[y, x, (2i+j) K + c]."""
    batch, channels, h, w = coarse.shape
    k = channels // 4
    full = torch.empty(batch, k, 2 * h, 2 * w)
    for y in range(h):
        for x in range(w):
            for i in range(2):
                for j in range(2):
                    full[:, :, 2 * y + i, 2 * x + j] = coarse[:, (2 * i + j) * k : (2 * i + j + 1) * k, y, x]
    return full[:, :, :height, :width]


def upsample(x: Tensor, height: int, width: int, times: int = 2) -> Tensor:
    """Nearest neighbour: every cell becomes a times x times block; what sticks out is cut off."""
    out = torch.empty(*x.shape[:2], height, width)
    for r in range(height):
        for c in range(width):
            out[:, :, r, c] = x[:, :, r // times, c // times]
    return out


def blend(x: Tensor, height: int, width: int) -> Tensor:
    """Twice as large, bilinear: a cell's centre lies at (i + 1/2) / 2 - 1/2 of the small map, whose edge goes on."""
    out = torch.empty(*x.shape[:2], height, width)
    for r in range(height):
        for c in range(width):
            y, x0 = (max((i + 0.5) / 2 - 0.5, 0.0) for i in (r, c))
            out[:, :, r, c] = sum(
                wy * wx * x[:, :, min(int(y) + dy, x.shape[2] - 1), min(int(x0) + dx, x.shape[3] - 1)]
                for dy, wy in ((0, 1 - y % 1), (1, y % 1))
                for dx, wx in ((0, 1 - x0 % 1), (1, x0 % 1))
            )
    return out


def sce(p: Tensor, coarser: Tensor | None, down: torch.nn.Module) -> Tensor:
    """Eq. 3: Concat(DConv(P_l), P_{l+1})."""
    halved = down(p)
    return halved if coarser is None else torch.cat([halved, coarser], dim=1)


def dpe(finer: Tensor, p: Tensor, coarser: Tensor | None, down: torch.nn.Module, up=upsample) -> Tensor:
    """Eq. 5: P_l + up(P_{l+1}) + DConv(up(P_l) + P_{l-1})."""
    detail = down(up(p, *finer.shape[-2:]) + finer)
    out = p + detail
    return out if coarser is None else out + up(coarser, *p.shape[-2:])
