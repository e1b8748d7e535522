"""From the bins of a box's side to its distance, in the order in which the head has the bins.

B images, A anchor points, n bins a side.
"""

from __future__ import annotations

from torch import Tensor
from ultralytics.nn.modules.block import DFL

IN_PLACE = ("onnx",)  # exports that gain, see docs/cost.md; OpenVINO was measured not to


class Integral(DFL):
    """The mean of each side's distribution (Generalized Focal Loss, arXiv:2006.04388, Eq. 5).

    The host moves the bins to the front before it takes their softmax. ONNX Runtime then computes it for one side of
    one point at a time, 16 numbers each. Left in their place, the softmax of all points is computed at once and nothing
    is moved; the values are equal but for rounding. Weights, and their name in a checkpoint, are the host's.

    Attributes:
        in_place: leave the bins where they are. Off but for exports to `IN_PLACE`; PyTorch gains nothing.
    """

    in_place = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4n, A) logits, the bins of a side next to each other, to (B, 4, A) distances in strides."""
        if not self.in_place:
            return super().forward(x)
        b, _, a = x.shape
        return (self.conv.weight.view(1, self.c1) @ x.view(b, 4, self.c1, a).softmax(2)).view(b, 4, a)


def in_order(dfl: DFL) -> Integral:
    """The host's DFL, as checkpoints from before there was an `Integral` have it, as one with the same weights."""
    integral = Integral(dfl.c1)
    integral.conv = dfl.conv
    return integral
