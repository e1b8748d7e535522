"""One variant measured: exported, run on real images, held against PyTorch; the stock head put through the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOGGER

from tscode_yolo.parity import exported
from tscode_yolo.parity.numbers import Differences, Matches, confident, suppress
from tscode_yolo.parity.variants import Variant, cannot_load, cannot_run, not_offered
from tscode_yolo.study import latency
from tscode_yolo.study.evaluation import evaluate

IOU = 0.7  # of NMS, the host's default
WITH_AP = ("base", "nms", "end2end")  # of the float32 variants; the others differ in form only


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants.

    Attributes:
        images: files of real images.
        data: data YAML with labels, or None.
        conf: threshold of detections.
        score: how far scores may differ, see `tscode_yolo.parity.numbers.Matches`.
        rounds: of timing; 0 for none.
        imgsz: side of the square input at which AP is measured.
        ap: checkpoint name and branch -> AP in PyTorch, percent; filled as it is needed.
    """

    images: list[str]
    data: str | None
    conf: float
    score: float
    rounds: int
    imgsz: int
    ap: dict[str, float]


def measure(weights: Path, baseline: Path | None, variant: Variant, setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure one variant.

    Args:
        weights: checkpoint of the model.
        baseline: checkpoint of the stock head, or None.
        variant: how to export.
        setting: the rest.
        folder: where the files go.

    Returns:
        A row: format, variant, precision, input (B, 3, H, W), ``model`` and ``baseline`` as `side` gives them,
        ``latency`` (ratios), ``skipped`` (why nothing was measured) or None.
    """
    row: dict[str, Any] = {
        "format": variant.format,
        "variant": variant.name,
        "precision": variant.precision,
        "input": [variant.batch, 3, *variant.size],
        "model": None,
        "baseline": None,
        "latency": None,
        "skipped": not_offered(variant, exported.two_branches(weights)) or cannot_run(variant, setting.data),
    }
    if row["skipped"]:
        return row
    row["model"], call = side(weights, variant, setting, folder / "model")
    other = None
    if baseline is not None and not not_offered(variant, exported.two_branches(baseline)):
        row["baseline"], other = side(baseline, variant, setting, folder / "baseline")
    if call is not None and setting.rounds:
        row["latency"] = timed(weights, call, other, variant, setting)
    return row


def side(
    weights: Path, variant: Variant, setting: Setting, folder: Path
) -> tuple[dict[str, Any], Callable[[Tensor], Tensor] | None]:
    """Export one model and hold it against its checkpoint.

    Returns:
        ``bytes``, ``boxes`` and ``scores`` (max and median difference: of the raw outputs, or of the paired detections
        where the output is final rows; None if nothing was paired there), ``detections``, ``ap``, ``unrunnable``
        (exported, but nothing here runs it) and ``error``; and the call into the runtime, if it runs.
    """
    found: dict[str, Any] = dict.fromkeys(("bytes", "boxes", "scores", "detections", "ap", "unrunnable", "error"))
    call = None
    try:
        file = exported.export(weights, variant, folder, data=setting.data, conf=setting.conf, iou=IOU)
        found["bytes"] = exported.size_of(file)
        found["unrunnable"] = cannot_load(variant)
        if not found["unrunnable"]:
            call, final = exported.open_exported(file, variant)
            found |= compare(weights, call, final, variant, setting)
            found["ap"] = average_precision(weights, file, variant, setting, folder)
    except Exception as e:  # whatever a converter or runtime throws is what the table has to say
        LOGGER.warning(f"{variant.format} {variant.name}: {type(e).__name__}: {e}")
        found["error"] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
    return found, call


def compare(
    weights: Path, call: Callable[[Tensor], Tensor], final: bool, variant: Variant, setting: Setting
) -> dict[str, Any]:
    """Differences of the raw outputs, or of the pairs if there is no raw output; detections paired; over all images."""
    differences, matches = Differences(), Matches(setting.conf, setting.score)
    embedded = "nms" in variant.flags  # then the reference is PyTorch's raw output with the host's NMS
    reference = exported.pytorch(weights, end2end=final and not embedded)
    for size in sizes(variant):
        images = exported.pictures(setting.images, size)
        images = images.repeat(-(-variant.batch // len(images)), 1, 1, 1)
        for batch in images.split(variant.batch):
            expected, got = reference(batch), call(batch)
            if final:
                rows = suppress(expected, setting.conf, IOU) if embedded else confident(expected, setting.conf)
                pairs = zip(rows, confident(got, setting.conf), strict=True)
            else:
                differences.add(expected, got)
                pairs = zip(suppress(expected, setting.conf, IOU), suppress(got, setting.conf, IOU), strict=True)
            for a, b in pairs:
                matches.add(a, b)
    found = matches.differences() if final else differences.summary()
    return {**(found or {"boxes": None, "scores": None}), "detections": matches.summary()}


def sizes(variant: Variant) -> list[tuple[int, int]]:
    """Input sizes to run at: the one exported for, and another if the file promises to take any."""
    height, width = variant.size
    return [variant.size, (max(height * 3 // 4 // 32, 1) * 32, width)] if "dynamic" in variant.flags else [variant.size]


def average_precision(
    weights: Path, file: Path, variant: Variant, setting: Setting, folder: Path
) -> dict[str, float] | None:
    """COCO AP in percent of the checkpoint and of the exported file, for `WITH_AP` and all that is coarser.

    Embedded NMS has cut the low scores off at `Setting.conf`; the checkpoint is validated at the same thresholds then.
    What the host's NMS does in a validation and the embedded one does not (an anchor point may count for several
    classes) stays as a difference, in the stock head's numbers as in ours. None without labels and for sizes other
    than the one AP is compared at.
    """
    plain = variant.name in WITH_AP or variant.precision != "float32"
    if not setting.data or not plain or variant.size != (setting.imgsz,) * 2:
        return None
    options: dict[str, Any] = {"nms": False} if "end2end" in variant.flags else {}
    options |= {"conf": setting.conf, "iou": IOU} if "nms" in variant.flags else {}
    key = f"{weights} {options}"
    same = {"imgsz": setting.imgsz, "device": "cpu"}
    if key not in setting.ap:
        setting.ap[key] = ap(weights, {**same, "batch": 4, **options}, setting, folder / "val")
    thresholds = {k: v for k, v in options.items() if k != "nms"}
    with exported.full_precision(variant):
        got = ap(file, {**same, "batch": variant.batch, **thresholds}, setting, folder / "val")
    return {"pytorch": setting.ap[key], "exported": got}


def ap(file: Path, arguments: dict[str, Any], setting: Setting, folder: Path) -> float:
    """COCO AP of a checkpoint or exported file on the validation split, percent; 0 where it finds nothing."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        return evaluate(file, Path(str(setting.data)), "val", arguments, folder, rect=False)["coco"]["AP"] or 0.0
    finally:
        LOGGER.setLevel(level)


def timed(
    weights: Path,
    call: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor] | None,
    variant: Variant,
    setting: Setting,
) -> dict[str, Any]:
    """Latency of the exported model as a ratio to PyTorch, and to the stock head in the same format; timed in turns."""
    images = exported.pictures(setting.images[:1], variant.size).repeat(variant.batch, 1, 1, 1)
    torch_call: Any = AutoBackend(str(weights), device=torch.device("cpu"), verbose=False)
    calls: Mapping[str, Callable[[], object]] = {
        "exported": lambda: call(images),
        "pytorch": lambda: _infer(torch_call, images),
        **({"stock": lambda: other(images)} if other is not None else {}),
    }
    times = latency.time_in_turns(calls, torch.device("cpu"), setting.rounds, warmup=3)
    return {
        "ms": {name: latency.describe(ms) for name, ms in times.items()},
        "to_pytorch": latency.ratio(times["exported"], times["pytorch"]),
        "to_stock": latency.ratio(times["exported"], times["stock"]) if "stock" in times else None,
    }


def _infer(net: Any, images: Tensor) -> object:
    with torch.inference_mode():
        return net(images)
