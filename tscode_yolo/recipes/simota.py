"""SimOTA: the cheap form of OTA in YOLOX; each object takes its k cheapest points, k from its best boxes.

Paper: YOLOX: Exceeding YOLO Series in 2021, arXiv:2107.08430. Read in open-mmlab/mmdetection v3.3.0,
task_modules/assigners/sim_ota_assigner.py and models/dense_heads/yolox_head.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import center_mask, image_chunks, inside_mask, iou
from tscode_yolo.recipes.losses import (
    hard_losses,
    iou_square_loss,
    joint_log_scores,
    matched_iou,
    rank_mean,
    simple_assignment,
)

OUTSIDE = 1e5  # cost of a point that is not in both box and centre square


@dataclass(frozen=True)
class SimOTA(Recipe):
    """Classes are learned on positives alone, towards the box's IoU; objectness everywhere.

    Differs from YOLOX: the L1 loss of the last epochs is taken on side distances in strides, which this head regresses,
    and not on centre and log size.

    Attributes:
        radius: half side of the centre square, in strides.
        topk: boxes whose IoU sum gives an object's k; also the largest k.
        iou_cost: weight of -log IoU against the class cost.
        l1_epochs: last epochs that add the L1 loss.
    """

    paper: ClassVar[str] = "YOLOX: Exceeding YOLO Series in 2021, arXiv:2107.08430"
    quality: ClassVar[str] = "objectness"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "obj_loss", "l1_loss")
    quality_prior: ClassVar[float | None] = 0.01
    above_zero: ClassVar[tuple[str, ...]] = ("radius",)

    radius: float = 2.5
    topk: int = 10
    iou_cost: float = 3.0
    l1_epochs: int = 15
    box_gain: float = 5.0
    cls_gain: float = 1.0
    quality_gain: float = 1.0
    l1_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """Dynamic k; a point several objects take goes to the cheapest object."""
        batch, objects = targets.mask.shape
        points = len(grid.points)
        fg = torch.zeros(batch, points, dtype=torch.bool, device=grid.points.device)
        gt = torch.zeros(batch, points, dtype=torch.long, device=grid.points.device)
        if objects:
            for images in image_chunks(batch, objects, points):
                part = Targets(targets.labels[images], targets.bboxes[images], targets.mask[images])
                fg[images], gt[images] = self.match(preds.of(images), part, grid)
        quality = fg.float()
        return simple_assignment(
            fg,
            gt,
            cls_target=matched_iou(preds, targets, fg, gt),
            quality_target=quality,
            quality_mask=torch.ones_like(fg),
        )

    def match(self, preds: Preds, targets: Targets, grid: Grid) -> tuple[Tensor, Tensor]:
        """Foreground and object index, both (b, A), of some images."""
        image, point, proper = self.reachable(targets, grid)  # U points
        cost, overlap = self.costs(preds, targets, image, point, proper)  # (U, G)
        shape = (*targets.mask.shape, len(grid.points))  # (b, G, A)
        dense, dense_overlap = cost.new_full(shape, torch.inf), cost.new_zeros(shape)
        dense[image, :, point], dense_overlap[image, :, point] = cost, overlap
        topk = min(self.topk, shape[-1])
        wanted = dense_overlap.topk(topk).values.sum(-1).int().clamp(min=1)  # (b, G)
        cheap, column = dense.topk(topk, largest=False)
        taken = (torch.arange(topk, device=cost.device) < wanted.unsqueeze(-1)) & cheap.isfinite()
        taken = torch.zeros(shape, dtype=torch.bool, device=cost.device).scatter_(-1, column, taken)
        claims = taken.sum(1)  # (b, A)
        gt = taken.float().argmax(1)
        # as in the reference, a contested point goes to the object for which it is cheapest, claimant or not
        contested = claims[image, point] > 1
        gt[image[contested], point[contested]] = cost[contested].argmin(1)
        fg = claims > 0
        return fg, gt.where(fg, 0)

    def reachable(self, targets: Targets, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Points in any object's box or centre square: their image and index, (U,); and in which both, (U, G)."""
        real = targets.mask.unsqueeze(-1)
        inside = inside_mask(grid, targets.bboxes) & real
        central = center_mask(grid, targets.bboxes, self.radius) & real
        image, point = (inside | central).any(1).nonzero(as_tuple=True)
        return image, point, (inside & central)[image, :, point]

    def costs(
        self, preds: Preds, targets: Targets, image: Tensor, point: Tensor, proper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cost, infinite for padded objects, and IoU, 0 there: both (U, G)."""
        assert preds.quality is not None  # the criterion has checked it
        real, labels = targets.mask[image], targets.labels[image]
        some = Preds(preds.logits[image, point], preds.bboxes, preds.quality[image, point])
        # YOLOX takes the root of the joint score in the cost alone
        nothing = joint_log_scores(some, "sqrt_pq")[1].sum(-1, keepdim=True)  # (U, 1)
        log_s, log_rest = joint_log_scores(Preds(some.logits.gather(1, labels), some.bboxes, some.quality), "sqrt_pq")
        overlap = iou(preds.bboxes[image, point].unsqueeze(1), targets.bboxes[image]) * real
        cost = (log_rest - log_s) - nothing - self.iou_cost * (overlap + 1e-8).log() + OUTSIDE * ~proper
        return cost.masked_fill(~real, torch.inf), overlap

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Class BCE on positives, 1 - IoU^2, objectness BCE everywhere, L1 at the end; all over the positives."""

        def positive_bce(preds: Preds, target: Tensor) -> Tensor:
            loss = F.binary_cross_entropy_with_logits(preds.logits, target, reduction="none")
            return loss * assignment.fg.unsqueeze(-1)

        parts = hard_losses(preds, targets, grid, assignment, cls_loss=positive_bce, box_loss=iou_square_loss)
        late = moment.epoch >= moment.epochs - self.l1_epochs
        l1 = self.l1_loss(preds, targets, grid, assignment) * float(late)
        return {
            "box_loss": self.box_gain * parts["box"],
            "cls_loss": self.cls_gain * parts["cls"],
            "obj_loss": self.quality_gain * parts["quality"],
            "l1_loss": self.l1_gain * l1,
        }

    def l1_loss(self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment) -> Tensor:
        """Absolute error of the box sides in strides, summed over positives and sides, over the positives."""
        image, point = assignment.fg.nonzero(as_tuple=True)
        pred = preds.bboxes[image, point]
        truth = targets.bboxes[image, assignment.gt[image, point]] if len(image) else pred.detach()
        error = (pred - truth).abs() / grid.strides[point, None]
        return error.sum() / rank_mean(assignment.fg.sum().float())
