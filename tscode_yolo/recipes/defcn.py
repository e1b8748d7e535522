"""DeFCN: exactly one point an object (POTO), a 3-D max filter to silence its neighbours, and an auxiliary loss.

Paper: End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544. Read in the authors'
Megvii-BaseDetection/DeFCN, playground/detection/coco/poto.res50.fpn.coco.800size.3x_ms.3dmf.aux. The filter is the
head's quality branch "filter3d".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tscode_yolo.recipes.atss import adaptive_positives
from tscode_yolo.recipes.contract import Assignment, Grid, Moment, Pairs, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import image_chunks, inside_mask, object_iou, resolve
from tscode_yolo.recipes.losses import class_loss, hard_losses, object_scores, score_focal_loss, simple_assignment


def hungarian(quality: Tensor) -> tuple[Tensor, Tensor]:
    """Match rows and columns one to one so that the summed quality is largest.

    A row's match is always among its n best columns, n the number of rows: the others can hold only n - 1 of them. So
    the problem handed to scipy is small.

    Args:
        quality: (n, A) of objects and points.

    Returns:
        Row and column indices of the min(n, A) matches.
    """
    columns = quality.topk(min(quality.shape)).indices.unique()
    rows, chosen = linear_sum_assignment(quality[:, columns].cpu().numpy(), maximize=True)
    device = quality.device
    return torch.as_tensor(rows, device=device), columns[torch.as_tensor(chosen, device=device)]


def greedy(quality: Tensor) -> tuple[Tensor, Tensor]:
    """Give each row its best column; of a column several rows want, the best row keeps it and the others go empty."""
    value, column = quality.max(1)
    best = value.new_full((quality.shape[1],), -torch.inf).scatter_reduce_(0, column, value, "amax")
    rows = (value == best[column]).nonzero().squeeze(-1)
    return rows, column[rows]


def _check_matcher(matcher: str) -> None:
    if matcher not in ("hungarian", "greedy"):
        raise ValueError(f'expected matcher "hungarian" or "greedy", got {matcher!r}')


@dataclass(frozen=True)
class OneToOne(Recipe):
    """POTO: quality s^(1-alpha) * IoU^alpha decides which one point learns an object; focal loss on the score s.

    Also trains the one-to-one twin of an end-to-end head, whatever the recipe of the other branch.

    Differs from the reference: an object without a point in its centre square (smaller than a stride) takes the nearest
    free point, not an arbitrary one.

    Attributes:
        rule: score rule of the branch, one of "p", "pq" and "sqrt_pq".
        alpha: exponent of the IoU.
        radius: half side of the centre square, in strides.
        matcher: "hungarian" (optimal, scipy) or "greedy" (no copy to the CPU; may leave objects out).
    """

    paper: ClassVar[str] = "End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("radius",)
    at_most_one: ClassVar[tuple[str, ...]] = ("alpha",)

    rule: str = "p"
    alpha: float = 0.8
    radius: float = 1.5
    matcher: str = "hungarian"
    box_gain: float = 2.0
    cls_gain: float = 1.0

    def __post_init__(self) -> None:
        _check_matcher(self.matcher)

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """One point for each object."""
        batch, objects = targets.mask.shape
        match = hungarian if self.matcher == "hungarian" else greedy
        found = [Pairs(*targets.labels.new_zeros(3, 0))]
        for images in image_chunks(batch, objects, len(grid.points)):
            quality = self.quality_matrix(preds.of(images), targets, images, grid)
            for offset, rows in enumerate(quality):
                gts = targets.mask[images.start + offset].nonzero().squeeze(-1)
                if len(gts):
                    row, point = match(rows[gts])
                    found.append(Pairs(torch.full_like(point, images.start + offset), gts[row], point))
        pairs = Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        fg, gt = resolve(pairs, preds.logits.new_zeros(len(pairs.image)), batch, len(grid.points))
        return simple_assignment(fg, gt)

    def quality_matrix(self, preds: Preds, targets: Targets, images: slice, grid: Grid) -> Tensor:
        """(b, G, A) matching quality in [0, 1]; in [-2, -1] outside the centre square, falling with distance."""
        bboxes = targets.bboxes[images]
        score = object_scores(preds, targets.labels[images], self.rule)
        quality = score ** (1 - self.alpha) * object_iou(preds.bboxes, bboxes) ** self.alpha
        distance = torch.cdist((bboxes[..., :2] + bboxes[..., 2:]) / 2, grid.points.expand(len(bboxes), -1, -1))
        reach = distance.amax().clamp(min=1.0) if distance.numel() else 1.0
        return quality.where(inside_mask(grid, bboxes, radius=self.radius), -1 - distance / reach)

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal loss on the joint score and GIoU, over the number of matches."""
        parts = hard_losses(preds, targets, grid, assignment, cls_loss=partial(score_focal_loss, score=self.rule))
        return {"box_loss": self.box_gain * parts["box"], "cls_loss": self.cls_gain * parts["cls"]}


