"""The fit: a head learns to say what another says, for a number of minutes or of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tscode_yolo.graft.loss import PARTS, distance, hint
from tscode_yolo.graft.pair import Pair, Predictions

WARMUP = 0.05  # share of the budget in which the rate rises
CLIP = 10.0  # norm of the gradient, as in the host's trainer


@dataclass
class Budget:
    """How long to go on: whichever of the two is given ends it; `steps` makes a run repeatable."""

    minutes: float | None
    steps: int | None


@dataclass
class Course:
    """How a fit went.

    Attributes:
        steps: optimiser steps made.
        images: views of images seen.
        unreadable: files that could not be read, each time they came up.
        minutes: wall time.
        stopped: by the user, before the budget was used up.
        losses: the means of box, cls, dfl and hint over each tenth of the way.
    """

    steps: int = 0
    images: int = 0
    unreadable: int = 0
    minutes: float = 0.0
    stopped: bool = False
    losses: list[dict[str, float]] = field(default_factory=list)


def fit(
    pair: Pair, source: Iterator[tuple[Tensor, int]], budget: Budget, rate: float, device: torch.device, quiet: bool
) -> Course:
    """Fit the pair's student to its teacher, in place, and merge its bridges.

    AdamW; the rate rises over the first 5 % of the budget and falls to zero as a cosine. Mixed precision on CUDA.
    Ctrl-C ends the fit early, with what was learnt until then.

    Raises:
        FloatingPointError: the loss is no number any more, or a weight none in half precision.
    """
    optimizer = torch.optim.AdamW(_groups(pair.student), lr=rate, betas=(0.9, 0.999))
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    course, start, steps = Course(), time.monotonic(), list[dict[str, float]]()
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=quiet) as progress:
        bar = progress.add_task("", total=1.0, state="")
        try:
            while (done := _done(budget, course.steps, start)) < 1:
                images, unreadable = next(source)
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(done)
                steps.append(_step(pair, images.to(device), optimizer, scaler))
                course.steps, course.images = course.steps + 1, course.images + len(images)
                course.unreadable += unreadable
                if _done(budget, course.steps, start) >= 0.1 * (len(course.losses) + 1):
                    course.losses.append({n: sum(p[n] for p in steps) / len(steps) for n in PARTS})
                    steps = []
                losses = ", ".join(f"{n} {v:.3f}" for n, v in (course.losses[-1] if course.losses else {}).items())
                progress.update(bar, completed=done, state=f"step {course.steps}  {losses}")
        except KeyboardInterrupt:
            course.stopped = True
    pair.merge()
    if not all(bool(p.half().isfinite().all()) for p in pair.student.parameters()):  # as checkpoints are stored
        raise FloatingPointError(f"weights grew beyond what a checkpoint can hold; lower lr={rate:.2g}")
    course.minutes = (time.monotonic() - start) / 60
    return course


def _step(
    pair: Pair, images: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, float]:
    """One optimiser step on a batch; the parts of its loss, over all branches."""
    with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
        branches = pair.predict(images)
    parts = [_parts(branch, pair.student.reg_max) for branch in branches]
    loss = torch.stack([v for p in parts for v in p.values()]).sum()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}; lower lr={optimizer.param_groups[0]['lr']:.2g}")
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(pair.student.parameters(), CLIP)
    scaler.step(optimizer)
    scaler.update()
    return {name: sum(p[name].item() for p in parts) for name in PARTS}


def _parts(branch: dict[str, Predictions], reg_max: int) -> dict[str, Tensor]:
    """The parts of the loss in one branch."""
    teacher, student = ({task: getattr(s, side) for task, s in branch.items()} for side in ("teacher", "student"))
    hints = [hint(s.teacher_features, s.student_features) for s in branch.values()]
    return {**distance(teacher, student, reg_max), "hint": torch.stack(hints).sum()}


def _done(budget: Budget, steps: int, start: float) -> float:
    """How much of the budget is used up, 0 to 1 or more."""
    shares = [steps / budget.steps] if budget.steps else []
    shares += [(time.monotonic() - start) / (60 * budget.minutes)] if budget.minutes else []
    return max(shares)


def _schedule(done: float) -> float:
    """Factor on the learning rate after this share of the budget."""
    return min(1.0, (done + 0.001) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _groups(head: nn.Module) -> list[dict[str, object]]:
    """Weights of convs decay; norms and biases do not."""
    parameters = [p for p in head.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
