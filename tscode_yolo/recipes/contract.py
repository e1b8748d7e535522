"""What every recipe, the criterion and the head agree on: shapes, units, declarations and state.

A recipe is a published way to train a dense point detector: which anchor points answer for which object (assignment),
what is asked of them (losses) and how the score is formed (with or without a quality branch). This module holds the
nouns; ``geometry`` and ``losses`` hold the verbs; one file a paper holds a recipe; the host calls ``criterion``.

Shape letters: B images, A anchor points of all levels, G ground-truth boxes padded to the fullest image, K classes, L
levels, R bins of the box distribution, N (image, box, point) pairs. Boxes are xyxy in pixels of the network's input.

What the head has to know (head and recipes never import each other; they meet in the prediction dict)
    ``Recipe.quality``  the kind of the extra one-channel branch on the box tower, or ``"none"``. In training the head
                        returns its logits as ``preds["quality"]``, (B, 1, A), beside "boxes", "scores" and "feats".
                        ``"filter3d"`` is DeFCN's 3-D max filter; the others are one 3x3 convolution.
    ``Recipe.score``    how inference joins class probability p and quality probability q: "p", "pq" or "sqrt_pq".
    ``Recipe.cls_prior``, ``quality_prior``, ``box_prior``  the published initial class and quality probability, and box
                        distance in strides.
    ``Recipe.state``    makes the module that the head keeps as ``head.recipe_state``. It lives there so that the
                        optimiser, the moving average, the checkpoint and resume carry it: see ``RecipeState``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

QUALITIES = ("none", "centerness", "iou", "objectness", "filter3d", "tprob")
SCORES = ("p", "pq", "sqrt_pq")


@dataclass(frozen=True)
class Grid:
    """The anchor points of one input size, all levels in a row, finest first.

    Attributes:
        points: (A, 2) xy centres in pixels; cell centres, (column + 0.5) * stride, as everywhere in the host.
        strides: (A,) stride of each point's level, in pixels.
        shapes: (height, width) of each level, in cells.
        level_strides: stride of each level, in pixels.
    """

    points: Tensor
    strides: Tensor
    shapes: tuple[tuple[int, int], ...]
    level_strides: tuple[float, ...]

    @property
    def sizes(self) -> list[int]:
        """Anchor points of each level."""
        return [height * width for height, width in self.shapes]

    @cached_property
    def levels(self) -> Tensor:
        """(A,) index of each point's level."""
        sizes = torch.tensor(self.sizes, device=self.points.device)
        return torch.arange(len(self.shapes), device=self.points.device).repeat_interleave(sizes)


@dataclass(frozen=True)
class Preds:
    """Predictions in float32, decoded, one row an anchor point; gradients still attached.

    Attributes:
        logits: (B, A, K) class logits.
        bboxes: (B, A, 4) xyxy in pixels.
        quality: (B, A) logits of the quality branch, None where the recipe has none.
        bins: (B, A, 4, R) logits of the box distribution, None for heads that regress distances (R = 1).
    """

    logits: Tensor
    bboxes: Tensor
    quality: Tensor | None = None
    bins: Tensor | None = None

    def detach(self) -> Preds:
        """The same numbers, cut from the graph: what an assigner may look at."""
        parts = (self.logits, self.bboxes, self.quality, self.bins)
        return Preds(*(None if part is None else part.detach() for part in parts))  # type: ignore[arg-type]

    def of(self, images: slice) -> Preds:
        """The predictions of some images, without the bins."""
        return Preds(self.logits[images], self.bboxes[images], None if self.quality is None else self.quality[images])


@dataclass(frozen=True)
class Targets:
    """Ground truth padded to the fullest image of the batch.

    Attributes:
        labels: (B, G) class index; 0 in padded rows.
        bboxes: (B, G, 4) xyxy in pixels; zeros in padded rows.
        mask: (B, G) bool, False in padded rows.
    """

    labels: Tensor
    bboxes: Tensor
    mask: Tensor

    @property
    def count(self) -> Tensor:
        """Scalar float tensor: objects in the batch."""
        return self.mask.sum().float()


class Pairs(NamedTuple):
    """N pairs of an object and an anchor point, ordered by image, then object, then point."""

    image: Tensor
    gt: Tensor
    point: Tensor


@dataclass(frozen=True)
class Assignment:
    """Which point learns which object, with separate say for the two tasks. Everything here is cut from the graph.

    Attributes:
        fg: (B, A) bool, positives of the classification.
        gt: (B, A) object index of each positive; 0 elsewhere.
        box_fg, box_gt: the same for the box loss; DDOD parts the two, elsewhere they are ``fg`` and ``gt``.
        cls_target: (B, A) target in [0, 1] of a positive's class; None means 1.
        box_weight: (B, A) weight of a positive in the box loss; None means 1.
        quality_target: (B, A) target in [0, 1] of the quality branch; None where there is no such loss.
        quality_mask: (B, A) bool, points that learn it; None means ``box_fg``.
        point_weight: (A,) weight of every loss term at a point; None means 1.
        cls_norm, box_norm, quality_norm: scalars the sums are divided by; None means the number of positives
            (``fg`` for the classification, ``box_fg`` for the others). Averaged over ranks and floored by the loss.
    """

    fg: Tensor
    gt: Tensor
    box_fg: Tensor
    box_gt: Tensor
    cls_target: Tensor | None = None
    box_weight: Tensor | None = None
    quality_target: Tensor | None = None
    quality_mask: Tensor | None = None
    point_weight: Tensor | None = None
    cls_norm: Tensor | None = None
    box_norm: Tensor | None = None
    quality_norm: Tensor | None = None


