from __future__ import annotations

import math

import pytest
import torch

from tscode_yolo.parity.numbers import MOST, Differences, Matches, confident, suppress


def raw(*anchors):
    """(1, 4 + nc, A) from one list of xywh and scores an anchor point."""
    return torch.tensor([anchors], dtype=torch.float32).transpose(1, 2)


def test_differences_are_of_box_sides_and_scores():
    found = Differences()
    found.add(raw([10, 10, 4, 4, 0.5], [20, 20, 4, 4, 0.2]), raw([10.5, 10, 4, 4, 0.5], [20, 20, 4, 6, 0.25]))
    # x1 and x2 of the first move by 0.5; y1 and y2 of the second by 1; so 0.5 0 0.5 0 and 0 1 0 1: median of 8 is 0
    summary = found.summary()
    assert summary["boxes"] == {"max": 1.0, "median": 0.0}
    assert summary["scores"]["max"] == pytest.approx(0.05, abs=1e-6)


def test_the_worst_of_all_images_counts():
    found = Differences()
    for shift in (0.0, 3.0, 1.0):
        found.add(raw([10, 10, 4, 4, 0.5]), raw([10 + shift, 10, 4, 4, 0.5]))
    assert found.summary()["boxes"]["max"] == 3.0


def test_nan_is_no_small_difference():
    found = Differences()
    found.add(raw([10, 10, 4, 4, 0.5]), raw([math.nan, 10, 4, 4, 0.5]))
    assert found.summary()["boxes"]["max"] == math.inf


def test_an_output_of_another_shape_is_an_error_and_nothing_is_no_summary():
    found = Differences()
    assert found.summary() is None
    with pytest.raises(ValueError, match=r"expected an output of shape \[1, 5, 1\], got \[1, 6, 1\]"):
        found.add(raw([10, 10, 4, 4, 0.5]), raw([10, 10, 4, 4, 0.5, 0.1]))


def rows(*given):
    return torch.tensor(given, dtype=torch.float32).reshape(-1, 6)


@pytest.mark.parametrize(
    ("exported", "counts"),
    [
        ([[0, 0, 100, 100, 0.9, 1]], {"matched": 1, "unmatched": 0}),
        ([[0, 0, 100, 99.5, 0.9, 1]], {"matched": 1, "unmatched": 0}),  # IoU 0.995
        ([[0, 0, 100, 98.5, 0.9, 1]], {"matched": 0, "unmatched": 2}),  # IoU 0.985: neither has a partner
        ([[0, 0, 100, 100, 0.9, 0]], {"matched": 0, "unmatched": 2}),  # another class
        ([], {"matched": 0, "unmatched": 1}),
        ([[0, 0, 100, 100, 0.9, 1]] * 2, {"matched": 1, "unmatched": 1}),  # one partner serves one
        ([[0, 0, 100, 100, 0.9, 1], [5, 5, 9, 9, 0.2505, 0]], {"matched": 1, "borderline": 1, "unmatched": 0}),
        ([[0, 0, 100, 100, 0.9, 1], [5, 5, 9, 9, 0.26, 0]], {"matched": 1, "borderline": 0, "unmatched": 1}),
    ],
    ids=["same", "near", "far", "class", "missing", "twice", "borderline", "extra"],
)
def test_detections_are_paired_one_to_one(exported, counts):
    matches = Matches(conf=0.25, score=1e-3)
    matches.add(rows([0, 0, 100, 100, 0.9, 1]), rows(*exported))
    summary = matches.summary()
    assert {k: summary[k] for k in counts} == counts
    assert (summary["reference"], summary["exported"]) == (1, len(exported))


@pytest.mark.parametrize(("count", "score", "borderline"), [(MOST, 0.4004, 1), (MOST, 0.41, 0), (MOST - 1, 0.4004, 0)])
def test_a_full_list_has_no_room_for_a_detection_like_its_least(count, score, borderline):
    found = [[9 * i, 0, 9 * i + 8, 8, 0.9 - 0.5 * i / (count - 1), 0] for i in range(count)]  # scores to 0.4
    matches = Matches(conf=0.25, score=1e-3)
    matches.add(rows(*found, [0, 50, 8, 58, score, 0]), rows(*found))
    assert (matches.summary()["borderline"], matches.summary()["unmatched"]) == (borderline, 1 - borderline)


def test_pairs_say_how_much_they_differ():
    """IoU 0.9955 and 0.994 are both "the same box": their sides are off by half a pixel and by 0.2 and 0.1."""
    matches = Matches(conf=0.25, score=1e-3)
    assert matches.differences() is None
    matches.add(rows([0, 0, 100, 100, 0.9, 1]), rows([0, 0, 100, 99.5, 0.7, 1]))
    matches.add(rows([0, 0, 50, 50, 0.5, 0]), rows([0, 0.2, 50.1, 50, 0.5, 0]))
    found = matches.differences()
    assert matches.summary()["matched"] == 2
    assert found["boxes"] == {"max": pytest.approx(0.5), "median": 0.0}
    assert found["scores"]["max"] == pytest.approx(0.2)


def test_an_object_found_twice_is_paired_with_its_likeness():
    """Each of the two boxes overlaps both of the other model's by more than 0.99; a wrong pairing differs by 0.2."""
    twice = [0, 0, 100, 100, 0.9, 1], [0, 0, 100, 99.9, 0.7, 1]
    matches = Matches(conf=0.25, score=1e-3)
    matches.add(rows(*twice), rows(*reversed(twice)))
    assert matches.summary()["matched"] == 2
    assert matches.differences() == {"boxes": {"max": 0.0, "median": 0.0}, "scores": {"max": 0.0, "median": 0.0}}


def test_nan_finds_no_partner():
    matches = Matches(conf=0.25, score=1e-3)
    matches.add(rows([0, 0, 100, 100, 0.9, 1]), rows([math.nan, 0, 100, 100, 0.9, 1]))
    assert (matches.summary()["matched"], matches.summary()["unmatched"]) == (0, 2)


def test_final_rows_and_raw_outputs_come_to_the_same():
    boxes = raw([50, 50, 20, 20, 0.9, 0.1], [50, 50, 20, 20, 0.8, 0.1], [10, 10, 8, 8, 0.1, 0.1])
    final = torch.tensor([[[40, 40, 60, 60, 0.9, 0], [0, 0, 0, 0, 0, 0]]])
    torch.testing.assert_close(suppress(boxes, 0.25, 0.7)[0], confident(final, 0.25)[0])
