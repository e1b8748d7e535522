"""OTA: objects and background supply labels, points demand one each; optimal transport delivers them.

Paper: OTA: Optimal Transport Assignment for Object Detection, arXiv:2103.14259, Algorithm 1. Parameters as in
Megvii-BaseDetection/OTA, playground/detection/coco/ota.res50.fpn.coco.800size.1x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Pairs, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import INSIDE_MARGIN, inside_pairs, pair_iou, resolve
from tscode_yolo.recipes.losses import hard_losses, matched_iou, simple_assignment

EPS = 1e-8  # inside the logarithms of supply and demand, as in the reference


@dataclass(frozen=True)
class Problem:
    """Transport problems of a batch, with the entries that cost less than "never" only.

    A point outside an object's centre square costs 1e6 in the reference, which no plan survives, so such entries are
    left out; and points that no object can reach (idle) all get the same from the background, which alone serves them.

    Attributes:
        row, column: (N,) object, among R = B * G, and point, among the C reachable ones, of each entry.
        image: (C,) image of each reachable point.
        cost: (N,) cost of each entry.
        background: (C,) cost of the background at each reachable point.
        supply: (R,) labels each object supplies.
        rest: (B,) labels the background supplies.
        idle: (B,) points no object can reach.
    """

    row: Tensor
    column: Tensor
    image: Tensor
    cost: Tensor
    background: Tensor
    supply: Tensor
    rest: Tensor
    idle: Tensor


def log_sum(index: Tensor, values: Tensor, extra: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials of ``values`` by ``index``, and of ``extra``, one more for each index."""
    top = extra.scatter_reduce(0, index, values, "amax").clamp(min=torch.finfo(values.dtype).min)
    return top + ((extra - top).exp().index_add(0, index, (values - top[index]).exp())).log()


def transport(problem: Problem, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve the problems by Sinkhorn iterations in the log domain; demand is 1 at every point.

    Args:
        problem: the entries.
        epsilon: entropic regularisation.
        iterations: number of alternations.

    Returns:
        (N,) bool, True where the object sends the point a larger share of its best than the background does; and the
        logarithm of that share.
    """
    p, never = problem, -torch.inf
    kernel, floor = -p.cost / epsilon, -p.background / epsilon
    rows, rest = torch.full_like(p.supply, 1 / epsilon), torch.full_like(p.rest, 1 / epsilon)
    nothing = torch.full_like(rows, never)
    columns, idle = torch.zeros_like(floor), p.idle.log()
    for _ in range(iterations):
        columns = -log_sum(p.column, kernel + rows[p.row], floor + rest[p.image])
        idle = p.idle.log() - rest
        rows = (p.supply + EPS).log() - log_sum(p.row, kernel + columns[p.column], nothing)
        rest = (p.rest + EPS).log() - log_sum(p.image, floor + columns, idle)
    share = kernel + rows[p.row] + columns[p.column]
    share = share - nothing.scatter_reduce(0, p.row, share, "amax")[p.row]
    other = floor + rest[p.image] + columns
    each_idle = (idle + rest - p.idle.log()).where(p.idle > 0, never)  # what one idle point gets
    other = other - each_idle.scatter_reduce(0, p.image, other, "amax")[p.image]
    return share >= other[p.column], share


@dataclass(frozen=True)
class OTA(Recipe):
    """Every point goes to the row, object or background, that sends it most of what it sends anywhere.

    Differs from the reference: an object without a point in its centre square (smaller than a stride) gets none; there,
    the rounding of a cost of 1e6 picks one.

    Attributes:
        radius: half side of the centre square, in strides.
        reg_cost: weight of -log IoU against the class cost.
        topk: boxes whose IoU sum gives an object's supply.
        epsilon: entropic regularisation of the transport.
        iterations: Sinkhorn iterations.
    """

    paper: ClassVar[str] = "OTA: Optimal Transport Assignment for Object Detection, arXiv:2103.14259"
    quality: ClassVar[str] = "iou"
    score: ClassVar[str] = "sqrt_pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "iou_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("radius", "epsilon")

    radius: float = 2.5
    reg_cost: float = 1.5
    topk: int = 20
    epsilon: float = 0.1
    iterations: int = 50
    box_gain: float = 2.0
    cls_gain: float = 1.0
    quality_gain: float = 0.5

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """One transport problem an image, all solved together."""
        pairs = inside_pairs(grid, targets, margin=INSIDE_MARGIN, radius=self.radius)
        gets, share = transport(self.problem(preds, targets, pairs), self.epsilon, self.iterations)
        pairs = Pairs(*(part[gets] for part in pairs))
        fg, gt = resolve(pairs, share[gets], len(preds.logits), len(grid.points))
        return simple_assignment(fg, gt, quality_target=matched_iou(preds, targets, fg, gt))

    def problem(self, preds: Preds, targets: Targets, pairs: Pairs) -> Problem:
        """Costs, supplies and demands."""
        batch, points = preds.logits.shape[:2]
        keys, column = (pairs.image * points + pairs.point).unique(return_inverse=True)
        image = keys // points
        row = pairs.image * targets.mask.shape[1] + pairs.gt
        background = self.focal(preds.logits.flatten(0, 1)[keys], 0).sum(-1)  # of the target with no class
        logits = preds.logits[pairs.image, pairs.point, targets.labels[pairs.image, pairs.gt]]
        overlap = pair_iou(preds.bboxes, targets, pairs)
        cost = background[column] + self.focal(logits, 1) - self.focal(logits, 0)  # of the object's class
        cost = cost - self.reg_cost * overlap.clamp(min=torch.finfo(overlap.dtype).eps).log()
        supply = self.supply(row, overlap, targets.mask.numel())
        rest = points - supply.view(batch, -1).sum(1)
        idle = points - image.bincount(minlength=batch).to(supply.dtype)
        return Problem(row, column, image, cost, background, supply, rest.clamp(min=0), idle)

    def supply(self, row: Tensor, overlap: Tensor, rows: int) -> Tensor:
        """(R,) whole number below the summed IoU of each object's best boxes, at least 1; 0 without any point."""
        counts = row.bincount(minlength=rows)
        slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        table = overlap.new_zeros(rows, max(int(counts.max()), self.topk) if rows else self.topk)
        table[row, slot] = overlap
        return table.topk(self.topk).values.sum(-1).floor().clamp(min=1) * (counts > 0)

    @staticmethod
    def focal(logits: Tensor, target: int) -> Tensor:
        """Elementwise focal loss towards 0 or 1."""
        return sigmoid_focal_loss(logits, torch.full_like(logits, target))

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal, GIoU and IoU BCE, all over the number of positives."""
        parts = hard_losses(preds, targets, grid, assignment)
        return {
            "box_loss": self.box_gain * parts["box"],
            "cls_loss": self.cls_gain * parts["cls"],
            "iou_loss": self.quality_gain * parts["quality"],
        }
