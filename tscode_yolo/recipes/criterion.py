"""The criterion the host calls: one loop for all recipes, and its form for end-to-end heads.

The host's contract (ultralytics/utils/loss.py, engine/trainer.py): a callable of (preds, batch) that returns the loss
terms times the batch size, and the detached terms for the progress bar and results.csv; ``update()`` after each epoch.
Since the terms became a dictionary their names are the recipe's; hosts of before take a vector.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import LOGGER
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.torch_utils import autocast

from tscode_yolo.recipes.contract import Grid, Moment, Preds, Recipe, RecipeState, Targets
from tscode_yolo.recipes.defcn import twins
from tscode_yolo.recipes.geometry import make_grid

# before 8.4.104 the host takes the detached terms as a vector, since then as a dict: its own annotation says which
NAMED_ITEMS = "dict[str, torch.Tensor]]" in str(inspect.signature(v8DetectionLoss.loss).return_annotation)


def decode(preds: dict[str, Any], grid: Grid) -> Preds:
    """Read the head's training output: float32, one row an anchor point, boxes in pixels.

    Args:
        preds: "boxes" (B, 4 * R, A), "scores" (B, K, A), and "quality" (B, 1, A) if the recipe has one.
        grid: anchor points.
    """
    boxes = preds["boxes"].float()
    batch, channels, points = boxes.shape
    reg_max = channels // 4
    bins = None
    if reg_max > 1:
        bins = boxes.view(batch, 4, reg_max, points).permute(0, 3, 1, 2)  # (B, A, 4, R)
        distance = bins.softmax(-1) @ torch.arange(reg_max, device=boxes.device, dtype=boxes.dtype)
    else:
        distance = boxes.transpose(1, 2).clamp(min=0)  # a point lies in its box, as in all the papers
    distance = distance * grid.strides[:, None]  # (B, A, 4) ltrb in pixels
    bboxes = torch.cat((grid.points - distance[..., :2], grid.points + distance[..., 2:]), -1)
    quality = preds.get("quality")
    quality = None if quality is None else quality.float().squeeze(1)
    return Preds(preds["scores"].float().transpose(1, 2), bboxes, quality, bins)


def pad_targets(batch: dict[str, Tensor], images: int, height: float, width: float, device: torch.device) -> Targets:
    """Pad the host's flat labels, normalised xywh, to (images, G) boxes in pixels.

    Boxes without area are dropped: no point can learn them.
    """
    index = batch["batch_idx"].to(device).view(-1).long()
    labels = batch["cls"].to(device).view(-1).long()
    scale = torch.tensor([width, height, width, height], device=device)
    bboxes = xywh2xyxy(batch["bboxes"].to(device).float().view(-1, 4) * scale)
    solid = (bboxes[:, 2:] > bboxes[:, :2]).all(1)
    index, labels, bboxes = index[solid], labels[solid], bboxes[solid]
    order = index.argsort(stable=True)
    index, labels, bboxes = index[order], labels[order], bboxes[order]
    counts = index.bincount(minlength=images)
    slot = torch.arange(len(index), device=device) - (counts.cumsum(0) - counts)[index]
    most = int(counts.max()) if len(index) else 0
    targets = Targets(
        torch.zeros(images, most, dtype=torch.long, device=device),
        torch.zeros(images, most, 4, device=device),
        torch.arange(most, device=device) < counts[:, None],
    )
    targets.labels[index, slot] = labels
    targets.bboxes[index, slot] = bboxes
    return targets


class RecipeCriterion:
    """Assignment and losses of a recipe behind the host's criterion interface.

    Args:
        model: a DetectionModel whose last layer has ``nc``, ``reg_max``, ``stride`` and ``recipe_state``.
        recipe: what to train with.
        counts_epochs: False for the second of two criteria on one model.

    Raises:
        TypeError: the head carries no recipe state.
    """

    def __init__(self, model: Any, recipe: Recipe, counts_epochs: bool = True):
        self.head = model.model[-1]
        self.hyp = model.args
        self.recipe = recipe
        self.counts_epochs = counts_epochs
        self.loss_names = recipe.loss_names(bins=self.head.reg_max > 1)
        if not isinstance(getattr(self.head, "recipe_state", None), RecipeState):
            raise TypeError(
                f"expected a RecipeState as recipe_state of {type(self.head).__name__}, got "
                f"{type(getattr(self.head, 'recipe_state', None)).__name__}: build the head with this recipe"
            )
        if counts_epochs and self.head.training and not getattr(self.hyp, "resume", False):
            self.state.restart()  # a new training; a fine-tuned checkpoint brings counts of an old one
        if getattr(model, "class_weights", None) is not None:
            LOGGER.warning(f"class weights (cls_pw) are not part of recipe {type(recipe).__name__} and are ignored")

    @property
    def state(self) -> RecipeState:
        """The head's recipe state."""
        return self.head.recipe_state

    def parse_output(self, preds: Any) -> dict[str, Any]:
        """Take the training output out of an (inference, training) pair."""
        return preds[1] if isinstance(preds, tuple) else preds

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Loss terms times the batch size, and the detached terms."""
        return self.loss(self.parse_output(preds), batch)

    def loss(self, preds: dict[str, Any], batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The same, for parsed predictions; this is the name the host's ``E2ELoss`` calls."""
        terms = self.terms(preds, batch)
        vector = torch.stack(list(terms.values()))
        items = {name: term.detach() for name, term in terms.items()} if NAMED_ITEMS else vector.detach()
        return vector * preds["scores"].shape[0], items

    def terms(self, preds: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses by name: decode, assign without gradient, sum."""
        if self.recipe.quality != "none" and "quality" not in preds:
            raise ValueError(
                f"recipe {type(self.recipe).__name__} expected preds['quality'] ({self.recipe.quality}), got only "
                f"{sorted(preds)}: the head must build that branch"
            )
        device = preds["scores"].device
        shapes = [feat.shape[-2:] for feat in preds["feats"]]
        strides = [float(stride) for stride in self.head.stride]
        grid = make_grid(shapes, strides, device)
        height, width = shapes[0][0] * strides[0], shapes[0][1] * strides[0]
        targets = pad_targets(batch, preds["scores"].shape[0], height, width, device)
        moment = Moment(self.state, int(self.hyp.epochs), self.head.training and torch.is_grad_enabled())
        with autocast(enabled=False, device=device.type):
            decoded = decode(preds, grid)
            with torch.no_grad():
                assignment = self.recipe.assign(decoded.detach(), targets, grid, moment)
            return self.recipe.losses(decoded, targets, grid, assignment, moment)

    def update(self) -> None:
        """Count an epoch; the host calls this after each."""
        if self.counts_epochs:
            self.state.epoch += 1


class TwinCriterion(E2ELoss):
    """The criterion of an end-to-end head: the recipe for its one-to-many branch, POTO for the one-to-one twin.

    The host's schedule shifts the weight from the first to the second over the training. Only DeFCN has a one-to-one
    form, so the twin is always trained with DeFCN's matching and losses, on the joint score of the recipe. DeFCN
    itself leaves its one-to-many branch the auxiliary labels.

    Args:
        model: a DetectionModel with a one-to-one twin.
        recipe: what to train with.
    """

    def __init__(self, model: Any, recipe: Recipe):
        many, one = twins(recipe)
        criteria = iter((RecipeCriterion(model, many), RecipeCriterion(model, one, counts_epochs=False)))
        super().__init__(model, lambda *_, **__: next(criteria))
        self.loss_names = loss_names(model.model[-1], recipe)
        self.updates = self.one2many.state.finished
        self.o2m = self.decay(self.updates)
        self.o2o = self.total - self.o2m

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Loss terms of both branches, scheduled, times the batch size; and the detached terms, not scheduled."""
        preds = self.one2many.parse_output(preds)
        many = torch.stack(list(self.one2many.terms(preds["one2many"], batch).values()))
        one = torch.stack(list(self.one2one.terms(preds["one2one"], batch).values()))
        items = torch.cat((many, one)).detach()
        vector = torch.cat((many * self.o2m, one * self.o2o)) * preds["one2many"]["scores"].shape[0]
        return vector, dict(zip(self.loss_names, items, strict=True)) if NAMED_ITEMS else items

    def update(self) -> None:
        """Move the schedule on by an epoch; a resuming host sets ``updates`` first."""
        super().update()
        self.one2many.state.epoch.fill_(self.updates)


def loss_names(head: Any, recipe: Recipe) -> tuple[str, ...]:
    """The names users see when this head is trained with this recipe."""
    bins = head.reg_max > 1
    if getattr(head, "one2one_cv2", None) is None:
        return recipe.loss_names(bins)
    many, one = twins(recipe)
    return (*many.loss_names(bins), *(f"o2o{name}" for name in one.loss_names(bins)))


def make_criterion(model: Any, recipe: Recipe) -> RecipeCriterion | TwinCriterion:
    """The criterion for a model with or without a one-to-one twin; what ``init_criterion`` should return."""
    twin = getattr(model.model[-1], "one2one_cv2", None) is not None
    return TwinCriterion(model, recipe) if twin else RecipeCriterion(model, recipe)
