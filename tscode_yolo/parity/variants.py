"""What can be exported: formats, what each needs installed, and variants of an export, in words short enough to type.

A variant is words joined by ``+``: ``opset12``, ``dynamic``, ``unslimmed``, ``half``, ``int8``, ``native``, ``nms``,
``end2end``, ``batch8``, ``480x640``; ``base`` is none of them: float32, fixed size, batch 1, boxes before NMS. The
host's own table (``export_formats`` in ultralytics/engine/exporter.py, read in 8.4.190) says which format takes what.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine import exporter

from tscode_yolo.config import unknown_name

# format -> modules an export needs and those running it needs beside them; what else is true of it stands below
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "torchscript": ((), ()),
    "onnx": (("onnx", "onnxslim"), ("onnxruntime",)),
    "openvino": (("openvino",), ()),
    "ncnn": (("ncnn", "pnnx"), ()),
    "mnn": (("onnx", "onnxslim", "MNN"), ()),
    "executorch": (("executorch",), ()),
    "litert": (("litert_torch",), ("ai_edge_litert",)),
    "saved_model": (("onnx", "onnxslim", "tensorflow", "onnx2tf", "tf_keras"), ()),
    "pb": (("onnx", "onnxslim", "tensorflow", "onnx2tf", "tf_keras"), ()),
    "paddle": (("x2paddle", "paddle"), ()),
    "coreml": (("coremltools",), ()),
    "engine": (("onnx", "onnxslim", "tensorrt"), ()),
}
PACKAGES = {"paddle": "paddlepaddle"}  # of modules that are not called as their package
ALL = ("opset12", "opset17", "unslimmed", "dynamic", "native", "half", "int8", "nms", "end2end", "batch8", "480x640")
NATIVE = ("openvino",)  # runtimes that compute in less than float32 of their own accord, on some processors
INT8_NEEDS = {"openvino": "nncf", "litert": "ai_edge_quantizer", "onnx": "onnxruntime"}
WORDS = re.compile(r"base|opset(?P<opset>\d+)|batch(?P<batch>[1-9]\d*)|(?P<height>\d+)x(?P<width>\d+)|\w+")
FLAGS = ("dynamic", "unslimmed", "native", "half", "int8", "nms", "end2end")


@dataclass(frozen=True)
class Variant:
    """One way to export a model to one format.

    Attributes:
        format: the host's name of it.
        name: the words it was asked for with.
        size: (height, width) of the input in pixels.
        batch: images an inference.
        opset: of ONNX, None for the host's choice.
        flags: among `FLAGS`.
    """

    format: str
    name: str
    size: tuple[int, int]
    batch: int = 1
    opset: int | None = None
    flags: frozenset[str] = frozenset()

    @property
    def precision(self) -> str:
        """What the numbers are judged as: float32, or something coarser that only AP can judge."""
        return next((f for f in ("int8", "half", "native") if f in self.flags), "float32")

    def arguments(self) -> dict[str, Any]:
        """The host's export arguments."""
        given: dict[str, Any] = {"format": self.format, "imgsz": list(self.size), "batch": self.batch}
        given |= {"dynamic": True} if "dynamic" in self.flags else {}
        given |= {"simplify": False} if "unslimmed" in self.flags else {}
        given |= {"opset": self.opset} if self.opset else {}
        given |= {"nms": True} if "nms" in self.flags else {}
        given |= {"nms": False} if "end2end" in self.flags and _chooses_branch() else {}
        bits = {"half": 16, "int8": 8}.get(self.precision)
        if bits:
            given |= {"quantize": bits} if "quantize" in DEFAULT_CFG_DICT else {self.precision: True}
        return given


def parse(fmt: str, words: str, imgsz: int) -> Variant:
    """A variant from its words.

    Args:
        fmt: one of `NEEDS`.
        words: e.g. ``base`` or ``dynamic+batch8``.
        imgsz: side of the square input where the words name no size.

    Raises:
        ValueError: an unknown word.
    """
    size, batch, opset, flags = (imgsz, imgsz), 1, None, set()
    for word in words.split("+"):
        match = WORDS.fullmatch(word)
        if match and match["opset"]:
            opset = int(match["opset"])
        elif match and match["batch"]:
            batch = int(match["batch"])
        elif match and match["height"]:
            size = int(match["height"]), int(match["width"])
        elif word in FLAGS:
            flags.add(word)
        elif word != "base":
            raise ValueError(unknown_name("variant", word, ["base", "opset17", "batch8", "480x640", *FLAGS, "all"]))
    return Variant(fmt, words, size, batch, opset, frozenset(flags))


