"""The pictures: the paper's Figures 1 and 6 for any model, and the plots of the report.

Before NMS the raw box with the best IoU is green and the three best scores among all boxes about the object have other
colours, however badly they are placed; if none of them is the box the winner gap is measured from, that one is dashed.
After NMS the ground truth is green and the surviving detections are orange. Colours differ in lightness too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from ultralytics.utils.patches import imread

from tscode_yolo.align.gallery import Example, Suspect, View
from tscode_yolo.align.match import FOUND_IOU, pairwise_iou

GREEN, ORANGE, RED = "#12a150", "#f08c00", "#d6336c"
TOP_COLOURS = ("#1c7ed6", "#f08c00", "#d6336c")  # first, second, third score
VIOLET = "#7048e8"
MODEL_COLOURS = ("#1c7ed6", "#868e96")  # the model, the baseline
SHOWN_SCORE = 0.25  # the host's default when it draws predictions


def crop_window(size: tuple[int, int], boxes: np.ndarray, margin: float = 0.35) -> tuple[float, float, float, float]:
    """A window (x1, y1, x2, y2) around boxes (N, 4) with some margin, no taller than wide where the image allows.

    Args:
        size: (height, width) of the image.
        boxes: (N, 4) xyxy in pixels.
        margin: of the longer side of all boxes together.

    Returns:
        The window, inside the image.
    """
    height, width = size
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    pad = max((high - low).max() * margin, 16)
    (x1, y1), (x2, y2) = np.maximum(low - pad, 0), np.minimum(high + pad, (width, height))
    wanted = min(y2 - y1, width)
    if x2 - x1 < wanted:
        x1 = min(max((x1 + x2 - wanted) / 2, 0), width - wanted)
        x2 = x1 + wanted
    return float(x1), float(y1), float(x2), float(y2)


def draw_box(axes: Axes, box: np.ndarray, colour: str, label: str = "", dashed: bool = False, line: int = 0) -> None:
    """Draw a box (4,) xyxy; its label goes under the picture, on the given line, so that it hides nothing."""
    x1, y1, x2, y2 = box
    style = "--" if dashed else "-"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2, linestyle=style))
    if label:
        axes.annotate(
            label, (0, 0), (2, -6 - 17 * line), xycoords="axes fraction", textcoords="offset points", va="top",
            fontsize=9.5, color="white", bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.8},
        )  # fmt: skip


def _before(axes: Axes, view: View) -> None:
    """The raw boxes: best IoU, best scores, and the best score among those that find the object."""
    line = len(view.top) + 1
    if view.winner is not None and not _shows_winner(view):
        *box, score, iou = view.winner
        draw_box(
            axes, np.array(box), VIOLET, f"best score with IoU 0.5 or more: {score:.2f}, IoU {iou:.2f}", True, line
        )
    for i, (*box, score, iou) in reversed(list(enumerate(view.top))):
        low = "" if iou >= FOUND_IOU else " (under 0.5)"
        draw_box(axes, np.array(box), TOP_COLOURS[i], f"score #{i + 1}: {score:.2f}, IoU {iou:.2f}{low}", line=i + 1)
    if view.best is not None:
        row = view.row
        rank = "" if np.isnan(row["rank"]) else f", score rank {int(row['rank'])}"
        label = f"best IoU {row['best_iou']:.2f}: score {row['best_score']:.2f}{rank}"
        draw_box(axes, view.best, GREEN, label, line=0)


def _shows_winner(view: View) -> bool:
    """Whether the box the gap is measured from is among the best scores about the object."""
    return view.winner is not None and bool((view.top == view.winner).all(1).any())


def _after(axes: Axes, example: Example, view: View) -> None:
    for other in example.others:
        draw_box(axes, other, GREEN, dashed=True)
    mine = view.final[(view.final[:, 5] == example.label) & (view.final[:, 4] >= SHOWN_SCORE)]
    for box in mine:
        draw_box(axes, box[:4], ORANGE)
    overlap = pairwise_iou(mine[:, :4], example.truth[None])[:, 0]
    if len(mine) and overlap.max() > 0:
        kept = mine[overlap.argmax()]
        draw_box(axes, kept[:4], ORANGE, f"kept: score {kept[4]:.2f}, IoU {overlap.max():.2f}", line=1)
    draw_box(axes, example.truth, GREEN, "ground truth", line=0)


def draw_example(example: Example, models: list[str], names: dict[int, str]) -> Figure:
    """Draw one disagreement: a row a model, before NMS on the left and after NMS on the right.

    Args:
        example: where, and what each model made of it.
        models: their short names, in the same order.
        names: class names by index.

    Returns:
        The figure.

    Raises:
        FileNotFoundError: the image cannot be read any more.
    """
    image = imread(str(example.path))
    if image is None:
        raise FileNotFoundError(f"expected the image {example.path}, which was read before, got nothing")
    boxes = [example.truth[None], *(v.top[:, :4] for v in example.views)]
    boxes += [v.winner[None, :4] for v in example.views if v.winner is not None]
    x1, y1, x2, y2 = crop_window(image.shape[:2], np.concatenate(boxes))
    aspect = min(max((y2 - y1) / (x2 - x1), 0.4), 1.6)
    lines = max(len(v.top) + 1 + (v.winner is not None and not _shows_winner(v)) for v in example.views)
    figure = Figure(figsize=(9, (4.5 * aspect + 0.4 + 0.24 * lines) * len(models)), dpi=100, layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for row, name, view in zip(grid, models, example.views, strict=True):
        for axes, title in zip(row, ("before NMS", "after NMS"), strict=True):
            axes.imshow(image[..., ::-1])
            axes.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
            axes.set_title(f"{name}, {names[example.label]}: {title}", fontsize=10)
        _before(row[0], view)
        _after(row[1], example, view)
    return figure


def describe(example: Example, models: list[str], names: dict[int, str]) -> str:
    """Say in words what :func:`draw_example` shows, for small screens and those who cannot see it.

    Args:
        example: where, and what each model made of it.
        models: their short names, in the same order.
        names: class names by index.

    Returns:
        One sentence a model.
    """
    told = [f"{example.path.name}, {names[example.label]}, among the worst for {models[example.worst_for]}."]
    for name, view in zip(models, example.views, strict=True):
        if view.winner is None:
            told.append(f"{name}: no raw box finds it.")
            continue
        row, (score, iou) = view.row, view.winner[4:]
        sentence = (
            f"{name}: best box IoU {row['best_iou']:.2f} at score {row['best_score']:.2f} (rank {row['rank']:.0f}), "
            f"top-scoring box that finds it IoU {iou:.2f} at score {score:.2f}"
        )
        if view.top[0, 5] < FOUND_IOU:
            sentence += f"; a higher score, {view.top[0, 4]:.2f}, stands on a box of IoU {view.top[0, 5]:.2f}"
        told.append(sentence + ".")
    return " ".join(told)


def draw_suspects(suspects: list[Suspect], names: dict[int, str], columns: int = 4) -> Figure:
    """Draw the most confident detections that lie on no label, with their surroundings.

    Args:
        suspects: best score first; not empty.
        names: class names by index.
        columns: pictures a row.

    Returns:
        The figure.
    """
    lines = -(-len(suspects) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.65 * lines), dpi=100, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, suspect in zip(grid, suspects, strict=False):
        image = imread(str(suspect.path))
        if image is None:
            raise FileNotFoundError(f"expected the image {suspect.path}, which was read before, got nothing")
        x1, y1, x2, y2 = crop_window(image.shape[:2], suspect.box[None], margin=1.0)
        axes.imshow(image[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1, ::-1], extent=(x1, x2, y2, y1))
        draw_box(axes, suspect.box, RED)
        axes.set_title(f"{names[suspect.label]} {suspect.score:.2f}", fontsize=9, wrap=True)
    return figure


def plot_ranks(plots: list[dict[str, Any]], models: list[str]) -> Figure:
    """Histogram of the best box's rank by score, in shares of the covered objects."""
    edges = plots[0]["rank_edges"]
    labels = [f"{a}" if b == a + 1 else f"{a}–{b - 1}" for a, b in zip(edges, [*edges[1:], 10**9], strict=True)]
    labels[-1] = f">{edges[-1] - 1}"
    figure = Figure(figsize=(5.2, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(plots)
    for i, (plot, name) in enumerate(zip(plots, models, strict=True)):
        counts = np.array(plot["rank_counts"], dtype=float)
        share = 100 * counts / max(counts.sum(), 1)
        axes.bar(np.arange(len(share)) + i * width, share, width, label=name, color=MODEL_COLOURS[i])
    axes.set_xticks(np.arange(len(labels)) + width * (len(plots) - 1) / 2, labels, fontsize=8)
    axes.set(xlabel="rank by score of the best-IoU box, before NMS (1 = agreement)", ylabel="objects, %")
    _finish(axes, legend=len(plots) > 1)
    return figure


def plot_reliability(plots: list[dict[str, Any]], models: list[str]) -> Figure:
    """Precision over score (D-ECE) and, thinner, precision times IoU (LaECE)."""
    figure = Figure(figsize=(5.2, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#adb5bd", linewidth=1, linestyle=":")
    for i, (plot, name) in enumerate(zip(plots, models, strict=True)):
        table = plot["reliability"]
        use = [j for j, s in enumerate(table["score"]) if s is not None]
        score = [table["score"][j] for j in use]
        colour = MODEL_COLOURS[i]
        axes.plot(score, [table["precision"][j] for j in use], "o-", ms=4, color=colour, label=f"{name}: precision")
        mixed = [table["precision_x_iou"][j] for j in use]
        axes.plot(score, mixed, "--", linewidth=1, color=colour, label=f"{name}: precision × IoU")
    axes.set(xlabel="mean score of the bin", ylabel="observed", xlim=(0, 1), ylim=(0, 1))
    _finish(axes, legend=True)
    return figure


def _finish(axes: Axes, legend: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, fontsize=8)
