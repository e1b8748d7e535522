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
from tscode_yolo.recipes.geometry import INSIDE_MARGIN, inside_pairs, iou, resolve
from tscode_yolo.recipes.losses import hard_losses, matched_iou, simple_assignment

OUTSIDE = 1e6  # cost of a point outside the box or its centre square


def transport(cost: Tensor, supply: Tensor, idle: int, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn iterations in the log domain; demand is 1 at every point.

    Points that no object can reach all behave alike: the last row, the background, serves them whatever happens. They
    enter as one column of demand ``idle``, which gives the same plan at a fraction of the work.

    Args:
        cost: (G + 1, V) cost of each object, then of the background, at the V reachable points.
        supply: (G + 1,) labels each row supplies.
        idle: number of points no object can reach.
        epsilon: entropic regularisation.
        iterations: number of alternations.

    Returns:
        (G + 1, V) logarithm of the plan, each row scaled so that its largest entry (idle points included) is 1.
    """
    kernel = -cost / epsilon
    if idle:
        column = kernel.new_full((len(cost), 1), -OUTSIDE / epsilon)
        column[-1] = 0
        kernel = torch.cat((kernel, column), 1)
    demand = kernel.new_ones(kernel.shape[1])
    if idle:
        demand[-1] = idle
    log_demand, log_supply = (demand + 1e-8).log(), (supply + 1e-8).log()
    rows = kernel.new_full((len(cost),), 1 / epsilon)
    columns = torch.zeros_like(demand)
    for _ in range(iterations):
        columns = log_demand - (kernel + rows[:, None]).logsumexp(0)
        rows = log_supply - (kernel + columns).logsumexp(1)
    plan = kernel + rows[:, None] + columns
    if idle:
        plan[:, -1] -= log_demand[-1]  # what one idle point gets
    return (plan - plan.amax(1, keepdim=True))[:, : cost.shape[1]]


@dataclass(frozen=True)
class OTA(Recipe):
    """Every point goes to the row, object or background, that sends it most of what it sends anywhere.

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

    radius: float = 2.5
    reg_cost: float = 1.5
    topk: int = 20
    epsilon: float = 0.1
    iterations: int = 50
    box_gain: float = 2.0
    cls_gain: float = 1.0
    quality_gain: float = 0.5

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """One transport problem an image, over the points that some object can reach."""
        reach = inside_pairs(grid, targets, margin=INSIDE_MARGIN, radius=self.radius)
        found = [Pairs(*targets.labels.new_zeros(3, 0))]
        for image, mask in enumerate(targets.mask):
            gts = mask.nonzero().squeeze(-1)
            mine = reach.image == image
            points, column = reach.point[mine].unique(return_inverse=True)
            if len(points) == 0:
                continue
            valid = torch.zeros(targets.mask.shape[1], len(points), dtype=torch.bool, device=points.device)
            valid[reach.gt[mine], column] = True
            row = self.match(preds, targets, image, gts, points, valid[gts])
            fg = row < len(gts)
            found.append(Pairs(torch.full_like(points[fg], image), gts[row[fg]], points[fg]))
        pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        no_merit = preds.logits.new_zeros(len(pairs.image))
        fg, gt = resolve(pairs, no_merit, len(preds.logits), len(grid.points))
        return simple_assignment(fg, gt, quality_target=matched_iou(preds, targets, fg, gt))

    def match(self, preds: Preds, targets: Targets, image: int, gts: Tensor, points: Tensor, valid: Tensor) -> Tensor:
        """(V,) row each reachable point goes to: an index into ``gts``, or ``len(gts)`` for the background."""
        logits, labels = preds.logits[image, points], targets.labels[image, gts]
        overlap = iou(targets.bboxes[image, gts, None], preds.bboxes[image, points])  # (G, V)
        off = sigmoid_focal_loss(logits, torch.zeros_like(logits))
        background = off.sum(-1)  # (V,)
        on = sigmoid_focal_loss(logits[:, labels], torch.ones_like(logits[:, labels]))
        cost = background + (on - off[:, labels]).T  # (G, V) focal loss of the one-hot target, summed over classes
        cost = cost - self.reg_cost * overlap.clamp(min=torch.finfo(torch.float32).eps).log() + OUTSIDE * ~valid
        best = (overlap * valid).topk(min(self.topk, len(points))).values
        wanted = best.sum(-1).int().clamp(min=1)
        total = preds.logits.shape[1]
        supply = torch.cat((wanted, (total - wanted.sum(0, keepdim=True)).clamp(min=0))).float()
        plan = transport(
            torch.cat((cost, background[None])), supply, total - len(points), self.epsilon, self.iterations
        )
        return plan.argmax(0)

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
