"""TOOD: the points where class score and box agree best with the object learn it, as well as they agree.

Paper: TOOD: Task-aligned One-stage Object Detection, arXiv:2108.07755. Read in open-mmlab/mmdetection v3.3.0,
models/dense_heads/tood_head.py and task_modules/assigners/task_aligned_assigner.py. Of the paper's T-head only the
probability map is kept (the quality branch): layer attention and offset sampling are a matter of the towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from tscode_yolo.recipes.atss import atss_positives
from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Pairs, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import (
    INSIDE_MARGIN,
    assigned,
    centerness,
    group_extreme,
    image_chunks,
    object_iou,
    pair_iou,
    resolve,
)
from tscode_yolo.recipes.losses import (
    hard_losses,
    object_scores,
    quality_focal_loss,
    score_focal_loss,
    simple_assignment,
)


@dataclass(frozen=True)
class TOOD(Recipe):
    """Task-aligned assignment after a warm-up of ATSS; alignment is class target, box weight and normaliser.

    The host's own loss descends from this one and differs: alpha 0.5, topk 10, CIoU, plain cross entropy, no warm-up.

    Attributes:
        alpha: exponent of the score in the alignment.
        beta: exponent of the IoU in the alignment.
        topk: candidates per object, over all levels together.
        initial_epoch: epochs of warm-up with ATSS, focal loss and centre-ness weights.
        initial_topk: ATSS candidates per object and level.
        anchor_scale: side of the virtual anchor of ATSS in strides.
        focus: exponent of the quality focal loss.
    """

    paper: ClassVar[str] = "TOOD: Task-aligned One-stage Object Detection, arXiv:2108.07755"
    quality: ClassVar[str] = "tprob"
    score: ClassVar[str] = "sqrt_pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss")
    quality_prior: ClassVar[float | None] = 0.01
    above_zero: ClassVar[tuple[str, ...]] = ("anchor_scale",)

    alpha: float = 1.0
    beta: float = 6.0
    topk: int = 13
    initial_epoch: int = 4
    initial_topk: int = 9
    anchor_scale: float = 8.0
    focus: float = 2.0
    box_gain: float = 2.0
    cls_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """ATSS in the first epochs (``cls_target`` stays None), task alignment afterwards."""
        if moment.epoch < self.initial_epoch:
            fg, gt = atss_positives(grid, targets, self.initial_topk, self.anchor_scale)
            center = centerness(grid.points, assigned(targets.bboxes, gt)) * fg
            return simple_assignment(fg, gt, box_weight=center, box_norm=center.sum())
        return self.aligned(preds, targets, grid)

    def aligned(self, preds: Preds, targets: Targets, grid: Grid) -> Assignment:
        """The task-aligned assignment and its normalised alignment t = a / max a * max IoU of each object."""
        batch, points = len(targets.mask), len(grid.points)
        pairs, metric = self.candidates(preds, targets, grid)
        overlap = pair_iou(preds.bboxes, targets, pairs)
        fg, gt = resolve(pairs, overlap, batch, points)
        won = gt[pairs.image, pairs.point] == pairs.gt
        pairs, metric, overlap = Pairs(*(part[won] for part in pairs)), metric[won], overlap[won]
        top_metric = group_extreme(metric, pairs, targets, largest=True)[pairs.image, pairs.gt]
        top_overlap = group_extreme(overlap, pairs, targets, largest=True)[pairs.image, pairs.gt]
        target = metric.new_zeros(batch, points)
        target[pairs.image, pairs.point] = metric / (top_metric + 1e-7) * top_overlap
        total = target.sum()
        return simple_assignment(fg, gt, cls_target=target, box_weight=target, cls_norm=total, box_norm=total)

    def candidates(self, preds: Preds, targets: Targets, grid: Grid) -> tuple[Pairs, Tensor]:
        """The ``topk`` best aligned points of each object that lie inside it, and their alignment."""
        batch, objects = targets.mask.shape
        points = len(grid.points)
        found: list[tuple[Tensor, ...]] = [(*targets.labels.new_zeros(3, 0), preds.bboxes.new_zeros(0))]
        for images in image_chunks(batch, objects, points):
            part, bboxes = preds.of(images), targets.bboxes[images]
            metric = object_scores(part, targets.labels[images], self.score) ** self.alpha
            metric *= object_iou(part.bboxes, bboxes) ** self.beta  # (b, G, A)
            value, point = metric.topk(min(self.topk, points), dim=-1)
            center, bboxes = grid.points[point], bboxes.unsqueeze(2)
            inside = torch.minimum(center - bboxes[..., :2], bboxes[..., 2:] - center).amin(-1) > INSIDE_MARGIN
            image, gt, slot = ((value > 0) & inside & targets.mask[images, :, None]).nonzero(as_tuple=True)
            found.append((image + images.start, gt, point[image, gt, slot], value[image, gt, slot]))
        image, gt, point, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Pairs(image, gt, point), value

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal (warm-up) or quality focal loss on the joint score, and weighted GIoU."""
        warm_up = assignment.cls_target is None
        loss = partial(score_focal_loss, score=self.score)
        if not warm_up:
            loss = partial(quality_focal_loss, score=self.score, beta=self.focus)
        parts = hard_losses(preds, targets, grid, assignment, cls_loss=loss)
        return {"box_loss": self.box_gain * parts["box"], "cls_loss": self.cls_gain * parts["cls"]}
