"""ATSS: the nine nearest points of each level compete; mean plus deviation of their IoU is the threshold.

Paper: Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection,
arXiv:1912.02424, Algorithm 1. Weights and the centre-ness branch were read in open-mmlab/mmdetection v3.3.0,
models/dense_heads/atss_head.py and task_modules/assigners/atss_assigner.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Pairs, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import INSIDE_MARGIN, assigned, centerness, iou, nearest_points, resolve
from tscode_yolo.recipes.losses import hard_losses, simple_assignment


def adaptive_positives(
    candidates: Tensor, merit: Tensor, grid: Grid, targets: Targets, margin: float = INSIDE_MARGIN
) -> tuple[Tensor, Tensor]:
    """Keep the candidates at or above mean + deviation of their merit whose centre lies in the object.

    ATSS, Algorithm 1, lines 7-15, with any merit: anchor IoU (ATSS), predicted quality (DDOD, DeFCN).

    Args:
        candidates: (B, G, C) point indices.
        merit: (B, G, C); of a point several objects want, the one of largest merit keeps it.
        grid: anchor points.
        targets: padded ground truth.
        margin: pixels the point must lie inside the box.

    Returns:
        (B, A) bool foreground and (B, A) object index.

    Differs from the papers: the threshold never exceeds the best merit. Where more than half of the candidates are as
    good as the best (predicted quality, late in training), mean + deviation does, and the object would lose them all.
    """
    batch, points = len(targets.mask), len(grid.points)
    if not merit.numel():
        nothing = torch.zeros(batch, points, dtype=torch.bool, device=grid.points.device)
        return nothing, nothing.long()
    threshold = merit.mean(-1, keepdim=True) + merit.std(-1, keepdim=True)  # unbiased, as published
    threshold = torch.minimum(threshold, merit.amax(-1, keepdim=True))
    centers, bboxes = grid.points[candidates], targets.bboxes.unsqueeze(2)  # (B, G, C, 2), (B, G, 1, 4)
    inside = torch.minimum(centers - bboxes[..., :2], bboxes[..., 2:] - centers).amin(-1) > margin
    keep = (merit >= threshold) & inside & targets.mask.unsqueeze(-1)
    image, gt, slot = keep.nonzero(as_tuple=True)
    pairs = Pairs(image, gt, candidates[image, gt, slot])
    return resolve(pairs, merit[image, gt, slot], batch, points)


def atss_positives(grid: Grid, targets: Targets, topk: int, anchor_scale: float) -> tuple[Tensor, Tensor]:
    """The ATSS assignment: foreground and object index, both (B, A); depends on the boxes alone."""
    candidates = nearest_points(grid, targets, topk)
    half = (grid.strides[candidates] * anchor_scale / 2).unsqueeze(-1)
    anchors = torch.cat((grid.points[candidates] - half, grid.points[candidates] + half), -1)  # (B, G, C, 4)
    return adaptive_positives(candidates, iou(anchors, targets.bboxes.unsqueeze(2)), grid, targets)


@dataclass(frozen=True)
class ATSS(Recipe):
    """A square virtual anchor at each point serves the assignment alone; boxes are regressed as distances.

    Attributes:
        topk: candidates per object and level.
        anchor_scale: side of the virtual anchor in strides.
    """

    paper: ClassVar[str] = "Adaptive Training Sample Selection, arXiv:1912.02424"
    quality: ClassVar[str] = "centerness"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "ctr_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("anchor_scale",)

    topk: int = 9
    anchor_scale: float = 8.0
    box_gain: float = 2.0
    cls_gain: float = 1.0
    quality_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """Static assignment."""
        fg, gt = atss_positives(grid, targets, self.topk, self.anchor_scale)
        center = centerness(grid.points, assigned(targets.bboxes, gt)) * fg
        return simple_assignment(fg, gt, box_weight=center, box_norm=center.sum(), quality_target=center)

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal, GIoU weighted by centre-ness over the sum of centre-ness, centre-ness BCE."""
        parts = hard_losses(preds, targets, grid, assignment)
        return {
            "box_loss": self.box_gain * parts["box"],
            "cls_loss": self.cls_gain * parts["cls"],
            "ctr_loss": self.quality_gain * parts["quality"],
        }
