"""The plots of a report, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CROWD = 6  # more arms than this have their legend outside the axes
STYLES, MARKS = ("-", "--", ":", "-."), ("o", "s", "^", "v")  # of the first ten arms, the next ten, ...
COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]


def curves(runs: list[dict[str, Any]], arms: list[str], datasets: list[str], key: str, label: str) -> bytes | None:
    """Mean over seeds of one number of the epochs' history, with a band of one standard deviation, a panel a data set.

    Args:
        runs: records of finished runs.
        arms: in order of colour.
        datasets: one panel each.
        key: of the history: ``mAP``, or the name of a loss.
        label: of the y axis.

    Returns:
        PNG, or None if no run has the number.
    """
    if not any(key in h for r in runs for h in r["history"]):
        return None
    figure, axes = _panels(len(datasets), len(arms))
    for ax, dataset in zip(axes, datasets, strict=True):
        for i, (colour, arm) in enumerate(zip(_colours(len(arms)), arms, strict=True)):
            rows = [r["history"] for r in runs if r["dataset"] == dataset and r["arm"] == arm]
            series = [{h["epoch"]: h[key] for h in history if key in h} for history in rows]
            epochs = sorted(set.intersection(*(set(s) for s in series))) if series else []
            if not epochs:
                continue
            values = np.array([[s[e] for e in epochs] for s in series])  # [seed, epoch]
            mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            seeds = f"{len(values)} seed{'s' * (len(values) > 1)}"
            ax.plot(epochs, mean, style, color=colour, label=f"{arm} ({seeds})")
            ax.fill_between(epochs, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        ax.set(title=dataset, xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax)
        ax.grid(alpha=0.3)
    return _png(figure)


def cost_against_ap(
    groups: list[dict[str, Any]], costs: dict[str, dict[str, Any]], axis: str, label: str
) -> bytes | None:
    """AP of each arm (mean, one standard deviation) against a cost, a panel a data set.

    Args:
        groups: of `results.analyse`.
        costs: arm -> its costs.
        axis: key of the cost.
        label: of the x axis.

    Returns:
        PNG, or None if no arm has the cost.
    """
    known = [g for g in groups if costs.get(g["arm"], {}).get(axis) is not None and g["metrics"]["AP"]["n"]]
    datasets = sorted({g["dataset"] for g in known})
    if not datasets:
        return None
    figure, axes = _panels(len(datasets), len({g["arm"] for g in known}))
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = [g for g in known if g["dataset"] == dataset]
        for i, (colour, g) in enumerate(zip(_colours(len(rows)), rows, strict=True)):
            ap, mark = g["metrics"]["AP"], MARKS[i // len(COLOURS) % len(MARKS)]
            x, error = costs[g["arm"]][axis], ap["sd"] or 0
            ax.errorbar(x, ap["mean"], yerr=error, fmt=mark, color=colour, capsize=3, label=g["arm"])
        ax.set(title=dataset, xlabel=label, ylabel="COCO AP")
        _legend(ax)
        ax.grid(alpha=0.3)
    return _png(figure)


def forest(rows: list[tuple[str, dict[str, Any]]], label: str) -> bytes | None:
    """Mean differences with their t intervals, one line each, and a line at zero.

    Args:
        rows: (name, `statistics.paired`), top first; those without an interval are left out.
        label: of the x axis.
    """
    drawn = [(name, r) for name, r in rows if r["t"]["low"] is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(7, 1 + 0.4 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for y, (_, r) in enumerate(reversed(drawn)):
        ax.plot([r["t"]["low"], r["t"]["high"]], [y, y], color="0.3")
        ax.plot(r["values"], [y] * r["n"], "|", color="0.6")
        ax.plot(r["mean"], y, "o", color=COLOURS[0])
    ax.axvline(0, color="k", linewidth=0.8)
    ax.set(yticks=range(len(drawn)), yticklabels=[name for name, _ in reversed(drawn)], xlabel=label)
    return _png(figure)


def _panels(n: int, arms: int) -> tuple[Figure, list[Any]]:
    width, height = (8.5, max(4.0, 0.21 * arms)) if arms > CROWD else (5.5, 4.0)
    figure = Figure(figsize=(width * n, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _legend(ax: Any) -> None:
    labels = ax.get_legend_handles_labels()[1]
    if len(labels) > CROWD:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    elif labels:  # none where no run of a data set has finished yet
        ax.legend(fontsize=8)


def _colours(n: int) -> list[Any]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
