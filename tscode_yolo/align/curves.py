"""Training curves of two runs from their ``results.csv``: the paper's Figure 5 (classification loss over epochs)."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

from .figures import MODEL_COLOURS

COLUMNS = {"train/cls_loss": "training", "val/cls_loss": "validation"}


def read_results(path: str | Path) -> dict[str, list[float]]:
    """Read the classification losses of one training.

    Args:
        path: ``results.csv``, or the folder of the run.

    Returns:
        ``epoch``, ``train/cls_loss`` and ``val/cls_loss``, one value an epoch.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no rows or lacks a column.
    """
    file = Path(path) / "results.csv" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"expected the results.csv of a training, got {file}, which does not exist")
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
    missing = [c for c in ("epoch", *COLUMNS) if c not in rows[0]]
    if missing:
        found = ", ".join(list(rows[0])[:4])
        raise ValueError(
            f"expected the results.csv of a detection training, got {file} without the columns {', '.join(missing)}; "
            f"it begins with {found}"
        )
    return {c: [_value(row[c], c, n, file) for n, row in enumerate(rows, 2)] for c in ("epoch", *COLUMNS)}


def _value(text: str | None, column: str, line: int, file: Path) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{file}:{line}: expected a number in {column}, got {text or 'nothing'!r}") from None


def measured(epochs: list[float], losses: list[float]) -> tuple[list[float], list[float]]:
    """The epochs that were validated: in the others the host writes the last value again, or 0 before the first."""
    kept = [i for i, v in enumerate(losses) if v != (losses[i - 1] if i else 0.0)]
    return [epochs[i] for i in kept], [losses[i] for i in kept]


def plot_curves(runs: dict[str, dict[str, list[float]]]) -> Figure:
    """Plot classification loss over epochs.

    Args:
        runs: name -> :func:`read_results`, at most two.

    Returns:
        The figure: training solid, validation dashed.
    """
    figure = Figure(figsize=(5.2, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, run), colour in zip(runs.items(), MODEL_COLOURS, strict=False):
        for column, style in zip(COLUMNS, ("-", "--"), strict=True):
            points = measured(run["epoch"], run[column]) if column.startswith("val/") else (run["epoch"], run[column])
            axes.plot(*points, style, color=colour, label=f"{name}: {COLUMNS[column]}")
    axes.set(xlabel="epoch", ylabel="classification loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e9ecef")
    axes.legend(frameon=False, fontsize=8)
    return figure
