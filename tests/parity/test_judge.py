from __future__ import annotations

import pytest

from tscode_yolo.parity.judge import FAIL, NOT_RUN, PASS, UNJUDGED, Tolerances, judge
from tscode_yolo.parity.table import cells, markdown, merge

GOOD = {
    **{"bytes": 5_000_000, "boxes": {"max": 0.05, "median": 1e-4}, "scores": {"max": 5e-4, "median": 1e-6}},
    "detections": {"reference": 9, "exported": 9, "matched": 9, "borderline": 0, "unmatched": 0},
    **{"ap": {"pytorch": 60.0, "exported": 59.0}, "unrunnable": None, "error": None},
}


def row(precision="float32", skipped=None, baseline=None, **model):
    return {
        **{"format": "onnx", "variant": "base", "precision": precision, "input": [1, 3, 64, 64]},
        **{"model": {**GOOD, **model}, "baseline": baseline, "latency": None, "skipped": skipped, "packages": {}},
    }


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        (row(), PASS, ""),
        (row(boxes={"max": 0.11, "median": 0}), FAIL, "boxes differ by 0.11 px, more than 0.1 px"),
        (row(scores={"max": 2e-3, "median": 0}), FAIL, "scores differ by 0.002, more than 0.001"),
        (row(boxes={"max": float("inf"), "median": 0}), FAIL, "boxes differ by inf px"),
        (row(detections={**GOOD["detections"], "unmatched": 2}), FAIL, "2 detections without a partner"),
        (row(detections={**GOOD["detections"], "matched": 0}), UNJUDGED, "PyTorch detects nothing"),
        (row(boxes=None, scores=None), PASS, ""),
        (row(skipped="not installed: onnx"), NOT_RUN, "not installed: onnx"),
        (row(error="RuntimeError: x"), FAIL, "RuntimeError: x"),
        (row(error="RuntimeError: x", baseline={**GOOD, "error": "too"}), NOT_RUN, "the stock head fails too"),
        (row(error="RuntimeError: x", baseline=GOOD), FAIL, "RuntimeError: x"),
        (row(unrunnable="macOS only"), NOT_RUN, "macOS only"),
        (row("int8", boxes={"max": 50.0, "median": 1}, baseline=GOOD), PASS, "loses 1.00 AP, the stock head 1.00"),
        (row("int8", ap={"pytorch": 60.0, "exported": 58.4}, baseline=GOOD), FAIL, "loses 1.60 AP, the stock"),
        (row("half", ap={"pytorch": 60.0, "exported": 58.6}, baseline=GOOD), PASS, "loses 1.40 AP"),
        (row("half"), UNJUDGED, "give baseline="),
        (row("half", ap=None, baseline=GOOD), UNJUDGED, "give data="),
        # a stock head that gains by chance raises no bar
        (row("half", ap={"pytorch": 60.0, "exported": 59.6}, baseline={**GOOD, "ap": {"pytorch": 60, "exported": 63}}),
         PASS, "loses 0.40 AP, the stock head -3.00"),
    ],
)  # fmt: skip
def test_verdicts(given, verdict, reason):
    got = judge(given, Tolerances())
    assert got[0] == verdict
    assert reason in got[1]


def report(*rows, model="a.pt"):
    judged = [dict(zip(("verdict", "reason"), judge(r, Tolerances())), **r) for r in rows]
    common = {"baseline": None, "imgsz": 64, "conf": 0.25, "data": None, "images": ["x.jpg"]}
    return {**common, "model": model, "tolerances": Tolerances().as_dict(), "rows": judged, "provenance": {"n": model}}


def test_merging_keeps_what_ran_and_one_row_a_variant():
    without = report(row(skipped="not installed: onnx"), {**row(), "format": "torchscript"})
    merged = merge([without, report(row())])
    assert [(r["format"], r["verdict"]) for r in merged["rows"]] == [("onnx", PASS), ("torchscript", PASS)]
    assert len(merged["provenance"]) == 2
    again = merge([merged, without])
    assert [r["verdict"] for r in again["rows"]] == [PASS, PASS]
    with pytest.raises(ValueError, match="different model"):
        merge([without, report(row(), model="b.pt")])


def test_the_table_shows_every_number_and_the_reason():
    timed = {**row(baseline=GOOD), "latency": {"to_pytorch": {"median": 0.66}, "to_stock": {"median": 1.01}}}
    timed |= {"verdict": PASS, "reason": ""}
    shown = ["onnx", "base", "5.0e-02 (1e-04)", "5.0e-04 (1e-06)", "9 / 9"]
    assert cells(timed) == [*shown, "60.00 -> 59.00 / 60.00 -> 59.00", "5.0", "0.66 / 1.01", "PASS"]
    text = markdown(report(row(skipped="not installed: a|b")))
    assert "| onnx | base | 5.0e-02" in text
    assert "not run: not installed: a\\|b |" in text
