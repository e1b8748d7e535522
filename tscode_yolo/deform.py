"""A conv that looks where it wants to, on torchvision's operator.

"Deformable Convolutional Networks" (arXiv:1703.06211), Eq. 2 and Section 2.1, which Table 5 of the TSCODE paper cites.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.ops import DeformConv2d

REACH = 1e4  # pixels of the map that a tap may be away: from beyond the border it reads zeros all the same


class DeformableConv(DeformConv2d):
    """`torchvision.ops.DeformConv2d` with the conv that predicts its offsets, zero at the start.

    Takes `torch.nn.Conv2d`'s arguments and, its offsets being zero, starts as the plain conv of the same weights, so
    it can take a pretrained one's place.
    """

    def __init__(self, c1: int, c2: int, k: int, stride: int = 1, padding: int = 0, **kwargs: Any):
        super().__init__(c1, c2, k, stride, padding, **kwargs)
        self.offset = nn.Conv2d(c1, 2 * k * k, k, stride, padding)  # (dy, dx) of each of the k x k taps
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]  # the offsets are its own
        """(B, C1, H, W) to (B, C2, H/stride, W/stride), rounded up at padding k // 2."""
        offsets = self.offset(input).clamp(-REACH, REACH).nan_to_num()  # at others it reads memory it does not own
        return super().forward(input, offsets)