@dataclass(frozen=True)
class PairWeights:
    """Soft assignment: every point inside an object learns it with a weight (AutoAssign, DW). Cut from the graph.

    Attributes:
        pairs: the N pairs with the point inside the object.
        positive: (N,) weight of the pair in the positive losses; None where the loss derives it with its gradient.
        negative: (N,) weight of the point as a negative of the object's class, in [0, 1]; 1 for all other entries.
    """

    pairs: Pairs
    positive: Tensor | None
    negative: Tensor


class RecipeState(nn.Module):
    """What a recipe learns or counts while it trains; the head owns it as ``head.recipe_state``.

    Checkpoints pickle this class by path: it is public API and must not be moved or renamed.

    The host keeps a float moving average of the model and saves that copy, in half precision, as the checkpoint. So:

    - Parameters (AutoAssign's centre prior) go the way of every weight: optimiser, moving average, checkpoint. They
      refuse the cast to half precision, so that what is resumed is what was saved. They are one-dimensional and named
      ``logit_scale_*``, because the host's ``build_optimizer`` orthogonalises parameters with two or four dimensions
      (MuSGD) and spares those with that name from weight decay.
    - Counters are int64 buffers, which the host's moving average leaves alone. A deep copy of the state therefore
      shares them on purpose: the average, made by deep copy, always holds the running value, and the checkpoint with
      it. Only a criterion whose head is in training mode writes them. Pickling or ``load_state_dict`` parts copies.

    ``epoch`` counts finished epochs. A resumed training goes on counting, a new one, from whatever weights, restarts.

    Args:
        parameters: initial values by name, each (n,).
        counters: lengths by name, each counted from zero.
    """

    epoch: Tensor

    def __init__(self, parameters: Mapping[str, Tensor] | None = None, counters: Mapping[str, int] | None = None):
        super().__init__()
        for name, value in (parameters or {}).items():
            self.register_parameter(f"logit_scale_{name}", nn.Parameter(value.detach().clone().float()))
        for name, length in {"epoch": 1, **(counters or {})}.items():
            self.register_buffer(name, torch.zeros(length, dtype=torch.int64))

    def parameter(self, name: str) -> Tensor:
        """The learnable vector ``name``."""
        return getattr(self, f"logit_scale_{name}")

    @property
    def finished(self) -> int:
        """Finished epochs; reads the device, so ask only if needed."""
        return int(self.epoch)

    def restart(self) -> None:
        """Set all counters to zero."""
        for counter in self.buffers():
            counter.zero_()

    def __deepcopy__(self, memo: dict[int, Any]) -> RecipeState:
        memo.update({id(counter): counter for counter in self.buffers()})
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({key: deepcopy(value, memo) for key, value in self.__dict__.items()})
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RecipeState:
        """Follow a move to another device, refuse a change of precision."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


@dataclass(frozen=True)
class Moment:
    """Where a training stands when the criterion is called.

    Attributes:
        state: the head's recipe state; counters may be written only if ``learning``.
        epochs: length of the training.
        learning: True in a training step, False while validating.
    """

    state: RecipeState
    epochs: int = 100
    learning: bool = False

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.state.finished


@dataclass(frozen=True)
class Recipe(ABC):
    """A published label assignment with its losses and score rule; the fields of a subclass are its hyper-parameters.

    Attributes:
        paper: title and arXiv number.
        quality: kind of the quality branch, one of ``QUALITIES``.
        score: score rule, one of ``SCORES``.
        cls_prior: initial class probability (class bias -log((1 - pi) / pi)).
        quality_prior: the same for the quality branch; None leaves it at one half.
        box_prior: initial distance to each side in strides; None keeps the head's.
        names: loss names users see in the progress bar, results.csv and plots.
        above_zero: hyper-parameters that zero would make meaningless (widths, temperatures); all may not be negative.
        at_most_one: hyper-parameters that share out a whole, as the exponents of a weighted geometric mean.
    """

    paper: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    quality: ClassVar[str] = "none"
    score: ClassVar[str] = "p"
    cls_prior: ClassVar[float] = 0.01
    quality_prior: ClassVar[float | None] = None
    box_prior: ClassVar[float | None] = None
    above_zero: ClassVar[tuple[str, ...]] = ()
    at_most_one: ClassVar[tuple[str, ...]] = ()

    def state(self, nc: int, nl: int) -> RecipeState:
        """Make the state the head keeps for this recipe.

        Args:
            nc: number of classes.
            nl: number of prediction levels.
        """
        return RecipeState()

    def loss_names(self, bins: bool) -> tuple[str, ...]:
        """The keys of ``losses``, in order, for a head that predicts ``bins`` or plain distances."""
        return self.names

    @abstractmethod
    def assign(self, preds: Preds, targets: Targets, grid: Grid, moment: Moment) -> Any:
        """Decide which points learn which objects, from detached predictions and without gradient.

        Returns:
            An ``Assignment``, or ``PairWeights`` from the soft recipes, or a pair of assignments from DeFCN: what
            ``losses`` of the same recipe expects.
        """

    @abstractmethod
    def losses(self, preds: Preds, targets: Targets, grid: Grid, assignment: Any, moment: Moment) -> dict[str, Tensor]:
        """Weighted scalar losses by the name users see: exactly ``loss_names``, whatever the batch."""
