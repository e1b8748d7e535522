"""The whole way with TorchScript, which needs nothing but torch; the other formats are slow tests and the script."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, run

from tscode_yolo import cli
from tscode_yolo.parity import exported, worker
from tscode_yolo.parity import measure as measurement
from tscode_yolo.parity.command import parity, pick_images
from tscode_yolo.parity.judge import FAIL, PASS, Tolerances, judge
from tscode_yolo.parity.measure import Setting, average_precision, compare, measure
from tscode_yolo.parity.numbers import confident, suppress
from tscode_yolo.parity.variants import parse


@pytest.fixture(scope="module")
def setting(noise):
    return Setting(images=noise, data=None, conf=0.25, score=1e-3, rounds=0, imgsz=160, ap={})


def test_a_faithful_export_passes_and_leaves_the_checkpoint_alone(lively, setting, tmp_path):
    before = sorted(p.name for p in lively.parent.iterdir())
    found = measure(lively, None, parse("torchscript", "base", 160), setting, tmp_path)
    assert judge(found, Tolerances()) == (PASS, "")
    assert found["model"]["detections"]["matched"] == found["model"]["detections"]["reference"] > 0
    assert found["model"]["boxes"]["max"] < 1e-3
    assert found["model"]["bytes"] > 1e6
    assert sorted(p.name for p in lively.parent.iterdir()) == before


@pytest.mark.parametrize("fault", ["quadrants", "crop", "shift"])
def test_a_head_that_computes_something_else_once_exported_fails(lively, setting, monkeypatch, fault):
    """The faults a custom head has in practice, put between PyTorch's output and the runtime's."""
    variant = parse("torchscript", "base", 160)
    faithful = exported.pytorch(lively, end2end=False)

    def wrong(images):
        out = faithful(images).clone()
        if fault == "quadrants":  # pixel shuffle in another order: scores go to the neighbouring anchor point
            out[:, 4:, :400] = out[:, 4:, :400].unflatten(2, (20, 20)).transpose(2, 3).flatten(2)
        elif fault == "crop":  # an off-by-one in the up-sampled map
            out[:, 4:] = out[:, 4:].roll(1, -1)
        else:  # half a pixel, which no detector's own look would show
            out[:, :2] += 0.5
        return out

    side = {**dict.fromkeys(("unrunnable", "error", "ap")), **compare(lively, wrong, False, variant, setting)}
    row = {"skipped": None, "model": side, "baseline": None, "precision": "float32"}
    assert judge(row, Tolerances())[0] == FAIL


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (None, ""),
        ("scores", "scores differ by"),
        ("shift", "boxes differ by 0.15 px, more than 0.1 px"),
        ("missing", "detections without a partner"),
        ("threshold", ""),
    ],
)
@pytest.mark.parametrize("words", ["nms", "end2end"])
def test_final_rows_are_held_to_the_same_tolerances(lively, setting, monkeypatch, words, fault, reason):
    """An export with NMS or top-k in it, its answers put in place of the runtime's; faults that IoU does not show."""
    faithful = exported.pytorch(lively, end2end=False)

    def final(images):  # (B, 300, 6), empty rows zero; boxes made large, for which a shift costs no IoU
        rows = [torch.nn.functional.pad(r, (0, 0, 0, 300 - len(r))) for r in suppress(faithful(images), 0.25, 0.7)]
        out = torch.stack(rows)
        out[..., 2:4] += 100 * (out[..., 4:5] > 0)
        return out

    def wrong(images):
        out = final(images).clone()
        found = out[..., 4] > 0.25
        if fault == "scores":
            out[..., 4][found] = 0.999
        elif fault == "shift":
            out[..., :4][found] += 0.15
        elif fault == "missing":
            out[:, 0] = 0
        elif fault == "threshold":  # one more that the other side may have just below the threshold
            more = torch.tensor([1, 1, 9, 9, 0.2505, 0]).expand(len(out), 1, 6)
            out = torch.cat([out, more], 1)
        return out

    monkeypatch.setattr(exported, "pytorch", lambda *_, **__: final)
    monkeypatch.setattr("tscode_yolo.parity.measure.suppress", lambda out, conf, iou: confident(out, conf))
    compared = compare(lively, wrong, True, parse("torchscript", words, 160), setting)
    side = {**dict.fromkeys(("unrunnable", "error", "ap")), **compared}
    verdict = judge({"skipped": None, "model": side, "baseline": None, "precision": "float32"}, Tolerances())
    assert verdict[0] == (FAIL if reason else PASS)
    assert reason in verdict[1]
    assert side["detections"]["borderline"] == (len(setting.images) if fault == "threshold" else 0)
    if fault == "shift":
        assert side["detections"]["unmatched"] == 0  # IoU alone would have let it pass


@pytest.mark.parametrize("words", ["nms", "end2end"])
def test_ap_of_final_rows_is_compared_at_the_thresholds_in_the_file(setting, monkeypatch, tmp_path, words):
    asked = []
    monkeypatch.setattr(measurement, "ap", lambda file, arguments, *_: asked.append((file, arguments)) or 50.0)
    labelled = replace(setting, data="d.yaml", ap={})
    found = average_precision(Path("a.pt"), Path("a.onnx"), parse("onnx", words, 160), labelled, tmp_path)
    assert found == {"pytorch": 50.0, "exported": 50.0}
    same = {"imgsz": 160, "device": "cpu"} | ({"conf": 0.25, "iou": 0.7} if words == "nms" else {})
    branch = {"nms": False} if words == "end2end" else {}
    assert asked == [(Path("a.pt"), {**same, "batch": 4, **branch}), (Path("a.onnx"), {**same, "batch": 1})]


