"""Maps of two sizes made one: up-sampling, Eq. 4's quadrants, and sums of the two without a copy.

"Task-Specific Context Decoupling for Object Detection" (arXiv:2303.01047), Section 3.1. B batch, K classes, C channels,
H W size of the larger map, h w of the smaller one: h = ceil(H / 2), so what is made larger is cropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def up(x: Tensor, like: Tensor, times: int = 2, mode: str = "nearest") -> Tensor:
    """Up-sampling of (B, C, h, w) by `times`, nearest or bilinear, cropped to the size of `like` (B, _, H, W)."""
    return crop(F.interpolate(x, scale_factor=float(times), mode=mode), like)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """The top-left part of (B, C, h, w) that has the size of `like` (B, _, H, W); h >= H and w >= W."""
    return x[..., : like.shape[-2], : like.shape[-1]]


def rearrange_quadrants(x: Tensor, like: Tensor) -> Tensor:
    """Give each of four neighbours its own scores (Eq. 4): (B, 4K, h, w) to (B, K, H, W), H <= 2h and W <= 2w.

    The score of class c at row 2y+i, column 2x+j comes from channel 4c + 2i + j. Eq. 4 writes it as (2i+j)K + c: the
    same map up to the order of the predictor's rows; this one is `torch.nn.PixelShuffle`'s, which every runtime knows.
    """
    return crop(F.pixel_shuffle(x, 2), like)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Add y to an x that nothing else reads and has the sum's shape: in place where `writable` allows."""
    return x.add_(y) if writable() else x + y


def add_quadrants(x: Tensor, quadrants: Tensor) -> Tensor:
    """Add rearrange_quadrants(quadrants, x) to an x that nothing else reads: in one pass where `writable` allows.

    Args:
        x: (B, K, H, W).
        quadrants: (B, 4K, ceil(H/2), ceil(W/2)).
    """
    if not writable():
        return x + rearrange_quadrants(quadrants, x)
    if x.is_cuda and x.shape[-2:] == (2 * quadrants.shape[-2], 2 * quadrants.shape[-1]):  # four kernels cost more there
        return _add_at_once(x, quadrants)
    own = quadrants.unflatten(1, (-1, 4))
    for place in range(4):
        part = x[..., place // 2 :: 2, place % 2 :: 2]
        part += crop(own[:, :, place], part)
    return x


def _add_at_once(x: Tensor, quadrants: Tensor) -> Tensor:
    """`add_quadrants` in place by one strided sum, for x of exactly twice the size of the quadrants' map."""
    rows_and_columns = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, K, h, 2, w, 2)
    rows_and_columns += quadrants.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    return x


def writable() -> bool:
    """Whether a sum may be written in place: at inference, when no autograd and no trace looks on.

    In place nothing of the larger size is built; the values are the same to the last bit.
    """
    return not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())
