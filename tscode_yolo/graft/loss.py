"""How far what a head says is from what another says.

Classes: the Kullback-Leibler divergence of Bernoulli variables, summed over classes and anchor points. Boxes: complete
IoU (arXiv:1911.08287) of the decoded boxes and, where sides are distributions (DFL, arXiv:2006.04388), their
divergence, or else the distance of the sides; an anchor point weighs what the teacher's best score is. All is divided
by the sum of these weights, as the host divides its own losses by the sum of its targets: its gains apply. Hints: the
squared distance of the features that the predictors read, over the variance of the teacher's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss
from ultralytics.cfg import DEFAULT_CFG_DICT

GAINS = {**{name: float(DEFAULT_CFG_DICT[name]) for name in ("box", "cls", "dfl")}, "hint": 1.0}
PARTS = tuple(GAINS)


def distance(teacher: dict[str, Tensor], student: dict[str, Tensor], reg_max: int) -> dict[str, Tensor]:
    """Weighted parts of the loss on raw predictions.

    Args:
        teacher: the teacher's boxes (B, 4 reg_max, A), distances in strides or DFL logits, and score logits (B, nc, A).
        student: the student's, of the same shapes.
        reg_max: DFL bins; 1 for plain distances.

    Returns:
        box, cls and dfl, scalars that are 0 where the two say the same.
    """
    p = teacher["scores"].float().sigmoid()
    scores = student["scores"].float()
    least = F.binary_cross_entropy(p, p, reduction="sum")  # the entropy: what no student can get below
    weight = p.amax(1)  # (B, A)
    total = weight.sum().clamp(min=1)
    parts = {"cls": (F.binary_cross_entropy_with_logits(scores, p, reduction="sum") - least) / total}
    theirs, ours = (x["boxes"].float().unflatten(1, (4, reg_max)) for x in (teacher, student))
    iou = complete_box_iou_loss(_decoded(ours), _decoded(theirs), reduction="none")
    parts["box"] = (iou * weight.flatten()).sum() / total
    if reg_max > 1:
        apart = F.kl_div(ours.log_softmax(2), theirs.log_softmax(2), reduction="none", log_target=True).sum(2)
    else:
        apart = F.smooth_l1_loss(ours, theirs, reduction="none").squeeze(2)
    parts["dfl"] = (apart.mean(1) * weight).sum() / total
    return {name: GAINS[name] * part for name, part in parts.items()}


def hint(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Share of the variance of the teacher's features (B, D, H, W), level by level, that the student's do not have."""
    shares = [F.mse_loss(s.float(), t.float()) / t.float().var().clamp(min=1e-6) for t, s in zip(teacher, student)]
    return GAINS["hint"] * torch.stack(shares).mean()


def _decoded(sides: Tensor) -> Tensor:
    """(B, 4, reg_max, A) to boxes (B A, 4) in strides around the origin."""
    bins = sides.shape[2]
    if bins > 1:
        steps = torch.arange(bins, device=sides.device, dtype=sides.dtype)
        sides = torch.einsum("bkna,n->bka", sides.softmax(2), steps)
    else:
        sides = sides.squeeze(2)
    left, top, right, bottom = sides.clamp(min=0.01).unbind(1)
    return torch.stack((-left, -top, right, bottom), -1).flatten(0, 1)