def test_what_a_converter_throws_is_the_rows_reason(lively, setting, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no kernel for\nPixelShuffle")

    monkeypatch.setattr(exported, "export", broken)
    row = measure(lively, None, parse("torchscript", "base", 160), setting, tmp_path)
    assert judge(row, Tolerances()) == (FAIL, "RuntimeError: no kernel for PixelShuffle")


def test_a_process_that_dies_leaves_a_row_that_fails_and_none_may_install(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho the runtime said no $YOLO_AUTOINSTALL $PIP_NO_INDEX\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    request = {"format": "onnx", "variants": ["base", "dynamic"], "setting": {"imgsz": 64}}
    rows = worker.run(request, tmp_path / "work", timeout=60)
    assert [r["variant"] for r in rows] == ["base", "dynamic"]
    died = "its process died with signal 11; last words: the runtime said no false 1"
    assert [judge(r, Tolerances()) for r in rows] == [(FAIL, died)] * 2  # the second had a process of its own


def test_wrong_arguments_end_in_one_line(lively, capsys, tmp_path):
    for arguments, message in (
        (["model=nowhere.pt"], "expected a file"),
        ([f"model={lively}", "formats=onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        ([f"model={lively}", "variants=hlaf"], "unknown variant 'hlaf'; did you mean 'half'?"),
        ([f"model={lively}", "variants=480"], "unknown variant '480'"),
        ([f"model={lively}", "boxes=abc"], "boxes='abc': expected a number >= 0"),
        ([f"model={lively}", "conf=2"], "conf=2: expected a number from 0 to 1"),
        ([f"model={lively}", "imgsz=100"], "expected a multiple of 32"),
        ([f"model={lively}", f"source={tmp_path}"], f"source={tmp_path}: expected images, got none"),
        ([f"model={lively}", f"source={tmp_path}", "data=coco8.yaml"], "expected no data= beside it"),
        ([f"model={lively}", f"source={lively}"], f"source={lively}: expected a folder of images or a text file"),
        ([f"model={lively}", "rounds=1"], "rounds=1: expected 2 or more, or 0 for no timing"),
        ([f"model={lively}", "format=onnx"], "did you mean formats=?"),
        ([f"model={lively}", "formats="], "formats=: expected one or more of torchscript, onnx"),
        ([f"model={lively}", "timeout=0"], "timeout=0: expected a number >= 1"),
        ([f"model={lively}", "strict=no"], "strict='no': expected true or false"),
        ([f"model={lively}", f"json={tmp_path}"], "expected a file, got a folder"),
        ([f"model={lively}", "data=nowhere.yaml"], "data=nowhere.yaml"),
        (["model=yolo11n.yaml"], "expected a checkpoint, a name that ends in .pt"),
    ):
        assert cli.main(["parity", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_images_come_from_all_over_the_folder(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jpg").touch()
    (tmp_path / "notes.txt").touch()
    assert [p[-5:] for p in pick_images(None, str(tmp_path), 3)] == ["0.jpg", "3.jpg", "6.jpg"]


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory) -> str:
    """A folder of two photographs: on noise or random weights, near ties would decide NMS."""
    folder = tmp_path_factory.mktemp("photos")
    for file in sorted((shared / "data/coco128/images/val").glob("*.jpg"))[:2]:
        shutil.copy(file, folder)
    return str(folder)


@pytest.mark.slow
def test_the_verb_compares_with_another_head_and_writes_both_files(shared, photos, tmp_path):
    models = [f"model={shared / 'weights/yolo11n-restored.pt'}", f"baseline={shared / 'weights/yolov8n-restored.pt'}"]
    files = [f"json={tmp_path / 'r.json'}", f"md={tmp_path / 'r.md'}"]
    options = ["imgsz=160", "rounds=2", f"source={photos}", "formats=torchscript,onnx", "variants=base,batch2,96x160"]
    assert cli.main(["parity", *models, *options, *files]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert [r["verdict"] for r in report["rows"]] == [PASS] * 6
    row = report["rows"][0]
    assert row["latency"]["to_pytorch"]["median"] > 0
    assert row["latency"]["to_stock"]["median"] > 0
    assert row["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()
    assert "| torchscript | base |" in (tmp_path / "r.md").read_text()


@pytest.mark.slow
def test_both_branches_of_an_end_to_end_head_are_held_against_their_own(shared, photos):
    weights = str(shared / "weights/yolo26n-restored.pt")
    found = parity(weights, formats="onnx", variants="end2end,base,nms", imgsz=320, rounds=0, source=photos)
    assert [(r["verdict"], r["reason"]) for r in found["rows"]] == [(PASS, "")] * 3
    assert all(r["model"]["boxes"]["max"] <= 0.1 and r["model"]["scores"]["max"] <= 1e-3 for r in found["rows"])


def test_the_script_explains_itself_and_knows_every_format():
    done = run(sys.executable, REPO / "examples/parity_all_formats.py", cwd=REPO, check=False)
    assert done.returncode == 2
    assert "each heavy one in a virtual environment" in done.stderr
    sys.path.insert(0, str(REPO / "examples"))
    try:
        from parity_all_formats import ENVIRONMENTS
    finally:
        sys.path.pop(0)
    from tscode_yolo.parity.variants import NEEDS

    assert sorted(f for formats, _ in ENVIRONMENTS.values() for f in formats.split(",")) == sorted(NEEDS)
