from __future__ import annotations

import importlib.util

import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.engine import exporter

from tscode_yolo.parity import variants
from tscode_yolo.parity.variants import Variant, cannot_load, cannot_run, not_offered, parse, plan


def test_words_say_how_to_export():
    assert parse("onnx", "base", 640) == Variant("onnx", "base", (640, 640))
    v = parse("onnx", "opset17+dynamic+batch8+480x640+unslimmed", 320)
    assert (v.opset, v.batch, v.size, v.flags) == (17, 8, (480, 640), {"dynamic", "unslimmed"})
    wanted = {"format": "onnx", "imgsz": [480, 640], "batch": 8, "dynamic": True, "simplify": False, "opset": 17}
    assert v.arguments() == wanted


def test_an_unknown_word_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="unknown variant 'dynamik'; did you mean 'dynamic'"):
        parse("onnx", "dynamik", 640)


@pytest.mark.parametrize("fmt", variants.NEEDS)
def test_all_is_what_the_hosts_exporter_accepts(fmt):
    """Every variant that we say the host offers passes the host's own check of arguments, and nothing else is lost."""
    table = exporter.export_formats()
    takes = dict(zip(table["Argument"], table["Arguments"], strict=True)).get(fmt)
    offered = [v.name for v in plan(fmt, ["all"], 640, end2end=True)]
    if takes is None:  # an older host
        assert offered == ["base"]
        return
    for words in ("base", *variants.ALL):
        given = {k: v for k, v in parse(fmt, words, 640).arguments().items() if k not in ("format", "imgsz", "nms")}
        try:
            exporter.validate_args(fmt, get_cfg(overrides={"batch": 1, **given}), takes)
            accepted = True
        except AssertionError:
            accepted = False
        assert accepted or words not in offered, words
        if words in ("opset12", "opset17") and fmt != "onnx":
            continue  # the host takes an opset for what it makes from ONNX; we vary it in ONNX itself
        assert not accepted or words in offered or words in ("native", "nms", "end2end", "unslimmed"), words


def test_all_leaves_out_what_the_model_or_the_format_has_not():
    assert "end2end" in [v.name for v in plan("onnx", ["all"], 640, end2end=True)]
    assert "end2end" not in [v.name for v in plan("onnx", ["all"], 640, end2end=False)]
    assert [v.name for v in plan("executorch", ["all", "640x640"], 320, True)] == [
        "base",
        "batch8",
        "480x640",
        "640x640",
    ]
    assert not_offered(parse("ncnn", "end2end", 640), True) == (
        "the host switches the end-to-end branch off for ncnn, which has no top-k"
    )


def test_what_cannot_run_here_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cannot_run(parse("engine", "base", 640), None) == "needs a CUDA device, there is none here"
    assert cannot_run(parse("onnx", "int8", 640), None) == "int8 is calibrated on real images: give data="
    if "mnn" in exporter.export_formats()["Argument"]:
        assert "data=" not in (cannot_run(parse("mnn", "int8", 640), None) or "")  # it rounds the weights only
    assert "CUDA" in cannot_run(parse("torchscript", "half", 640), None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cannot_run(parse("ncnn", "base", 640), None) == "not installed: ncnn, pnnx; pip install ncnn pnnx"
    monkeypatch.setattr("sys.platform", "linux")
    assert "macOS only, this is linux" in cannot_load(parse("coreml", "base", 640))