def plan(fmt: str, variants: list[str], imgsz: int, end2end: bool) -> list[Variant]:
    """The variants of a format, base first.

    Args:
        fmt: one of `NEEDS`.
        variants: words each; ``all`` is base and every one of `ALL` that the host offers for this format; others
            may stand beside it.
        imgsz: as `parse`.
        end2end: whether the model has a branch that needs no NMS.
    """
    offered = ["base", *(w for w in ALL if not not_offered(parse(fmt, w, imgsz), end2end))]
    named = [words for words in variants if words != "all"]
    return [parse(fmt, words, imgsz) for words in dict.fromkeys([*(offered if "all" in variants else ()), *named])]


def not_offered(variant: Variant, end2end: bool) -> str | None:
    """Why the host has no such export, or None if it has."""
    table = exporter.export_formats()
    takes = dict(zip(table["Argument"], table["Arguments"], strict=True)).get(variant.format)
    if takes is None:
        return f"this Ultralytics has no format {variant.format}"
    words = {"dynamic": "dynamic", "unslimmed": "simplify", "nms": "nms"}
    missing = [flag for flag, argument in words.items() if flag in variant.flags and argument not in takes]
    missing += ["opset"] if variant.opset and variant.format != "onnx" else []
    missing += ["batch"] if variant.batch > 1 and "batch" not in takes else []
    missing += ["native"] if "native" in variant.flags and variant.format not in NATIVE else []
    for flag, formats in (("half", "FP16_FORMATS"), ("int8", "INT8_FORMATS")):
        known = getattr(exporter, formats, None)
        if flag in variant.flags and variant.format not in (known if known is not None else ()) and flag not in takes:
            missing.append(flag)
    if missing:
        return f"the host offers no {', '.join(missing)} for {variant.format}"
    if "end2end" in variant.flags and not end2end:
        return "the model has no end-to-end branch"
    if "end2end" in variant.flags and variant.format in ("ncnn", "executorch", "paddle"):
        return f"the host switches the end-to-end branch off for {variant.format}, which has no top-k"
    if "nms" in variant.flags and variant.format in ("ncnn", "executorch", "paddle", "litert", "pb"):
        return f"the host embeds no NMS in {variant.format}"
    return None


def cannot_run(variant: Variant, data: str | None) -> str | None:
    """Why this variant cannot be exported on this machine, or None if nothing is known against it."""
    modules = NEEDS[variant.format][0]
    if variant.precision == "int8":
        modules = (*modules, *((INT8_NEEDS[variant.format],) if variant.format in INT8_NEEDS else ()))
        if data is None and calibrates(variant):
            return "int8 is calibrated on real images: give data="
    if variant.format == "engine" and not torch.cuda.is_available():
        return "needs a CUDA device, there is none here"
    if variant.format == "coreml" and sys.platform == "win32":
        return "the host converts to CoreML on macOS and Linux only"
    if variant.format == "torchscript" and variant.precision == "half" and not torch.cuda.is_available():
        return "the host exports half-precision TorchScript on CUDA devices only, there is none here"
    return _lacking(modules)


def calibrates(variant: Variant) -> bool:
    """Whether the host calibrates this export on images; some formats only round the weights."""
    table = exporter.export_formats()
    return "data" in dict(zip(table["Argument"], table["Arguments"], strict=True)).get(variant.format, ())


def cannot_load(variant: Variant) -> str | None:
    """Why an exported file cannot be run on this machine, or None if nothing is known against it."""
    if variant.format == "coreml" and sys.platform != "darwin":
        return f"converted; CoreML models run on macOS only, this is {sys.platform}"
    return _lacking(NEEDS[variant.format][1])


def _lacking(modules: tuple[str, ...]) -> str | None:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    packages = " ".join(PACKAGES.get(m, m.replace("_", "-")) for m in missing)
    return f"not installed: {', '.join(missing)}; pip install {packages}" if missing else None


def _chooses_branch() -> bool:
    """Whether this host exports the end-to-end branch on nms=False; older ones always do where there is one."""
    return "quantize" in DEFAULT_CFG_DICT
