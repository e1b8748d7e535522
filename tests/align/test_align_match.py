"""IoU, candidates, NMS against the host's, ignored regions, and what happens inside an object, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.utils.nms import non_max_suppression

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.match import ALL_BITS, Candidates, candidates, match, own, pairwise_iou, suppress
from tscode_yolo.align.objects import Fate
from tscode_yolo.align.oracle import rescore, split_loss
from tscode_yolo.align.predict import Raw

from .align_oracles import iou, random_scene
from .align_scenes import SIZE, to_objects, to_raw

A = [0.0, 0.0, 100.0, 100.0]


def test_iou_by_hand_and_crowd_share():
    got = pairwise_iou(np.array([A]), np.array([[50.0, 0, 150, 100], A, [200, 200, 300, 300]]))
    np.testing.assert_allclose(got, [[1 / 3, 1, 0]])
    crowd = pairwise_iou(np.array([[0.0, 0, 50, 50]]), np.array([A]), np.array([True]))
    assert crowd[0, 0] == 1  # all of the box lies in the crowd
    assert pairwise_iou(np.array([[5.0, 5, 5, 9]]), np.array([A]))[0, 0] == 0


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_iou_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 50, (6, 2, 2)), axis=1).transpose(0, 1, 2).reshape(6, 4)
    expected = [[iou(a, b) for b in boxes[3:]] for a in boxes[:3]]
    np.testing.assert_allclose(pairwise_iou(boxes[:3], boxes[3:]), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_candidates_and_nms_equal_the_hosts(seed):
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(50, 350, (400, 2)), rng.uniform(20, 120, (400, 2))
    scores = rng.uniform(0, 1, (400, 4)) ** 6
    raw = Raw(np.hstack([centre - size / 2, centre + size / 2]), scores, (SIZE, SIZE))
    host_input = torch.from_numpy(np.hstack([centre, size, scores]).T[None].astype(np.float32))
    expected = non_max_suppression(host_input, 0.001, 0.7, multi_label=True, max_det=300)[0].numpy()
    pairs = candidates(raw, 0.001)
    final = suppress(pairs, 0.7)[:300]
    np.testing.assert_allclose(raw.boxes[pairs.anchor[final]], expected[:, :4], atol=1e-3)
    np.testing.assert_allclose(pairs.score[final], expected[:, 4], atol=1e-6)
    assert pairs.cls[final].tolist() == expected[:, 5].astype(int).tolist()


def test_classes_of_huge_images_do_not_suppress_each_other():
    """Class 1 shifted by the host's 7680 would lie on class 0; within a class NMS goes on."""
    boxes = np.array([[7780.0, 7780, 7900, 7900], [100, 100, 220, 220], [7781, 7781, 7901, 7901], [101, 100, 221, 220]])
    pairs = Candidates(np.arange(4), np.array([0, 1, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6]), boxes)
    assert suppress(pairs, 0.5).tolist() == [0, 1]
    assert suppress(pairs, 0.99).tolist() == [0, 1, 2, 3]


def test_an_ignored_object_is_neither_found_nor_a_false_positive():
    objects = Objects.build([A, [200, 200, 300, 300]], [0, 0], ignore=[True, False])
    found = match(np.array([A, A, [200.0, 200, 300, 300]]), np.array([0, 0, 0]), objects)
    assert found.ignored[:, 0].tolist() == [ALL_BITS, 0, 0]  # a plain ignored object takes one box, a crowd any number
    assert found.tp[:, 0].tolist() == [0, 0, ALL_BITS]


def test_a_crowd_takes_any_number_of_boxes_and_only_of_its_class():
    objects = Objects.build([[0, 0, 400, 400]], [0], crowd=[True])
    found = match(np.array([A, [10.0, 10, 60, 60], A]), np.array([0, 0, 1]), objects)
    assert found.ignored[:, 0].tolist() == [ALL_BITS, ALL_BITS, 0]
    assert not found.tp.any()


def _object(dets, gts, measure, **kwargs):
    scene = [{"gts": [{"box": g, "cls": 0, "crowd": False} for g in gts],
              "dets": [{"box": b, "cls": 0, "score": s} for b, s in dets]}]  # fmt: skip
    values, collector, _ = measure(scene, classes=1, **kwargs)
    return values, collector.objects.rows


