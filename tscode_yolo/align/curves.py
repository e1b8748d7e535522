"""Training curves of two runs from their ``results.csv``: the paper's Figure 5 (classification loss over epochs)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from ultralytics.utils import LOGGER

from tscode_yolo.align.figures import MODEL_COLOURS

PARTS = {"train": ("training", "-"), "val": ("validation", "--")}
LOSSES = (("cls_loss",), ("pos_loss", "neg_loss"))  # the recipes autoassign and dw have no cls_loss, but two halves


@dataclass(frozen=True, slots=True)
class Run:
    """The classification loss of one training.

    Attributes:
        loss: what was read, as the file calls it: ``cls_loss``, or ``pos_loss + neg_loss`` (their sum).
        epoch: (E,) as written.
        train: (E,) the loss in training; empty where the file has none.
        val: (E,) the loss in validation; empty where the file has none.
    """

    loss: str
    epoch: list[float]
    train: list[float]
    val: list[float]


def read_results(path: str | Path) -> Run | None:
    """Read the classification loss of one training.

    Args:
        path: ``results.csv``, or the folder of the run.

    Returns:
        The loss by epoch, or None, after a warning, for a training that has no such loss.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no results.csv, has no rows, or something else than a number in a column that is read.
    """
    file = Path(path) / "results.csv" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"expected the results.csv of a training, got {file}, which does not exist")
    rows = _rows(file)
    for names in LOSSES:
        parts = [part for part in PARTS if all(f"{part}/{name}" in rows[0] for name in names)]
        if parts:
            sums = {part: _sum(rows, [f"{part}/{name}" for name in names], file) for part in parts}
            return Run(" + ".join(names), _sum(rows, ["epoch"], file), sums.get("train", []), sums.get("val", []))
    there = ", ".join(c for c in rows[0] if c.startswith("train/"))
    LOGGER.warning(
        f"{file} has no classification loss (cls_loss, or pos_loss and neg_loss), only {there}; its curve is left out"
    )
    return None


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a results.csv; ValueError if it is none."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = [
                {k.strip(): v for k, v in row.items() if k} for row in csv.DictReader(stream)
            ]  # old hosts pad names
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"expected the results.csv of a training, got {file}, which is no CSV text ({error})"
        ) from None
    if not rows:
        raise ValueError(f"expected at least one epoch in {file}, got none")
    if "epoch" not in rows[0] or not any(c.startswith("train/") for c in rows[0]):
        found = ", ".join(list(rows[0])[:4])
        raise ValueError(
            f"expected the results.csv of a training, with the column epoch and losses as train/..., got {file}, "
            f"which begins with {found}"
        )
    return rows


def _sum(rows: list[dict[str, str]], columns: list[str], file: Path) -> list[float]:
    """The sum of some columns, row by row."""
    return [sum(_value(row[c], c, n, file) for c in columns) for n, row in enumerate(rows, 2)]


def _value(text: str | None, column: str, line: int, file: Path) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{file}:{line}: expected a number in {column}, got {text or 'nothing'!r}") from None


def measured(epochs: list[float], losses: list[float]) -> tuple[list[float], list[float]]:
    """The epochs that were validated: in the others the host writes the last value again, or 0 before the first."""
    kept = [i for i, v in enumerate(losses) if v != (losses[i - 1] if i else 0.0)]
    return [epochs[i] for i in kept], [losses[i] for i in kept]


def plot_curves(runs: dict[str, Run]) -> Figure:
    """Plot classification loss over epochs.

    Args:
        runs: name -> :func:`read_results`, at most two.

    Returns:
        The figure: training solid, validation dashed; the loss is named where it is not the usual ``cls_loss``.
    """
    figure = Figure(figsize=(5.2, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, run), colour in zip(runs.items(), MODEL_COLOURS, strict=False):
        note = "" if run.loss == LOSSES[0][0] else f" ({run.loss})"
        for part, (label, style) in PARTS.items():
            losses = run.train if part == "train" else run.val
            points = measured(run.epoch, losses) if part == "val" else (run.epoch, losses)
            if losses:
                axes.plot(*points, style, color=colour, label=f"{name}: {label}{note}")
    axes.set(xlabel="epoch", ylabel="classification loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9ecef")
    axes.legend(frameon=False, fontsize=8)
    return figure
