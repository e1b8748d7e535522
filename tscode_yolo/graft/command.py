"""``tscode graft weights=yolo11n.pt model=yolo11n-tscode.yaml images=FOLDER``: a trained TSCODE model without training.

Everything that fits moves from the weights, the account is printed; then the new head learns from images without labels
to say what the stock head says. Distilling a head into another is as in "Distilling the Knowledge in a Neural Network"
(arXiv:1503.02531), at the outputs before NMS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import init_seeds, select_device

from tscode_yolo import register
from tscode_yolo.graft.fit import Budget, fit
from tscode_yolo.graft.images import batches, find_images
from tscode_yolo.graft.pair import Pair
from tscode_yolo.verbs.arguments import (
    as_count,
    as_device,
    as_list,
    as_number,
    as_side,
    take_only,
    weights_file,
    writable,
)
from tscode_yolo.verbs.loading import checkpoint, data_yaml, with_options
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json, write_whole

KEYS = (
    "weights",
    "model",
    "options",
    "images",
    "minutes",
    "steps",
    "imgsz",
    "batch",
    "lr",
    "data",
    "seed",
    "workers",
    "device",
    "out",
)


def main(args: dict[str, Any]) -> int:
    """Run the verb; returns the exit code."""
    given = take_only(args, KEYS, required=("weights", "model", "images"))
    report = graft(**given)
    course = report["course"]
    print(
        f"{report['out']}: {course['images']} views of {report['files']} images in {course['minutes']:.1f} minutes"
        + (f", {course['unreadable']} times an unreadable file" if course["unreadable"] else "")
        + (", stopped before its time" if course["stopped"] else "")
    )
    if report["AP"]:
        stock, ours = report["AP"]["weights"], report["AP"]["grafted"]
        share = f" ({100 * ours / stock:.0f} % kept)" if stock else ""
        print(f"AP on {Path(str(given['data'])).name}: stock {stock:.3f}, grafted {ours:.3f}{share}")
    return 0


def graft(
    weights: str,
    model: str,
    images: Any,
    *,
    options: str | Mapping[str, Any] | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    imgsz: int = 640,
    batch: int = 8,
    lr: float = 0.01,
    data: str | None = None,
    seed: int = 0,
    workers: int = 0,
    device: str | int | None = None,
    out: str | None = None,
    verbose: bool = True,
) -> dict[str, Any]:
    """Make a TSCODE checkpoint from a stock one.

    Args:
        weights: checkpoint of a stock detection model, unfused; an official name is fetched if it is not here.
        model: model YAML of the same family and scale with a TSCODE head.
        options: of the head, over those of the YAML, as in its tscode: mapping; "{sce: false}" keeps the classification
            of the weights.
        images: folder, or several as a list or joined by commas; labels are not read.
        minutes: wall time of the fit, 10 unless steps are given.
        steps: optimiser steps instead: the same every time.
        imgsz: side of the views in pixels, a multiple of 32, at least 96 (a norm needs more than one value).
        batch: views a step.
        lr: highest rate of AdamW.
        data: data YAML; if given, both models' AP on its validation split is measured at the end.
        seed: of the new head, the order of images and the views.
        workers: processes that read images; 0 reads them in this one.
        device: as in the host; the first GPU if there is one.
        out: new checkpoint to write, MODEL-grafted.pt by default; a report OUT.json goes beside it.
        verbose: say what moved and show progress.

    Returns:
        The report: account, course of the fit, AP.

    Raises:
        ValueError, OSError: arguments that do not fit, before anything is fitted or written.
        FloatingPointError: the fit diverged; nothing is written.
    """
    register.register()
    source, target = weights_file("weights", weights), Path(str(out or f"{Path(model).stem}-grafted.pt"))
    if target.resolve() == source.resolve():
        raise ValueError(f"out={target}: expected another file than weights=, which would be lost")
    budget = _budget(minutes, steps)
    imgsz, batch, seed = as_side(imgsz, 96), as_count("batch", batch), as_count("seed", seed, 0)
    if as_number("lr", lr) == 0:
        raise ValueError("lr=0: expected a rate above 0")
    if target.suffix != ".pt":
        raise ValueError(f"out={target}: expected a name that ends in .pt")
    for file in (writable("out", target), target.with_suffix(".json")):
        if file.exists():
            raise FileExistsError(f"out={target}: {file.name} is there already; give another name, or move it away")
    workers = as_count("workers", workers, 0)
    if not str(model).endswith((".yaml", ".yml")):
        raise ValueError(f"model={model}: expected a model YAML; the new head starts fresh")
    found = data_yaml(data) if data else None
    files = find_images([Path(str(f)).expanduser() for f in as_list(images)])
    if device is not None:
        as_device(device)
    where = select_device("" if device is None else str(device), verbose=False)
    init_seeds(seed)
    teacher = checkpoint(source, "weights").float()
    if found and found["nc"] != len(teacher.names):
        raise ValueError(
            f"data={data}: expected the {len(teacher.names)} classes of weights=, whose AP is to be measured, got "
            f"{found['nc']}"
        )
    student: Any = DetectionModel(with_options(model, options), nc=len(teacher.names), verbose=False)
    pair = Pair(teacher.to(where), student.to(where))
    lines = pair.account.lines(source.name)
    if verbose:
        for line in lines:
            LOGGER.info(line)
    course = fit(pair, batches(files, imgsz, batch, workers, seed), budget, float(lr), where, quiet=not verbose)
    student.args = {**DEFAULT_CFG_DICT, "model": model, "task": "detect", "imgsz": imgsz}
    _save(student.cpu().eval(), target)
    report = {
        "out": target.name,
        "weights": source.name,
        "model": model,
        "options": student.yaml["tscode"],
        "files": len(files),
        "imgsz": imgsz,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "account": lines,
        "course": asdict(course),
        "AP": None,
        "provenance": provenance(),
    }
    write_json(target.with_suffix(".json"), report)  # before the AP, which may be interrupted
    if data:
        report["AP"] = {n: _ap(f, data, imgsz, where) for n, f in (("weights", source), ("grafted", target))}
        write_json(target.with_suffix(".json"), report)
    return report


ARGUMENTS = graft  # for `tscode graft help`


def _budget(minutes: Any, steps: Any) -> Budget:
    """The budget from what the user gave."""
    if steps is not None:
        steps = as_count("steps", steps)
    elif minutes is None:
        minutes = 10.0
    if minutes is not None and not (isinstance(minutes, (int, float)) and 0 < minutes < float("inf")):
        raise ValueError(f"minutes={minutes!r}: expected a number above 0")
    return Budget(minutes, steps)


def _save(net: Any, target: Path) -> None:
    """Write the checkpoint as the host does, whole or not at all."""
    yolo: Any = YOLO(net.yaml["yaml_file"], verbose=False)
    yolo.model, yolo.ckpt = net, {"train_args": net.args}
    write_whole(target, lambda p: yolo.save(p))


def _ap(weights: Path, data: str, imgsz: int, device: torch.device) -> float:
    """COCO-style AP (the host's mAP50-95, 0 to 1) on the validation split."""
    where = "cpu" if device.type == "cpu" else str(device.index or 0)
    workers = min(8, os.cpu_count() or 1)
    found = YOLO(str(weights)).val(
        data=data, imgsz=imgsz, device=where, workers=workers, plots=False, save=False, verbose=False
    )
    return float(found.box.map)