def test_rank_gap_and_fate_by_hand(measure):
    """Three boxes on one object: IoU 0.9 at score 0.3, 0.8 at 0.9, 0.6 at 0.5. The best ranks third; NMS takes it."""
    dets = [([0, 0, 90, 100], 0.3), ([0, 0, 80, 100], 0.9), ([0, 0, 60, 100], 0.5)]
    values, rows = _object(dets, [A], measure, iou=0.7)
    assert rows["rank"][0] == 3
    assert rows["gap"][0] == pytest.approx(0.1)
    assert rows["fate"][0] == Fate.SUPPRESSED  # 0.8 / 0.9 = 0.89 overlap with the winner
    assert rows["best_iou"][0] == pytest.approx(0.9)
    assert rows["spearman"][0] == pytest.approx(-0.5)  # ranks of IoU 3 2 1 against scores 1 3 2
    assert (rows["candidates"][0], values["nms_removed"][0], values["best_first"][0]) == (3, 1, 0)
    # Aligned: the 0.9 box gets the 0.9 score and survives: true up to 0.90 (9 of 10 thresholds), so AP 0.9, not 0.7.
    assert values["ap"][0] == pytest.approx(0.7)
    assert values["ap_aligned"][0] == pytest.approx(0.9)
    assert values["loss_alignment"][0] == pytest.approx(0.2)
    assert values["ap_localisation"][0] == pytest.approx(1)


def test_the_best_box_below_the_floor_is_not_blamed_on_nms(measure):
    _, rows = _object([([0, 0, 95, 100], 0.0005), ([0, 0, 80, 100], 0.9)], [A], measure, iou=0.7)
    assert rows["fate"][0] == Fate.BELOW_FLOOR
    assert rows["rank"][0] == 2


def test_the_best_box_kept_and_equal_scores_share_the_better_rank(measure):
    values, rows = _object([([0, 0, 95, 100], 0.5), ([0, 0, 80, 100], 0.5)], [A], measure, iou=0.7)
    assert (rows["fate"][0], rows["rank"][0]) == (Fate.KEPT, 1)
    assert values["nms_removed"][0] == 0


def test_an_uncovered_object_has_no_rank_but_counts_as_uncovered(measure):
    values, rows = _object([([0, 0, 40, 100], 0.9)], [A], measure)
    assert rows["fate"][0] == Fate.UNCOVERED
    assert np.isnan(rows["rank"][0])
    assert rows["best_iou"][0] == pytest.approx(0.4)
    assert values["covered"][0] == 0
    assert np.isnan(values["gap"][0])


def test_an_end_to_end_head_has_no_nms_to_blame(measure):
    values, rows = _object([([0, 0, 90, 100], 0.3), ([0, 0, 80, 100], 0.9)], [A], measure, iou=0.7, end2end=True)
    assert rows["fate"][0] == Fate.KEPT
    assert np.isnan(values["nms_removed"][0])
    assert values["best_first"][0] == 0


def test_a_box_belongs_to_the_object_it_overlaps_most():
    objects = Objects.build([A, [60, 0, 160, 100]], [0, 0])
    owned = own(np.array([[0.0, 0, 90, 100], [55, 0, 160, 100]]), objects)
    assert owned.by_class[0][0].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_aligned_scores_are_the_same_scores_in_iou_order(seed):
    image = max(random_scene(seed, images=20, crowds=False), key=lambda i: len(i["dets"]))
    raw, objects = to_raw(image, 3), to_objects(image)
    pairs = candidates(raw, 0.001)
    owner, overlap = own(raw.clipped, objects).of(pairs)
    dealt = rescore(pairs, owner, overlap, objects)["aligned"]
    np.testing.assert_allclose(np.sort(dealt.score), np.sort(pairs.score))
    new = dict(zip(zip(dealt.anchor, dealt.cls, strict=True), dealt.score, strict=True))
    for g in set(owner.tolist()):
        inside = np.flatnonzero((owner == g) & (overlap >= 0.5)) if g >= 0 else []
        by_iou = sorted(inside, key=lambda i: -overlap[i])
        scores = [new[pairs.anchor[i], pairs.cls[i]] for i in by_iou]
        assert scores == sorted(scores, reverse=True)
    for i in np.flatnonzero(overlap < 0.5):
        assert new[pairs.anchor[i], pairs.cls[i]] == pairs.score[i]


def test_oracles_by_hand():
    """A loose box (IoU 0.4) and a box on nothing: what each oracle makes of their scores and boxes."""
    pairs = Candidates(np.array([0, 1]), np.array([0, 0]), np.array([0.6, 0.3]),
                       np.array([[300.0, 300, 350, 350], [0, 0, 40, 100]]))  # fmt: skip
    objects = Objects.build([A], [0])
    changed = rescore(pairs, np.array([-1, 0]), np.array([0.0, 0.4]), objects)
    assert changed["ranking"].score.tolist() == [0.4]
    assert changed["localisation"].score.tolist() == [0.6, 0.3]
    assert changed["localisation"].boxes.tolist() == [[300, 300, 350, 350], A]
    assert (changed["both"].score.tolist(), changed["both"].boxes.tolist()) == ([1.0], [A])
    assert changed["aligned"].score.tolist() == [0.6, 0.3]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_split_adds_up(values):
    assert sum(split_loss(*values).values()) == pytest.approx(1 - values[0])
