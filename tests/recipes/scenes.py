"""Generated predictions and ground truth for the recipe tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Assignment, Grid, Moment, PairWeights, Preds, Recipe, Targets
from tscode_yolo.recipes.geometry import make_grid

YOLO = (8.0, 16.0, 32.0)  # P3-P5
PAPER = (8.0, 16.0, 32.0, 64.0, 128.0)  # P3-P7


@dataclass
class Scene:
    """Leaves of a prediction (all require gradients) over a grid, and ground truth."""

    grid: Grid
    logits: Tensor  # (B, A, K)
    distances: Tensor  # (B, A, 4) in strides
    quality: Tensor  # (B, A)
    bins: Tensor  # (B, A, 4, R)
    targets: Targets

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"logits": self.logits, "distances": self.distances, "quality": self.quality, "bins": self.bins}

    def preds(self) -> Preds:
        distance = self.distances * self.grid.strides[:, None]
        bboxes = torch.cat((self.grid.points - distance[..., :2], self.grid.points + distance[..., 2:]), -1)
        return Preds(self.logits, bboxes, self.quality, self.bins)

    def with_targets(self, targets: Targets) -> Scene:
        return Scene(self.grid, self.logits, self.distances, self.quality, self.bins, targets)


def make_grid_for(size: int, strides: tuple[float, ...] = YOLO) -> Grid:
    return make_grid([(max(1, int(size / s)), max(1, int(size / s))) for s in strides], strides)


def random_targets(counts: list[int], classes: int, size: int, seed: int = 0, pad: int = 0) -> Targets:
    """Boxes of 10 to 70 % of the image, as many in each image as ``counts`` says."""
    generator = torch.Generator().manual_seed(seed)
    most = max(counts) + pad
    wh = (torch.rand(len(counts), most, 2, generator=generator) * 0.6 + 0.1) * size
    xy = torch.rand(len(counts), most, 2, generator=generator) * (size - wh)
    mask = torch.arange(most) < torch.tensor(counts)[:, None]
    labels = torch.randint(0, classes, (len(counts), most), generator=generator)
    return Targets(labels * mask, torch.cat((xy, xy + wh), -1) * mask[..., None], mask)


def random_scene(
    counts: list[int], *, classes: int = 3, size: int = 64, strides: tuple[float, ...] = YOLO, seed: int = 0
) -> Scene:
    generator = torch.Generator().manual_seed(seed + 100)
    grid = make_grid_for(size, strides)
    shape = (len(counts), len(grid.points))
    leaves = (
        torch.randn(*shape, classes, generator=generator) - 1.5,
        torch.rand(*shape, 4, generator=generator) * 3 + 0.2,
        torch.randn(*shape, generator=generator),
        torch.randn(*shape, 4, 16, generator=generator),
    )
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    return Scene(grid, *leaves, random_targets(counts, classes, size, seed))


def moment(recipe: Recipe, classes: int = 3, levels: int = 3, epoch: int = 10, epochs: int = 20) -> Moment:
    """Past TOOD's warm-up, within SimOTA's L1 epochs."""
    state = recipe.state(classes, levels)
    state.epoch.fill_(epoch)
    return Moment(state, epochs, learning=True)


def run(recipe: Recipe, scene: Scene, when: Moment | None = None):
    """Assign and sum, as the criterion does: (assignment, losses)."""
    when = when or moment(recipe, scene.logits.shape[-1], len(scene.grid.shapes))
    preds = scene.preds()
    with torch.no_grad():
        assignment = recipe.assign(preds.detach(), scene.targets, scene.grid, when)
    return assignment, recipe.losses(preds, scene.targets, scene.grid, assignment, when)


def positives(assignment) -> list[dict[int, int]]:
    """Per image: point -> object of the (first) hard assignment."""
    if isinstance(assignment, tuple):
        assignment = assignment[0]
    assert isinstance(assignment, Assignment)
    return [
        {int(i): int(gt[i]) for i in fg.nonzero().squeeze(-1)}
        for fg, gt in zip(assignment.fg, assignment.gt, strict=True)
    ]


def triples(assignment) -> set[tuple[int, int, int]]:
    """(image, object, point) of all positives, hard or soft."""
    if isinstance(assignment, PairWeights):
        return set(zip(*(part.tolist() for part in assignment.pairs), strict=True))
    return {(b, g, i) for b, found in enumerate(positives(assignment)) for i, g in found.items()}
