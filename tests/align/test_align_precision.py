"""AP, LRP, TIDE and calibration against pycocotools, faster-coco-eval, tidecv, netcal and loop-written oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tscode_yolo.align.ap import Ranked, interpolate
from tscode_yolo.align.calibration import BINS, LA_BINS, bin_of
from tscode_yolo.align.tide import Kind

from .align_oracles import calibration_error, coco_precision, iou, lrp_of_class, random_scene, tide_kinds

NAN = float("nan")


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("seed", range(6))
def test_ap_equals_coco_by_class_size_and_threshold_with_crowds(seed, backend, measure):
    pytest.importorskip(backend)
    scene = random_scene(seed)
    values, _, _ = measure(scene)
    expected = coco_precision(scene, 3, backend)
    for c in range(3):
        np.testing.assert_allclose(values["ap"][1 + c], expected[0, c].mean(), atol=1e-9)
        np.testing.assert_allclose(values["ap50"][1 + c], expected[0, c, 0], atol=1e-9)
        np.testing.assert_allclose(values["ap75"][1 + c], expected[0, c, 5], atol=1e-9)
    np.testing.assert_allclose(values["ap"][0], np.nanmean(expected[0].mean(-1)), atol=1e-9)
    for s in (1, 2, 3):
        if np.isfinite(expected[s]).any():
            np.testing.assert_allclose(values["ap"][3 + s], np.nanmean(expected[s].mean(-1)), atol=1e-9)


def test_a_resampled_image_counts_like_a_copy_of_it(measure):
    """Weights (2, 0, 1, ...) must give COCO's AP of a set with the first image twice and the second left out."""
    scene = random_scene(3, images=5)
    _, _, measurer = measure(scene)
    got = measurer(np.array([[2, 0, 1, 3, 1]], np.uint16))
    # Copies tie in score; pycocotools keeps image order in ties, so copies stand together as they do here.
    repeated = [scene[i] for i in (0, 0, 2, 3, 3, 3, 4)]
    expected = coco_precision(repeated, 3)[0].mean(-1)
    np.testing.assert_allclose(got["ap"][0, 1:4], expected, atol=1e-9)


def test_interpolated_ap_by_hand():
    """Hit, miss, hit of two objects: precision 1 up to recall 0.5 (51 of 101 points), then 2/3 (50 points)."""
    tp, seen = np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]])
    np.testing.assert_allclose(interpolate(tp, seen, np.array([2.0])), [(51 + 50 * 2 / 3) / 101])
    assert np.isnan(interpolate(tp, seen, np.array([0.0])))
    assert interpolate(np.empty((1, 0)), np.empty((1, 0)), np.array([2.0]))[0] == 0


