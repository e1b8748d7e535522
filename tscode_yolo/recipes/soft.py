"""What the two soft recipes share: every point inside an object is a candidate, with a centre prior and a weight.

AutoAssign (arXiv:2007.03496) and DW (arXiv:2203.09730) score each (object, point) pair by P = C * exp(-5 (1 - GIoU)),
with C the joint score of the object's class, and correct the point's weight as a negative of that class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Grid, Pairs, Preds, Targets
from tscode_yolo.recipes.geometry import group_extreme
from tscode_yolo.recipes.losses import giou_loss, joint_log_scores

EPS = 1e-12


class PairScores(NamedTuple):
    """Per pair, (N,): log C, the GIoU loss of the box, and P."""

    log_c: Tensor
    giou: Tensor
    p: Tensor


def pair_scores(preds: Preds, targets: Targets, pairs: Pairs, sharpness: float) -> PairScores:
    """Score the pairs; differentiable if ``preds`` is.

    Args:
        preds: predictions with quality logits.
        targets: padded ground truth.
        pairs: N pairs.
        sharpness: factor of the GIoU loss in the exponent of the location score.
    """
    label = targets.labels[pairs.image, pairs.gt]
    logits = preds.logits[pairs.image, pairs.point, label]
    quality = preds.quality[pairs.image, pairs.point] if preds.quality is not None else None
    log_c, _ = joint_log_scores(Preds(logits[:, None], preds.bboxes, quality), "pq")
    log_c = log_c.squeeze(-1)
    giou = giou_loss(preds.bboxes[pairs.image, pairs.point], targets.bboxes[pairs.image, pairs.gt])
    return PairScores(log_c, giou, (log_c - sharpness * giou).exp())


def center_prior(grid: Grid, targets: Targets, pairs: Pairs, mean: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian prior of a point's offset from its object's centre, in strides (AutoAssign, Eq. 6).

    Args:
        grid: anchor points.
        targets: padded ground truth.
        pairs: N pairs.
        mean: (K, 2) or (2,) xy.
        sigma: (K, 2) or (2,) xy.

    Returns:
        (N,) in (0, 1].
    """
    bboxes = targets.bboxes[pairs.image, pairs.gt]
    offset = (grid.points[pairs.point] - (bboxes[:, :2] + bboxes[:, 2:]) / 2) / grid.strides[pairs.point, None]
    if mean.ndim == 2:
        label = targets.labels[pairs.image, pairs.gt]
        mean, sigma = mean[label], sigma[label]
    return (-(offset - mean).square() / (2 * sigma.square()).clamp(min=1e-6)).sum(-1).exp()


def spread(values: Tensor, pairs: Pairs, targets: Targets, ceiling: float | None = None) -> Tensor:
    """Stretch (N,) values to [0, 1] over the points of each object; ``ceiling`` caps the upper end."""
    low = group_extreme(values, pairs, targets, largest=False)[pairs.image, pairs.gt]
    high = group_extreme(values, pairs, targets, largest=True)[pairs.image, pairs.gt]
    if ceiling is not None:
        high = high.clamp(max=ceiling)
    return (values - low + EPS) / (high - low + EPS)


def negative_weights(preds: Preds, targets: Targets, pairs: Pairs, negative: Tensor) -> Tensor:
    """Write (N,) negative weights into a (B, A, K) tensor of ones.

    A point inside two objects of one class keeps the smaller weight: the references let the last object win, which
    depends on their order.
    """
    batch, points, classes = preds.logits.shape
    label = targets.labels[pairs.image, pairs.gt]
    key = (pairs.image * points + pairs.point) * classes + label
    dense = torch.ones(batch * points * classes, device=negative.device)
    return dense.scatter_reduce_(0, key, negative, "amin").view(batch, points, classes)
