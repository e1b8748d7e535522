"""DW: every point inside an object has a positive and a negative weight, each from its own view of consistency.

Paper: A Dual Weighting Label Assignment Scheme for Object Detection, arXiv:2203.09730. Read in the authors'
strongwolf/DW, dw_head.py, without the box refinement (dw_r50_fpn_worefine_1x_coco.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tscode_yolo.recipes.contract import Grid, Moment, PairWeights, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import group_sum, inside_pairs, pair_iou
from tscode_yolo.recipes.losses import joint_log_scores, rank_mean
from tscode_yolo.recipes.soft import EPS, center_prior, negative_weights, pair_scores, spread


@dataclass(frozen=True)
class DW(Recipe):
    """Both weights are cut from the graph; the losses are cross entropies of the joint score and the location score.

    Differs from the reference: a point inside two objects of one class takes the smaller negative weight (there, the
    last). The positive weights do not sum to 1: the code uses ``mu_num`` above and ``mu_den`` below the line.

    Attributes:
        mu_num: exponent of P in the numerator of the positive weight.
        mu_den: exponent of P in its denominator.
        sigma: deviation of the fixed centre prior, in strides.
        sharpness: factor of the GIoU loss in the location score exp(-5 (1 - GIoU)).
    """

    paper: ClassVar[str] = "A Dual Weighting Label Assignment Scheme, arXiv:2203.09730"
    quality: ClassVar[str] = "objectness"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "pos_loss", "neg_loss")
    cls_prior: ClassVar[float] = 0.02
    box_prior: ClassVar[float | None] = 4.0
    above_zero: ClassVar[tuple[str, ...]] = ("sigma",)

    mu_num: float = 5.0
    mu_den: float = 3.0
    sigma: float = 1.11
    sharpness: float = 5.0
    box_gain: float = 0.25
    pos_gain: float = 0.25
    neg_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> PairWeights:
        """Weigh all points inside, from the current predictions."""
        pairs = inside_pairs(grid, targets)
        sigma = grid.points.new_full((2,), self.sigma)
        prior = center_prior(grid, targets, pairs, sigma * 0, sigma)
        p = pair_scores(preds, targets, pairs, self.sharpness).p
        total = group_sum((self.mu_den * p).exp() * p * prior, pairs, targets).clamp(min=EPS)
        positive = (self.mu_num * p).exp() * p * prior / total[pairs.image, pairs.gt]
        overlap = pair_iou(preds.bboxes, targets, pairs)
        # t falls from 1 at IoU 0.5 to 0 at IoU 1
        negative = spread((1 - overlap.square()) / 0.75, pairs, targets, ceiling=1.0)
        return PairWeights(pairs, positive, negative.where(overlap >= 0.5, 1.0))

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: PairWeights, moment: Moment
    ) -> dict[str, Tensor]:
        """Weighted -log C and -log P_loc over the number of objects; w- C^2 BCE over the sum of 1 - w-."""
        scores = pair_scores(preds, targets, assignment.pairs, self.sharpness)
        count = rank_mean(targets.count)
        assert assignment.positive is not None  # ours always sets it
        box = (self.sharpness * scores.giou * assignment.positive).sum() / count
        positive = (-scores.log_c * assignment.positive).sum() / count
        weight = negative_weights(preds, targets, assignment.pairs, assignment.negative)
        log_c, log_rest = joint_log_scores(preds, self.score)
        negative = (weight * log_c.exp().square() * -log_rest).sum() / rank_mean((1 - weight).sum())
        return {
            "box_loss": self.box_gain * box,
            "pos_loss": self.pos_gain * positive,
            "neg_loss": self.neg_gain * negative,
        }