def test_equal_scores_keep_the_order_of_the_images():
    rows = np.zeros(3, [("image", "u4"), ("score", "f4"), ("tp", "u2", 4), ("ignored", "u2", 4)])
    rows["image"], rows["score"], rows["tp"] = [2, 0, 1], 0.5, 1
    assert Ranked.of(rows, 0).image.tolist() == [2, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_lrp_equals_the_loop_over_every_threshold(seed, measure):
    scene = random_scene(seed + 50, crowds=False)
    values, _, _ = measure(scene)
    names = ("olrp", "olrp_localisation", "olrp_false_positive", "olrp_false_negative", "threshold")
    for c in range(3):
        expected = lrp_of_class(scene, c)
        got = [values[n][1 + c] for n in names]
        np.testing.assert_allclose(got, [NAN if v is None else v for v in expected], atol=1e-6)


def test_lrp_by_hand(measure):
    """Two objects, one hit of IoU 0.8 at 0.9, one false alarm at 0.5: best at 0.9, (0.2 / 0.5 + 0 + 1) / 2 = 0.7."""
    scene = [{"gts": [{"box": [0, 0, 100, 100], "cls": 0, "crowd": False},
                      {"box": [200, 200, 300, 300], "cls": 0, "crowd": False}],
              "dets": [{"box": [0, 0, 80, 100], "cls": 0, "score": 0.9},
                       {"box": [0, 200, 50, 250], "cls": 0, "score": 0.5}]}]  # fmt: skip
    values, _, _ = measure(scene, classes=1)
    assert values["olrp"][1] == pytest.approx(0.7)
    assert values["olrp_localisation"][1] == pytest.approx(0.2)
    assert values["olrp_false_positive"][1] == 0
    assert values["olrp_false_negative"][1] == pytest.approx(0.5)
    assert values["threshold"][1] == pytest.approx(0.9)


@pytest.mark.parametrize("seed", range(8))
def test_tide_kinds_equal_the_loop(seed, measure):
    scene = random_scene(seed + 100, crowds=False)
    _, collector, _ = measure(scene)
    rows, objects = collector.detections.rows, collector.objects.rows
    for i, image in enumerate(scene):
        kinds, missed = tide_kinds(image)
        assert [Kind(k).name.lower() for k in rows["kind"][rows["image"] == i]] == kinds
        assert np.flatnonzero(objects["missed"][objects["image"] == i]).tolist() == missed


def test_tide_costs_equal_tidecv(measure):
    """tidecv (or tidecv-light) on the same boxes: AP50 and the six dAP, in points of 100.

    tidecv reads the curve at x / 100, COCO at ``linspace(0, 1, 101)``, which differ in the last bit: where a recall
    equals one of them, one point of 101 may move. Object counts prime to 100 avoid that for AP50; the cost of missed
    objects changes the counts, hence the wider tolerance there.
    """
    pytest.importorskip("tidecv", reason="tidecv-light is not installed (it is in the extra 'test')")
    from tidecv import TIDE
    from tidecv.data import Data

    scene = random_scene(7, images=40, crowds=False)
    for cls in range(3):
        while math.gcd(sum(g["cls"] == cls for image in scene for g in image["gts"]), 100) > 1:
            image = next(image for image in scene if any(g["cls"] == cls for g in image["gts"]))
            image["gts"].remove(next(g for g in image["gts"] if g["cls"] == cls))
    scene = [image for image in scene if image["gts"]]  # tidecv 1.0.1 never looks at images without objects
    truth, found = Data("gt"), Data("found")
    for i, image in enumerate(scene):
        for g in image["gts"]:
            x1, y1, x2, y2 = g["box"]
            truth.add_ground_truth(i, g["cls"], _tide_box([x1, y1, x2, y2]), None)
        for d in image["dets"]:
            found.add_detection(i, d["cls"], d["score"], _tide_box(d["box"]), None)
    tide = TIDE()
    run = tide.evaluate(truth, found, mode=TIDE.BOX)
    costs = {type_.short_name: v for type_, v in run.fix_main_errors().items()}
    values, _, _ = measure(scene)
    assert 100 * values["ap50"][0] == pytest.approx(run.ap, abs=1e-6)
    pairs = {"Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate",
             "Bkg": "background", "Miss": "missed"}  # fmt: skip
    assert {k: 100 * values[f"tide_{v}"][0] for k, v in pairs.items()} == pytest.approx(
        {k: costs[k] for k in pairs}, abs=0.03
    )


def _tide_box(box):
    """tidecv takes xywh (through pycocotools), tidecv-light compares xyxy."""
    import inspect

    from tidecv import quantify

    x1, y1, x2, y2 = box
    return [x1, y1, x2, y2] if "def jaccard" in inspect.getsource(quantify) else [x1, y1, x2 - x1, y2 - y1]


def test_tide_by_hand(measure):
    """One object found, plus its duplicate, a loose box and a wrong class on a second, and a box on nothing."""
    a, b = [0, 0, 100, 100], [200, 200, 300, 300]
    scene = [{"gts": [{"box": a, "cls": 0, "crowd": False}, {"box": b, "cls": 0, "crowd": False},
                      {"box": [0, 300, 50, 350], "cls": 0, "crowd": False}],
              "dets": [{"box": a, "cls": 0, "score": 0.9}, {"box": [0, 0, 90, 100], "cls": 0, "score": 0.8},
                       {"box": [200, 200, 240, 300], "cls": 0, "score": 0.7}, {"box": b, "cls": 1, "score": 0.6},
                       {"box": [300, 0, 350, 50], "cls": 0, "score": 0.5},
                       {"box": [200, 200, 240, 300], "cls": 1, "score": 0.4}]}]  # fmt: skip
    _, collector, _ = measure(scene, classes=2)
    rows = collector.detections.rows
    assert rows["kind"].tolist() == [
        Kind.CORRECT, Kind.DUPLICATE, Kind.LOCALISATION, Kind.CLASSIFICATION, Kind.BACKGROUND, Kind.BOTH
    ]  # fmt: skip
    assert rows["repaired"].tolist() == [-1, -1, 0, -1, -1, -1]  # the loose box comes first and takes the object
    assert collector.objects.rows["missed"].tolist() == [False, False, True]


@pytest.mark.parametrize("seed", range(4))
def test_calibration_errors_equal_the_loop(seed, measure):
    scene = random_scene(seed + 200, images=30, crowds=False)
    values, collector, _ = measure(scene)
    rows = collector.detections.rows
    rows = rows[rows["score"] >= 0.05]
    hit = (rows["tp"][:, 0] & 1).astype(float)
    score = rows["score"].astype(np.float64)
    assert values["d_ece"][0] == pytest.approx(calibration_error(list(zip(score, hit, strict=True)), BINS))
    each = []
    for c in range(3):
        mine = rows["cls"] == c
        target = (hit * rows["iou"][:, 0])[mine]
        each.append(calibration_error(list(zip(score[mine], target, strict=True)), LA_BINS))
        assert values["la_ece"][1 + c] == pytest.approx(each[-1], abs=1e-6)
    assert values["la_ece"][0] == pytest.approx(np.mean(each), abs=1e-6)


def test_d_ece_equals_netcal(measure):
    reason = "netcal is not installed; it brings 17 more packages (pyro, gpytorch, tensorboard), so no extra has it"
    ece = pytest.importorskip("netcal.metrics", reason=reason).ECE
    values, collector, _ = measure(random_scene(9, images=40, crowds=False))
    rows = collector.detections.rows
    rows = rows[rows["score"] >= 0.05]
    hit = (rows["tp"][:, 0] & 1).astype(int)
    expected = ece(BINS, detection=True).measure(rows["score"].astype(np.float64), hit)
    assert values["d_ece"][0] == pytest.approx(expected, abs=1e-6)


def test_bins_are_closed_above():
    assert bin_of(np.array([0.0, 0.05, 0.0501, 0.1, 1.0]), 20).tolist() == [0, 0, 1, 1, 19]


def test_perfect_detector_has_nothing_to_lose(measure):
    scene = random_scene(11, crowds=False)
    for image in scene:
        kept = []
        for g in image["gts"]:  # a second object of the class in one place cannot be told apart after matching
            if all(iou(g["box"], k["box"]) < 0.3 for k in kept):
                kept.append(g)
        image["gts"] = kept
        image["dets"] = [{"box": g["box"], "cls": g["cls"], "score": 0.999} for g in kept]
    values, _, _ = measure(scene)
    for name in ("ap", "ap50", "ap_aligned", "ap_ranking", "ap_localisation", "ap_both", "covered", "best_first"):
        assert values[name][0] == pytest.approx(1), name
    for name in ("loss_scores", "loss_boxes", "loss_unseen", "gap", "olrp", *(n for n in values if "tide" in n)):
        assert values[name][0] == pytest.approx(0, abs=1e-9), name
