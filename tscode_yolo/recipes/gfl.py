"""GFL: one joint score of class and box quality, and boxes as distributions.

Paper: Generalized Focal Loss, arXiv:2006.04388. Assignment is ATSS. Weights were read in open-mmlab/mmdetection v3.3.0,
models/dense_heads/gfl_head.py and models/losses/gfocal_loss.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from tscode_yolo.recipes.atss import atss_positives
from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Preds, Recipe, Targets
from tscode_yolo.recipes.losses import hard_losses, matched_iou, quality_focal_loss, simple_assignment


@dataclass(frozen=True)
class GFL(Recipe):
    """ATSS positives learn their box's IoU as class target; the predicted confidence weights the box losses.

    On a head that regresses plain distances (YOLO26) there is no distribution and no ``dfl_loss``.

    Attributes:
        topk: candidates per object and level.
        anchor_scale: side of the virtual anchor in strides.
        beta: exponent of the quality focal loss.
    """

    paper: ClassVar[str] = "Generalized Focal Loss, arXiv:2006.04388"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "dfl_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("anchor_scale",)

    topk: int = 9
    anchor_scale: float = 8.0
    beta: float = 2.0
    box_gain: float = 2.0
    cls_gain: float = 1.0
    dfl_gain: float = 0.25

    def loss_names(self, bins: bool) -> tuple[str, ...]:
        """Without bins there is no distribution focal loss."""
        return self.names if bins else self.names[:2]

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """ATSS; class target is the box's IoU, box weight the largest probability of any class, as published."""
        fg, gt = atss_positives(grid, targets, self.topk, self.anchor_scale)
        weight = preds.logits.amax(-1).sigmoid() * fg
        return simple_assignment(
            fg, gt, cls_target=matched_iou(preds, targets, fg, gt), box_weight=weight, box_norm=weight.sum()
        )

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Quality focal, GIoU and distribution focal, the last two over the sum of weights."""
        loss = partial(quality_focal_loss, beta=self.beta)
        parts = hard_losses(preds, targets, grid, assignment, cls_loss=loss, with_bins=True)
        out = {"box_loss": self.box_gain * parts["box"], "cls_loss": self.cls_gain * parts["cls"]}
        if "dfl" in parts:
            out["dfl_loss"] = self.dfl_gain * parts["dfl"]
        return out
