"""Where predictors start: the biases that say where an object is before anything was learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BOX = 2.0  # strides: an object fits its level, so its sides are near; measured in docs/search.md
PRIOR = 0.01  # probability of a class at the start where a predictor serves all levels (focal loss, arXiv:1708.02002)
ADAPTIVE = {"adam", "adamw", "adamax", "nadam", "radam", "rmsprop"}  # move a parameter by about the rate in each step


def logit(probability: float) -> float:
    """The bias that starts a sigmoid at this probability."""
    return math.log(probability / (1 - probability))


def rare(classes: int, stride: float) -> float:
    """The host's bias of a class predictor: five objects of one of so many classes in an image of 640x640."""
    return math.log(5 / classes / (640 / stride) ** 2)


def box_start(distance: float | None, reg_max: int) -> Tensor:
    """Bias (4 reg_max,) of a box predictor that starts at this distance to each side, in strides; None: `BOX`.

    With DFL the bins start geometric, p_k ~ r^k with r = m / (1 + m), whose mean is m (nearly, the bins being finite).
    Infinity is the host's start: uniform, with a mean of (reg_max - 1) / 2; `BOX` strides where there are no bins.
    """
    distance = BOX if distance is None else distance
    if math.isinf(distance):
        return torch.full((4 * reg_max,), BOX)  # any constant is uniform bins
    if reg_max == 1:
        return torch.full((4,), distance)
    return (torch.arange(reg_max) * math.log(distance / (1 + distance))).repeat(4)


def undone_by(args: Any) -> str | None:
    """What to do if the warm-up of a training with the host's arguments undoes where predictors start, else None.

    The host takes the rate of biases from ``warmup_bias_lr`` down to ``lr0``. With SGD their first steps are as small
    as their gradients, with Adam and its like as large as the rate: measured in docs/head.md, "The warm-up of biases".
    ``optimizer=auto`` sets ``warmup_bias_lr`` to 0 by itself, and a training that is resumed goes on where it was. The
    host's newest releases leave the last epoch without warm-up, so that one epoch has none.
    """
    if str(args.optimizer).lower() not in ADAPTIVE or args.resume or args.warmup_bias_lr <= args.lr0:
        return None
    if min(args.warmup_epochs, args.epochs - 1) <= 0:
        return None
    return (
        f"optimizer={args.optimizer} with warmup_bias_lr={args.warmup_bias_lr} moves biases by about that much in each "
        "step of the warm-up, which undoes where this head's boxes and scores start and costs AP in a short training. "
        "Add warmup_bias_lr=0, as optimizer=auto does"
    )