@dataclass(frozen=True)
class OneToMany(Recipe):
    """The auxiliary labels of DeFCN: several points an object, by p^(1-alpha) * IoU^alpha, without the filter.

    DeFCN takes its class loss alone, on the branch that is matched one to one; in an end-to-end head this trains the
    one-to-many branch, boxes included.

    Attributes:
        alpha: exponent of the IoU.
        topk: candidates per object and level.
    """

    paper: ClassVar[str] = OneToOne.paper
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss")
    at_most_one: ClassVar[tuple[str, ...]] = ("alpha",)

    alpha: float = 0.8
    topk: int = 9
    box_gain: float = 2.0
    cls_gain: float = 1.0

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Assignment:
        """The best points of each level, cut at mean + deviation and at the box."""
        chosen, merits = [], []
        for images in image_chunks(len(targets.mask), targets.mask.shape[1], len(grid.points)):
            part = preds.of(images)
            merit = object_scores(part, targets.labels[images], "p") ** (1 - self.alpha)
            merit *= object_iou(part.bboxes, targets.bboxes[images]) ** self.alpha  # (b, G, A)
            first, candidates = 0, []
            for level in merit.split(grid.sizes, -1):
                candidates.append(level.topk(min(self.topk, level.shape[-1])).indices + first)
                first += level.shape[-1]
            chosen.append(torch.cat(candidates, -1))
            merits.append(merit.gather(-1, chosen[-1]))
        fg, gt = adaptive_positives(torch.cat(chosen), torch.cat(merits), grid, targets, margin=0.0)
        return simple_assignment(fg, gt)

    def losses(
        self, preds: Preds, targets: Targets, grid: Grid, assignment: Assignment, moment: Moment
    ) -> dict[str, Tensor]:
        """Focal loss on the class logits and GIoU, over the number of positives."""
        parts = hard_losses(preds, targets, grid, assignment)
        return {"box_loss": self.box_gain * parts["box"], "cls_loss": self.cls_gain * parts["cls"]}


@dataclass(frozen=True)
class DeFCN(Recipe):
    """POTO on the filtered score, plus one-to-many supervision of the bare class scores.

    Attributes:
        alpha: exponent of the IoU in both qualities.
        radius: half side of the centre square, in strides.
        matcher: "hungarian" or "greedy", see ``OneToOne``.
        aux_topk: auxiliary candidates per object and level.
    """

    paper: ClassVar[str] = OneToOne.paper
    quality: ClassVar[str] = "filter3d"
    score: ClassVar[str] = "pq"
    names: ClassVar[tuple[str, ...]] = ("box_loss", "cls_loss", "aux_loss")
    above_zero: ClassVar[tuple[str, ...]] = ("radius",)
    at_most_one: ClassVar[tuple[str, ...]] = ("alpha",)

    alpha: float = 0.8
    radius: float = 1.5
    matcher: str = "hungarian"
    aux_topk: int = 9
    box_gain: float = 2.0
    cls_gain: float = 1.0
    aux_gain: float = 1.0

    def __post_init__(self) -> None:
        _check_matcher(self.matcher)

    @property
    def main(self) -> OneToOne:
        """The one-to-one part."""
        return OneToOne(self.score, self.alpha, self.radius, self.matcher, self.box_gain, self.cls_gain)

    @property
    def auxiliary(self) -> OneToMany:
        """The one-to-many part."""
        return OneToMany(self.alpha, self.aux_topk, self.box_gain, self.aux_gain)

    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> tuple[Assignment, Assignment]:
        """The matched points, and the auxiliary positives for the class scores without the filter."""
        main = self.main.assign(preds, targets, grid, moment)
        return main, self.auxiliary.assign(preds, targets, grid, moment)

    def losses(self, preds: Preds, targets: Targets, grid: Grid, assignment: Any, moment: Moment) -> dict[str, Tensor]:
        """The one-to-one losses, and the focal loss of the auxiliary labels on the class logits."""
        main, aux = assignment
        parts = self.main.losses(preds, targets, grid, main, moment)
        return {**parts, "aux_loss": self.aux_gain * class_loss(preds, targets, aux)}


def twins(recipe: Recipe) -> tuple[Recipe, OneToOne]:
    """What trains the one-to-many and the one-to-one branch of an end-to-end head under ``recipe``."""
    if isinstance(recipe, DeFCN):
        return recipe.auxiliary, recipe.main
    return recipe, OneToOne(rule=recipe.score)
