"""AutoAssign: no hard assignment; a learnable centre prior and the object's likelihood weigh every point inside.

Paper: AutoAssign: Differentiable Label Assignment for Dense Object Detection, arXiv:2007.03496. Read in
open-mmlab/mmdetection v3.3.0, models/dense_heads/autoassign_head.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Grid, Moment, PairWeights, Preds, Recipe, RecipeState, Targets
from tscode_yolo.recipes.geometry import group_sum, image_chunks, inside_pairs, object_iou
from tscode_yolo.recipes.losses import joint_log_scores, rank_mean
from tscode_yolo.recipes.soft import EPS, center_prior, negative_weights, pair_scores, spread


@dataclass(frozen=True)
class AutoAssign(Recipe):
    """Positive, negative and centre loss; the gradient flows through the weights too.

    Differs from the reference: an object without a point inside adds nothing (there, a constant); a point inside two
    objects of one class takes the smaller negative weight (there, the last).

    Attributes:
        confidence: exponent of P in the positive weights.
        sharpness: factor of the GIoU loss in the location score exp(-5 (1 - GIoU)).
    """

    paper: ClassVar[str] = "AutoAssign: Differentiable Label Assignment, arXiv:2007.03496"
    quality: ClassVar[str] = "objectness"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("pos_loss", "neg_loss", "ctr_loss")
    cls_prior: ClassVar[float] = 0.02
    box_prior: ClassVar[float | None] = 4.0

    confidence: float = 3.0
    sharpness: float = 5.0
    pos_gain: float = 0.25
    neg_gain: float = 0.75
    ctr_gain: float = 0.75

    def state(self, nc: int, nl: int) -> RecipeState:
        """Mean and deviation of each class's centre prior, xy in strides, flat: 0 and 1 at first."""
        return RecipeState({"mu": torch.zeros(2 * nc), "sigma": torch.ones(2 * nc)})

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> PairWeights:
        """All points inside; as negatives they count 1 - f, f the spread of 1 / (1 - IoU) over the object's points."""
        pairs = inside_pairs(grid, targets)
        batch, objects = targets.mask.shape
        best = preds.bboxes.new_zeros(batch, len(grid.points))  # largest IoU of a box with any object
        if objects:
            for images in image_chunks(batch, objects, len(grid.points)):
                best[images] = object_iou(preds.bboxes[images], targets.bboxes[images]).amax(1)
        sharp = 1 / (1 - best[pairs.image, pairs.point]).clamp(min=EPS)
        return PairWeights(pairs, None, 1 - spread(sharp, pairs, targets))

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: PairWeights, moment: Moment
    ) -> dict[str, Tensor]:
        """Log-likelihood of each object, weighted focal loss of the negatives, and the prior's own loss."""
        pairs = assignment.pairs
        mean, sigma = (moment.state.parameter(name).view(-1, 2) for name in ("mu", "sigma"))
        prior = center_prior(grid, targets, pairs, mean, sigma)
        scores = pair_scores(preds, targets, pairs, self.sharpness)
        raw = (self.confidence * scores.p).exp() * prior
        weight = raw / group_sum(raw, pairs, targets).clamp(min=EPS)[pairs.image, pairs.gt]
        likelihood = group_sum(weight * scores.p, pairs, targets)  # (B, G)
        populated = group_sum(torch.ones_like(prior), pairs, targets) > 0
        positive = -likelihood[populated].clamp(min=1e-30).log().sum() / rank_mean(targets.count)

        prior_sum = prior.new_zeros(len(targets.mask)).index_add(0, pairs.image, prior)  # (B,)
        negative = self.negative_loss(preds, targets, assignment) / rank_mean(prior_sum.sum())
        per_image = targets.mask.sum(1) / prior_sum.clamp(min=EPS)
        center = per_image.where(populated.any(1), prior_sum * 0).mean()
        return {
            "pos_loss": self.pos_gain * positive,
            "neg_loss": self.neg_gain * negative,
            "ctr_loss": self.ctr_gain * center,
        }

    def negative_loss(self, preds: Preds, targets: Targets, assignment: PairWeights) -> Tensor:
        """Sum over all points and classes of (w C)^2 * -log(1 - w C)."""
        weight = negative_weights(preds, targets, assignment.pairs, assignment.negative)
        log_c, log_rest = joint_log_scores(preds, self.score)
        log_miss = torch.logaddexp(log_rest, (1 - weight).log() + log_c)  # 1 - w C = (1 - C) + (1 - w) C
        return ((weight * log_c.exp()).square() * -log_miss).sum()
