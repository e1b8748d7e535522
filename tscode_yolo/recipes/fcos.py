"""FCOS, the improved form: centre sampling, centre-ness on the box tower, GIoU weighted by centre-ness.

Paper: FCOS: Fully Convolutional One-Stage Object Detection, arXiv:1904.01355. The improvements (centre sampling, GIoU,
normalised regression) and their weights were read in open-mmlab/mmdetection v3.3.0, models/dense_heads/fcos_head.py and
configs/fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Pairs, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import assigned, centerness, inside_pairs, resolve
from tscode_yolo.recipes.losses import hard_losses, simple_assignment


def in_level_range(grid: Grid, targets: Targets, pairs: Pairs, factor: float) -> Tensor:
    """Keep the pairs whose longest side distance suits the level.

    A level of stride s takes distances from ``factor`` times the finer level's stride to ``factor * s``, both ends
    included; the finest level starts at -1 and the coarsest ends nowhere. With factor 8 and strides 8..128 these are
    the published ranges [-1, 64], [64, 128], ..., [512, inf].

    Returns:
        (N,) bool.
    """
    ends = torch.tensor(grid.level_strides, device=grid.points.device) * factor
    low = torch.cat((ends.new_full((1,), -1.0), ends[:-1]))
    high = torch.cat((ends[:-1], ends.new_full((1,), torch.inf)))
    points, bboxes = grid.points[pairs.point], targets.bboxes[pairs.image, pairs.gt]
    longest = torch.cat((points - bboxes[:, :2], bboxes[:, 2:] - points), -1).amax(-1)
    level = grid.levels[pairs.point]
    return (longest >= low[level]) & (longest <= high[level])


@dataclass(frozen=True)
class FCOS(Recipe):
    """Points near the centre of a box whose size suits the level; nested boxes: the smaller one.

    Attributes:
        radius: half side of the centre square, in strides.
        range_factor: upper end of a level's size range, in strides of that level.
    """

    paper: ClassVar[str] = "FCOS: Fully Convolutional One-Stage Object Detection, arXiv:1904.01355"
    quality: ClassVar[str] = "centerness"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "ctr_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("radius", "range_factor")

    radius: float = 1.5
    range_factor: float = 8.0
    box_gain: float = 1.0
    cls_gain: float = 1.0
    quality_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """Static assignment; a box without a point in its centre square stays without one, as published."""
        pairs = inside_pairs(grid, targets, radius=self.radius)
        pairs = Pairs(*(part[in_level_range(grid, targets, pairs, self.range_factor)] for part in pairs))
        size = targets.bboxes[..., 2:] - targets.bboxes[..., :2]
        fg, gt = resolve(pairs, -size.prod(-1)[pairs.image, pairs.gt], len(preds.logits), len(grid.points))
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
