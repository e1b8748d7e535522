"""DDOD: each task picks its own positives by predicted quality, and starved pyramid levels weigh more.

Paper: Disentangle Your Dense Object Detector, arXiv:2107.02963. Read in open-mmlab/mmdetection v3.3.0,
models/dense_heads/ddod_head.py, and in the authors' zehuichen123/DDOD, coco_cfg/ddod_r50_1x.py. Two of the paper's
three disentanglements are assignment and live here; the third, deformable first convolutions in the towers, is a matter
of the head and is left out (deformable convolution does not export to most formats).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tscode_yolo.recipes.atss import adaptive_positives
from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Preds, Recipe, RecipeState, Targets
from tscode_yolo.recipes.geometry import iou, nearest_points
from tscode_yolo.recipes.losses import hard_losses, matched_iou, rank_sum


@dataclass(frozen=True)
class DDOD(Recipe):
    """ATSS on p^(1-alpha) * IoU^alpha of the predicted box, once for each task, and level weights from running counts.

    Attributes:
        topk: candidates per object and level.
        alpha_cls: exponent of the IoU in the classification's assignment.
        alpha_box: exponent of the IoU in the box assignment.
    """

    paper: ClassVar[str] = "Disentangle Your Dense Object Detector, arXiv:2107.02963"
    quality: ClassVar[str] = "iou"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "iou_loss")
    at_most_one: ClassVar[tuple[str, ...]] = ("alpha_cls", "alpha_box")

    topk: int = 9
    alpha_cls: float = 0.8
    alpha_box: float = 0.5
    box_gain: float = 2.0
    cls_gain: float = 1.0
    quality_gain: float = 1.0

    def state(self, nc: int, nl: int) -> RecipeState:
        """Counts the positives of each level over the whole training."""
        return RecipeState(counters={"level_counts": nl})

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """Two ATSS assignments on predicted quality; the counts grow by the positives of both, in training only."""
        candidates = nearest_points(grid, targets, self.topk)  # (B, G, C)
        images = torch.arange(len(candidates), device=candidates.device)[:, None, None]
        overlap = iou(preds.bboxes[images, candidates], targets.bboxes.unsqueeze(2))
        prob = preds.logits[images, candidates, targets.labels.unsqueeze(-1)].sigmoid()
        sets = [
            adaptive_positives(candidates, prob ** (1 - alpha) * overlap**alpha, grid, targets)
            for alpha in (self.alpha_cls, self.alpha_box)
        ]
        (fg, gt), (box_fg, box_gt) = sets
        weight = self.level_weights(grid, (fg.sum(0) + box_fg.sum(0)), moment)
        quality = matched_iou(preds, targets, box_fg, box_gt)
        return Assignment(fg, gt, box_fg, box_gt, quality_target=quality, point_weight=weight)

    def level_weights(self, grid: Grid, positives: Tensor, moment: Moment) -> Tensor:
        """(A,) weight of each point's level: 2 on the level with fewest positives so far, 1 on that with most."""
        counts = moment.state.get_buffer("level_counts")
        if moment.learning:
            positives = rank_sum(positives.to(counts.dtype))
            counts.index_add_(0, grid.levels, positives)
        span = counts - counts.min()
        weights = 2 - span / (span.max() + 1e-10)
        return weights.to(grid.points.dtype)[grid.levels]

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal, GIoU and IoU BCE, each over its own number of positives, times the level weight."""
        parts = hard_losses(preds, targets, grid, assignment)
        return {
            "box_loss": self.box_gain * parts["box"],
            "cls_loss": self.cls_gain * parts["cls"],
            "iou_loss": self.quality_gain * parts["quality"],
        }
