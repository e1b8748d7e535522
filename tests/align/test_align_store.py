"""Bounded tables keep what they promise and never more memory than promised."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tscode_yolo.align.collect import Collector, Settings
from tscode_yolo.align.gallery import Gallery
from tscode_yolo.align.source import Sample
from tscode_yolo.align.store import RowTable

from .align_oracles import random_scene
from .align_scenes import to_objects, to_raw

ROW = np.dtype([("score", np.float32), ("n", np.int64)])


def _rows(scores, start=0):
    rows = np.zeros(len(scores), ROW)
    rows["score"], rows["n"] = scores, np.arange(start, start + len(scores))
    return rows


@pytest.mark.parametrize("block", [1, 3, 17, 400])
def test_the_highest_scores_stay_in_their_order(block):
    scores = np.random.default_rng(block).permutation(500).astype(np.float32)
    table = RowTable(ROW, 60, by="score")
    for i in range(0, 500, block):
        table.add(_rows(scores[i : i + block], i))
    assert sorted(table.rows["score"].tolist()) == list(range(440, 500))
    assert (np.diff(table.rows["n"]) > 0).all()
    assert (table.seen, table.dropped) == (500, 440)


def test_below_the_limit_nothing_is_lost():
    table = RowTable(ROW, 1000)
    for i in range(0, 900, 7):
        table.add(_rows(np.zeros(min(7, 900 - i)), i))
    assert table.rows["n"].tolist() == list(range(900))
    assert table.dropped == 0


def test_the_sample_is_uniform_over_the_stream():
    """Each of 400 rows stays with probability 1/4: over 60 seeds the first and last hundred are kept alike."""
    kept = np.zeros(400)
    for seed in range(60):
        table = RowTable(ROW, 100, seed=seed)
        for i in range(0, 400, 10):
            table.add(_rows(np.zeros(10), i))
        kept[table.rows["n"]] += 1
    assert kept.sum() == 6000
    quarters = kept.reshape(4, 100).sum(1)
    assert np.abs(quarters - 1500).max() < 4 * np.sqrt(6000 * 0.25 * 0.75)  # four standard deviations


def test_a_table_needs_room():
    with pytest.raises(ValueError, match="at least one row"):
        RowTable(ROW, 0)


def _peak(images: int) -> int:
    """Peak traced bytes while a collector of 100 rows sees that many images."""
    scenes = random_scene(1, images=10, size=300)
    detector = SimpleNamespace(end2end=False, names={0: "a", 1: "b", 2: "c"}, name="fake")
    collector = Collector(detector, Settings(max_rows=100, examples=3))
    gallery = Gallery(1, 3)
    for i in range(images):
        if i == 80:  # every table is full by then
            tracemalloc.start()
        image = scenes[i % 10]
        sample = Sample(i, Path(f"{i}.jpg"), np.zeros((1, 1, 3), np.uint8), to_objects(image))
        gallery.offer(sample, [collector.add(sample, to_raw(image, 3))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(collector.detections.rows) == len(collector.objects.rows) == 100
    return peak


def test_memory_does_not_grow_with_the_number_of_images():
    """Five times the images once warm, the same peak: rows and examples are replaced, not added."""
    short, long = _peak(100), _peak(180)
    assert long < short * 1.2 + 20_000
