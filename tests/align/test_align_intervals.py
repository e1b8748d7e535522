"""Intervals: every number under every draw equals what plain loops find on a data set with the images really copied."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import pearsonr, spearmanr

from tscode_yolo.align.correlate import correlations
from tscode_yolo.align.measure import resamples
from tscode_yolo.align.report import bootstrap, interval

from .align_oracles import (
    best_overlaps,
    calibration_error,
    coco_precision,
    keep_size,
    lrp_of_class,
    random_scene,
    tide_costs,
)

CLASSES = 3
SIZES = ("small", "medium", "large")
TIDE = ("classification", "localisation", "both", "duplicate", "background", "missed")
LRP = ("olrp", "olrp_localisation", "olrp_false_positive", "olrp_false_negative")


def _copied(scene, weights):
    """The images of one draw, each as often as it was drawn, copies side by side (as ties of one score stand)."""
    return [image for image, count in zip(scene, weights, strict=True) for _ in range(count)]


@pytest.fixture
def drawn(measure):
    """A scene without crowds, its draws, and (B, S) values of every number under them."""
    scene = random_scene(47, images=12, crowds=False)  # all sizes and classes occur
    _, _, measurer = measure(scene)
    weights = np.concatenate(list(resamples(len(scene), 25, 5)))
    return scene, weights, measurer(weights)


def test_a_weighting_gives_every_number_of_the_copied_images(measure):
    """The same code on real copies: each number, each stratum, each of 9 weightings, NaN where there is none."""
    scene = random_scene(47, images=12, crowds=True)
    _, _, measurer = measure(scene, iou=0.7)
    weights = np.concatenate(list(resamples(len(scene), 8, 5)))
    got = measurer(weights)
    for b, draw in enumerate(weights):
        expected, _, _ = measure(_copied(scene, draw), iou=0.7)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name][b], value, atol=1e-9, err_msg=f"{name}, draw {b}")


def test_draws_of_tide_equal_the_loop_and_coco(drawn):
    """Overall, per class and per size: repair by the loop's verdicts, AP50 by pycocotools."""
    scene, weights, got = drawn
    for b in (0, 1, 2, 3):
        expected = tide_costs(_copied(scene, weights[b]), CLASSES)
        for kind in TIDE:
            np.testing.assert_allclose(got[f"tide_{kind}"][b], expected[kind], atol=1e-9, err_msg=f"{kind}, draw {b}")


def test_draws_of_lrp_equal_the_loop(drawn):
    """Per class and per size (with objects and boxes of other sizes left out as COCO ignores them)."""
    scene, weights, got = drawn
    for b in range(6):
        copied = _copied(scene, weights[b])
        for s, size in enumerate(("all", *SIZES)):
            part = copied if s == 0 else keep_size(copied, size)
            found = [lrp_of_class(part, c) for c in range(CLASSES)]
            known = [any(g["cls"] == c for image in part for g in image["gts"]) for c in range(CLASSES)]
            rows = [[np.nan if v is None else v for v in f] if k else [np.nan] * 5 for f, k in zip(found, known)]
            if s == 0:
                each = np.stack([got[n][b, 1 : 1 + CLASSES] for n in (*LRP, "threshold")], 1)
                np.testing.assert_allclose(each, rows, atol=1e-6)
            mean = np.nanmean(np.array(rows)[:, :4], axis=0)
            stratum = CLASSES + s if s else 0
            np.testing.assert_allclose([got[n][b, stratum] for n in LRP], mean, atol=1e-6, err_msg=f"{size}, {b}")


def test_draws_of_calibration_equal_the_loop(drawn):
    scene, weights, got = drawn
    for b in range(6):
        copied = _copied(scene, weights[b])
        for s, size in enumerate(("all", *SIZES)):
            pairs = keep_size(copied, None if s == 0 else size, pairs=True)  # (score, hit, IoU of the hit, class)
            pairs = [p for p in pairs if p[0] >= 0.05]
            stratum = CLASSES + s if s else 0
            expected = calibration_error([(p[0], p[1]) for p in pairs], 20)
            assert got["d_ece"][b, stratum] == pytest.approx(expected, abs=1e-6)
            each = [[(p[0], p[1] * p[2]) for p in pairs if p[3] == c] for c in range(CLASSES)]
            expected = np.mean([calibration_error(e, 25) for e in each if e])
            assert got["la_ece"][b, stratum] == pytest.approx(expected, abs=1e-6)


