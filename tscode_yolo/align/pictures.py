"""Which pictures a report gets, drawn one after the other: one figure in memory at a time, with progress."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from ultralytics.utils import LOGGER, TQDM
from ultralytics.utils.patches import imread

from tscode_yolo.align import curves, figures
from tscode_yolo.align.cam import NoGradient, branch_maps, draw_maps
from tscode_yolo.align.collect import Collection, Collector
from tscode_yolo.align.gallery import Example, View

GROUPS = ("plots", "examples", "maps", "suspects", "curves")
QUALITY = 72  # of the JPEGs; photographs are a tenth the size of the PNG beside the page
Drawing = tuple[str, Figure]  # caption and figure
Plan = tuple[str, Callable[[], Drawing | None]]  # group, and what draws it


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture.

    Attributes:
        caption: what it shows.
        png: the whole figure, for the folder.
        panels: (text, JPEG) of each part, for the page, where parts stand side by side or below each other.
    """

    caption: str
    png: bytes
    panels: list[tuple[str, bytes]]


def chosen(collection: Collection) -> list[Example]:
    """The worst examples of each model in turn, an object once."""
    per_model = [collection.gallery.worst(m) for m in range(len(collection.collectors))]
    mixed = [e for rank in range(max(map(len, per_model), default=0)) for p in per_model for e in p[rank : rank + 1]]
    seen: Counter[tuple[str, bytes]] = Counter()
    out = []
    for example in mixed:
        key = (str(example.path), example.truth.tobytes())
        seen[key] += 1
        if seen[key] == 1:
            out.append(example)
    return out


def _maps(collector: Collector, name: str, example: Example, view: View) -> Drawing | None:
    """Gradient maps of one model on one object; None if no box finds it or no gradient passes."""
    image = imread(str(example.path))
    if view.winner is None or image is None:
        return None
    try:
        found = branch_maps(collector.detector, image, int(view.row["top"]), example.label, example.truth)
    except NoGradient as error:
        LOGGER.warning(f"no gradient maps for {name}: {error}")
        return None
    label = collector.detector.names[example.label]
    title = f"{name}: {label} in {example.path.name}, score {view.winner[4]:.2f}"
    return title, draw_maps(image, view.winner[:4], example.truth, found, title)


def _suspects(collection: Collection, name: str) -> Drawing:
    found = [s for _, _, s in sorted(collection.collectors[0].suspects, key=lambda entry: -entry[0])]
    caption = f"{name}: the {len(found)} most confident"
    return caption, figures.draw_suspects(found, collection.collectors[0].detector.names)


def plan(
    collection: Collection, report: dict[str, Any], names: list[str], cam: int, runs: dict[str, curves.Run]
) -> list[Plan]:
    """Say what is to be drawn.

    Args:
        collection: what was seen.
        report: its numbers.
        names: short names of the models.
        cam: objects that get gradient maps, per model.
        runs: name -> losses of its training.

    Returns:
        The pictures in the order of the page.
    """
    classes = collection.collectors[0].detector.names
    plots = [m["plots"] for m in report["models"]]

    def example(e: Example) -> Drawing:
        return figures.describe(e, names, classes), figures.draw_example(e, names, classes)

    out: list[Plan] = [
        ("plots", lambda: ("Rank of the best box by score, before NMS", figures.plot_ranks(plots, names))),
        ("plots", lambda: ("Reliability: does a score mean what it says?", figures.plot_reliability(plots, names))),
    ]
    worst = chosen(collection)
    out += [("examples", partial(example, e)) for e in worst]
    for e in worst[:cam]:
        parts = zip(collection.collectors, names, e.views, strict=True)
        out += [("maps", partial(_maps, c, name, e, view)) for c, name, view in parts]
    if collection.collectors[0].suspects:
        out.append(("suspects", partial(_suspects, collection, names[0])))
    if runs:
        out.append(("curves", lambda: ("Classification loss", curves.plot_curves(runs))))
    return out


def draw(plans: list[Plan], progress: bool = True) -> Iterator[tuple[str, Picture]]:
    """Draw what was planned.

    Args:
        plans: from :func:`plan`.
        progress: show a bar.

    Yields:
        Group and picture.
    """
    with TQDM(total=len(plans), desc="pictures", disable=not progress) as bar:
        for group, make in plans:
            # Names may hold a dollar sign, and letters that the font lacks; the captions of the page have those.
            with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
                drawing = make()
                picture = finish(*drawing) if drawing else None
            bar.update(1)
            if picture:
                yield group, picture


def finish(caption: str, figure: Figure) -> Picture:
    """Render a figure: whole as PNG, and each of its parts as JPEG.

    Args:
        caption: of the figure.
        figure: whose parts are its axes; those without content are left out.

    Returns:
        The picture.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, format="png")
    panels = []
    for axes in figure.axes:
        box = axes.get_tightbbox(canvas.get_renderer()) if axes.has_data() else None
        if box is None:
            continue
        top, bottom = pixels.shape[0] - box.y1 - 4, pixels.shape[0] - box.y0 + 4
        part = pixels[max(int(top), 0) : int(bottom) + 1, max(int(box.x0) - 4, 0) : int(box.x1) + 5]
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(part)).save(buffer, format="jpeg", quality=QUALITY)
        title = axes.get_title()
        panels.append((f"{title}. {caption}" if title else caption, buffer.getvalue()))
    return Picture(caption, whole.getvalue(), panels)
