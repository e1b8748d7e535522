"""What the pictures show: the true best scores, badly placed ones too, and every part of a figure on the page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tscode_yolo.align.figures import VIOLET, describe, draw_example
from tscode_yolo.align.gallery import Gallery
from tscode_yolo.align.pictures import draw, finish
from tscode_yolo.align.source import Sample

from .align_scenes import SIZE, to_objects, to_raw

OBJECT, NEIGHBOUR, OTHER = [100, 100, 200, 200], [200, 100, 300, 200], [150, 150, 250, 250]


def _example(tmp_path, measure, dets):
    """The picture of one object of class 0 with another of class 0 to its right; detections as (box, cls, score)."""
    scene = [{"gts": [{"box": b, "cls": 0, "crowd": False} for b in (OBJECT, NEIGHBOUR)],
              "dets": [{"box": b, "cls": c, "score": s} for b, c, s in dets]}]  # fmt: skip
    _, collector, _ = measure(scene, classes=2)
    path = tmp_path / "a $x_^$.png"
    Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)).save(path)
    sample = Sample(0, path, np.zeros((1, 1, 3), np.uint8), to_objects(scene[0]))
    gallery = Gallery(1, 1)
    gallery.offer(sample, [collector.add(sample, to_raw(scene[0], 2))])
    return gallery.worst(0)[0]


DETS = [
    ([100, 100, 140, 200], 0, 0.9),  # IoU 0.4 with the object: the true winner by score
    ([100, 100, 200, 195], 0, 0.2),  # IoU 0.95, the best box
    ([100, 100, 180, 200], 0, 0.6),  # IoU 0.8, the winner among those that find it
    ([100, 100, 170, 200], 0, 0.5),  # IoU 0.7
    ([100, 100, 108, 200], 0, 0.99),  # IoU 0.08: not about the object
    ([205, 100, 295, 200], 0, 0.95),  # the neighbour's
    ([100, 100, 200, 190], 1, 0.97),  # another class: a candidate too, at its score of 0 for this one
]


def test_a_badly_placed_box_with_the_best_score_is_shown(tmp_path, measure):
    """Scores 0.9 (IoU 0.4), 0.6 (0.8), 0.5 (0.7); the gap is measured from the second: 0.95 - 0.8."""
    example = _example(tmp_path, measure, DETS)
    (view,) = example.views
    np.testing.assert_allclose(view.top[:, 4:], [[0.9, 0.4], [0.6, 0.8], [0.5, 0.7]])
    np.testing.assert_allclose(view.winner, [100, 100, 180, 200, 0.6, 0.8])
    np.testing.assert_allclose(view.best, [100, 100, 200, 195])
    assert view.row["gap"] == pytest.approx(0.15)
    figure = draw_example(example, ["m"], {0: "a", 1: "b"})
    labels = [t.get_text() for t in figure.axes[0].texts]
    assert "score #1: 0.90, IoU 0.40 (under 0.5)" in labels
    assert "best IoU 0.95: score 0.20, score rank 3" in labels
    assert not any("or more" in label for label in labels)  # the second score is the winner itself
    assert "a higher score, 0.90, stands on a box of IoU 0.40" in describe(example, ["m"], {0: "a", 1: "b"})


def test_the_winner_is_dashed_if_three_worse_placed_boxes_score_higher(tmp_path, measure):
    crowd = [([100, 100, 140 + i, 200], 0, 0.9 - 0.01 * i) for i in range(3)]
    example = _example(tmp_path, measure, [*DETS, *crowd])
    assert (example.views[0].top[:, 5] < 0.5).all()
    axes = draw_example(example, ["m"], {0: "a", 1: "b"}).axes[0]
    assert "best score with IoU 0.5 or more: 0.60, IoU 0.80" in [t.get_text() for t in axes.texts]
    assert len(axes.patches) == 5
    assert [p.get_linestyle() for p in axes.patches].count("--") == 1


def test_a_figure_becomes_a_png_and_a_jpeg_of_each_part():
    figure = Figure(figsize=(6, 3), dpi=50, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(np.zeros((4, 4, 3), np.uint8))
    right.imshow(np.full((4, 4, 3), 255, np.uint8))
    left.set_title("left")
    left.annotate("below", (0, 0), (2, -30), xycoords="axes fraction", textcoords="offset points", va="top")
    picture = finish("both", figure)
    assert Image.open(io.BytesIO(picture.png)).size == (300, 150)
    assert [text for text, _ in picture.panels] == ["left. both", "both"]
    parts = [np.asarray(Image.open(io.BytesIO(data)).convert("L")) for _, data in picture.panels]
    assert all(part.shape[1] < 150 for part in parts)
    assert parts[0].shape[0] > parts[1].shape[0]  # the text under the left one is part of it
    assert parts[0][parts[0].shape[0] // 3, 75] < 30
    assert parts[1][parts[1].shape[0] // 2, 75] > 225


def test_names_with_signs_of_formulas_are_drawn(tmp_path, measure):
    example = _example(tmp_path, measure, DETS)
    names = {0: "a $x_^$ <b> & é 细胞", 1: "b"}
    plans = [("examples", lambda: (describe(example, ["$m^$"], names), draw_example(example, ["$m^$"], names)))]
    ((group, picture),) = draw(plans, progress=False)
    assert group == "examples"
    assert len(picture.panels) == 2
    assert VIOLET.startswith("#")
