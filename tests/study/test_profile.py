"""The profile verb on small inputs: what it reports, not how long things took."""

from __future__ import annotations

import json

import pytest
import torch
from ultralytics import YOLO

from tscode_yolo.study import profile as pf
from tscode_yolo.study import training


def test_profile_with_a_baseline_quotes_ratios(tmp_path, capsys):
    file = tmp_path / "p.json"
    args = {"model": "yolo11n-tscode.yaml", "baseline": "yolo11n.yaml", "imgsz": 64, "rounds": 6, "batches": 1}
    assert pf.main({**args, "train_batch": 2, "nc": 3, "formats": "pytorch", "json": str(file)}) == 0
    report = json.loads(file.read_text())
    assert set(report["models"]) == {"yolo11n-tscode", "yolo11n"}
    assert [(r["format"], r["part"], r["batch"]) for r in report["latency"]] == [
        ("pytorch", "model", 1),
        ("pytorch", "head", 1),
    ]
    for row in [*report["latency"], report["training"], report["loss"]]:
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert report["training"]["peak_ratio"] > 0
    assert report["amp"] is torch.cuda.is_available()
    out = capsys.readouterr().out
    for part in (
        "yolo11n-tscode over yolo11n",
        "training step",
        "loss",
        "TSCODEDetect",
        "second counter",
        "2 per multiply-add",
        "Traffic of one image",
        "GB/s copied",
    ):
        assert part in out
    assert str(tmp_path) not in file.read_text()


def test_a_format_whose_packages_are_missing_is_reported(monkeypatch):
    monkeypatch.setattr(pf, "find_spec", lambda _name: None)
    report = pf.profile("yolo11n.yaml", imgsz=64, rounds=2, formats="onnx", batches=1, train_batch=2)
    assert report["skipped"] == {"onnx": "not installed: onnx, onnxruntime; pip install onnx onnxruntime"}
    assert report["latency"] == []
    assert report["training"]["ratio"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA is told")
def test_a_cuda_graph_needs_cuda():
    report = pf.profile("yolo11n.yaml", imgsz=64, rounds=2, formats="cudagraph", batches=1, train_batch=2)
    assert report["skipped"] == {"cudagraph": "needs a CUDA device, got device=cpu"}
    assert report["latency"] == []


@pytest.mark.slow
def test_exported_models_are_timed_in_their_runtime():
    pytest.importorskip("onnxruntime")
    report = pf.profile("yolo11n-tscode.yaml", "yolo11n.yaml", imgsz=64, rounds=3, formats="onnx", batches=[1, 2], nc=3)
    assert [(r["format"], r["batch"]) for r in report["latency"]] == [("onnx", 1), ("onnx", 2)]


def test_weights_can_be_profiled_and_other_tasks_are_refused(tmp_path):
    YOLO("yolo11n.yaml").save(tmp_path / "w.pt")
    assert pf.load(str(tmp_path / "w.pt")).model[-1].nc == 80
    with pytest.raises(ValueError, match="expected a detection model"):
        pf.load(_classifier(tmp_path))


@pytest.mark.parametrize("name", ["yolo11n-tscode.yaml", "yolo26n.yaml"])
def test_the_loss_alone_is_the_loss_of_a_step(name):
    net = pf.load(name, 3)
    data = training.drawn_batch(64, 2, torch.device("cpu"))
    heard = []
    original = net.loss
    net.loss = lambda batch, preds=None: heard.append(original(batch, preds)[0].detach()) or original(batch, preds)
    training.loss_step(net, 64, 2, torch.device("cpu"))()
    net.train()
    with torch.no_grad():
        expected = original(data)[0]
    torch.testing.assert_close(heard[0], expected)
    assert all(p.grad is None for p in net.parameters())


def _classifier(folder):
    YOLO("yolo11n-cls.yaml").save(folder / "c.pt")
    return str(folder / "c.pt")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"baseline": "yolo11n.yaml"}, "got no model="),
        ({"model": "yolo11n.yaml", "format": "onnx"}, "did you mean formats="),
        ({"model": "yolo11n.yaml", "formats": "onxx"}, "expected one of pytorch, cudagraph, onnx, openvino"),
        ({"model": "yolo11n.yaml", "imgsz": 3}, "imgsz=3"),
        ({"model": "yolo11n.yaml", "nc": 0}, "nc=0"),
        (
            {"model": "nobody.pt", "nc": 3},
            "nc=3: expected a model YAML, a checkpoint has the classes it was trained on",
        ),
        ({"model": "yolo11n.yaml", "formats": ""}, "formats=: expected one or more of pytorch, cudagraph, onnx, open"),
        ({"model": "yolo11n.yaml", "imgsz": 64, "train_batch": 1}, "train_batch=1: expected 2 or more"),
        ({"model": "yolo11n.yaml", "device": "foo"}, "device=foo"),
        ({"model": "README.md"}, "model=README.md: expected a checkpoint"),
        ({"model": 5}, "model=5: expected a checkpoint"),
        ({"model": True}, "model=True: expected a name or path"),
        ({"model": "yolo11n.yaml", "batches": None}, "batches=: expected one or more"),
        ({"model": "yolo11n.yaml", "json": "."}, "json=.: expected a file, got a folder"),
        ({"model": "yolov8n-world.yaml"}, "expected the YAML of a detection model, got one the host cannot build"),
    ],
)
def test_bad_arguments_are_explained(args, message):
    with pytest.raises(ValueError, match=message):
        pf.main(args)


def test_what_is_not_there_is_named_by_its_argument():
    for args, message in (
        ({"model": "yolo11n.yaml", "baseline": "none.pt"}, "baseline=none.pt: expected a file"),
        ({"model": "yolo11n.yaml", "baseline": "none.yaml"}, "baseline=none.yaml: expected a model YAML"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            pf.main(args)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(pf, "profile", lambda **_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"json=.*expected a place to write to"):
        pf.main({"model": "yolo11n.yaml", "json": str(tmp_path / "file/p.json")})


def test_the_head_is_timed_on_the_maps_it_really_reads():
    """Our head shows its hooks three maps but reads four (C2 first)."""
    net = pf.flops.deployed(pf.load("yolo11n-tscode.yaml", 3))
    maps = pf._head_input(net, torch.zeros(1, 3, 64, 64))()
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
    assert "forward" not in vars(pf._head(net))


@pytest.mark.gpu
def test_profile_on_cuda_uses_events_and_mixed_precision():
    report = pf.profile("yolo11n.yaml", "yolov8n.yaml", imgsz=64, rounds=6, batches=1)
    assert report["amp"]
    assert report["device"] == torch.cuda.get_device_name(0)
    assert report["training"]["peak_bytes"]["yolo11n"] > 0


@pytest.mark.gpu
def test_a_cuda_graph_computes_what_the_call_does():
    net = pf.flops.deployed(pf.load("yolo11n-tscode.yaml", 3).cuda()).half()
    image = torch.rand(1, 3, 64, 64, device="cuda").half()
    kept = []

    def call():
        kept[:] = [net(image)[0]]

    with torch.inference_mode():
        replay = pf._captured(call, image.device)
        image.copy_(torch.rand_like(image))
        replay()
        torch.testing.assert_close(kept[0], net(image)[0])
    report = pf.profile("yolo11n-tscode.yaml", "yolo11n.yaml", imgsz=64, rounds=6, batches=1, formats="cudagraph")
    assert [(r["format"], r["part"]) for r in report["latency"]] == [("cudagraph", "model"), ("cudagraph", "head")]