def test_draws_of_the_kept_boxes_correlation_equal_scipys_on_copies(drawn):
    scene, weights, got = drawn
    for b in range(8):
        rows = [row for image in _copied(scene, weights[b]) for row in best_overlaps(image)]
        rows = [row for row in rows if row[1] >= 0.1]  # score, IoU, class, size
        for stratum in range(1 + CLASSES + 3):
            mine = rows
            if 1 <= stratum <= CLASSES:
                mine = [r for r in rows if r[2] == stratum - 1]
            elif stratum:
                mine = [r for r in rows if r[3] == SIZES[stratum - CLASSES - 1]]
            score, iou = np.float32([r[0] for r in mine]), np.float32([r[1] for r in mine])
            if len(set(score)) < 2:  # nothing of that size was drawn, or copies of one box
                assert np.isnan(got["spearman_kept"][b, stratum])
                continue
            assert got["spearman_kept"][b, stratum] == pytest.approx(spearmanr(score, iou).statistic, abs=1e-6)
            assert got["pearson_kept"][b, stratum] == pytest.approx(pearsonr(score, iou).statistic, abs=1e-5)


def test_draws_of_ap_by_size_equal_coco(drawn):
    scene, weights, got = drawn
    for b in (1, 2):
        expected = coco_precision(_copied(scene, weights[b]), CLASSES).mean(-1)
        assert np.isfinite(expected[1:]).any(1).all()
        for s in (1, 2, 3):
            assert got["ap"][b, CLASSES + s] == pytest.approx(np.nanmean(expected[s]), abs=1e-9)


def test_only_the_threshold_over_classes_has_no_interval(measure):
    """And of that there is no value either: each class has its own."""
    _, _, measurer = measure(random_scene(43, images=40))
    values, draws = bootstrap(measurer, 60, 0)
    without = set()
    for name, value in values.items():
        for stratum, v in enumerate(value):
            found = interval(v, draws[name][:, stratum])
            if found is None:
                without.add((name, stratum))
            else:
                assert found[0] <= found[1], name
    assert without == {("threshold", s) for s in (0, *range(CLASSES + 1, CLASSES + 4))}


def test_correlations_of_equal_and_few_values():
    """Ties share their mean rank, copies of one row are ties, a constant or two rows have no correlation."""
    score, iou = np.array([0.5, 0.5, 0.9, 0.1]), np.array([0.2, 0.4, 0.4, 0.1])
    image, weights = np.arange(4), np.array([[1, 1, 1, 1], [0, 3, 1, 2], [2, 1, 0, 0], [1, 0, 0, 1]])
    pearson, spearman = correlations(score, iou, image, weights)
    for b in (0, 1):
        copies = np.repeat(image, weights[b])
        assert spearman[b] == pytest.approx(spearmanr(score[copies], iou[copies]).statistic)
        assert pearson[b] == pytest.approx(pearsonr(score[copies], iou[copies]).statistic)
    assert np.isnan(spearman[2:]).all()
    assert np.isnan(pearson[2:]).all()
    assert np.isnan(correlations(score[:0], iou[:0], image[:0], weights)[0]).all()


def test_interval_covers_the_middle_of_symmetric_draws_and_shifts_with_bias():
    draws = np.linspace(0, 1, 1001)
    low, high = interval(0.5, draws)
    assert (low, high) == (pytest.approx(0.025, abs=2e-3), pytest.approx(0.975, abs=2e-3))
    # Efron 1981: with a share p of the draws below the value, percentiles Phi(2 Phi^-1(p) -+ 1.96); p = 0.3 by table:
    # Phi^-1(0.3) = -0.5244, so Phi(-3.0088) = 0.0013 and Phi(0.9112) = 0.8189.
    low, high = interval(0.3, draws)
    assert (low, high) == (pytest.approx(0.0013, abs=2e-3), pytest.approx(0.8189, abs=2e-3))
    assert interval(0.5, draws[:10]) is None
    assert interval(float("nan"), draws) is None


def test_intervals_agree_with_scipys_bootstrap_of_a_mean(measure):
    """Winner gap per image, one object an image: resampling images is resampling values."""
    rng = np.random.default_rng(0)
    gts = [{"box": [0.0, 0.0, 100.0, 100.0], "cls": 0, "crowd": False}]
    widths = rng.uniform(55, 95, 60)
    scene = [{"gts": gts, "dets": [{"box": [0, 0, 100, 100], "cls": 0, "score": 0.1},
                                   {"box": [0, 0, w, 100], "cls": 0, "score": 0.9}]} for w in widths]  # fmt: skip
    values, _, measurer = measure(scene, classes=1)
    draws = np.concatenate([measurer(w)["gap"][:, 0] for w in resamples(60, 800, 1, step=400)][1:])
    gaps = 1 - widths / 100
    assert values["gap"][0] == pytest.approx(gaps.mean(), abs=1e-6)
    expected = scipy_bootstrap((gaps,), np.mean, method="percentile", rng=2, n_resamples=4000).confidence_interval
    assert interval(float(values["gap"][0]), draws) == pytest.approx((expected.low, expected.high), abs=6e-3)


def test_resamples_begin_with_the_data_and_keep_their_size():
    parts = list(resamples(7, 12, 3, step=5))
    assert [p.shape for p in parts] == [(1, 7), (5, 7), (5, 7), (2, 7)]
    assert (parts[0] == 1).all()
    assert all((p.sum(1) == 7).all() for p in parts)
    again = list(resamples(7, 12, 3, step=5))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
