"""``tscode parity model=best.pt formats=all``: do the exported files compute what PyTorch computes?

Each format is exported and run on real images in a process of its own, and held against PyTorch: raw boxes and scores,
detections after NMS, AP, size and time. Works on any Ultralytics detection model, ours or not. Nothing is installed:
what is missing is named, and `examples/parity_all_formats.py` makes one environment a format. ``json=FILE`` and
``md=FILE`` keep the table. The exit code is 0 if an export passed and none failed; with ``strict=true`` a format that
was left out fails as well.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import ASSETS

from tscode_yolo import register
from tscode_yolo.config import unknown_name
from tscode_yolo.parity import exported, variants, worker
from tscode_yolo.parity.judge import FAIL, PASS, Tolerances, judge
from tscode_yolo.parity.measure import Setting
from tscode_yolo.parity.table import console_table, markdown
from tscode_yolo.study.profile import load
from tscode_yolo.verbs.arguments import (
    as_count,
    as_flag,
    as_list,
    as_number,
    as_side,
    as_text,
    take_only,
    weights_file,
    writable,
)
from tscode_yolo.verbs.loading import data_yaml
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json, write_text

KEYS = (
    *("model", "baseline", "formats", "variants", "data", "source", "count", "imgsz", "conf", "rounds", "timeout"),
    *("boxes", "scores", "ap", "strict", "json", "md"),
)


def main(args: dict[str, Any]) -> int:
    """Run the verb: print the table, write ``json=`` and ``md=``.

    Returns:
        0 if at least one export passed and none failed; with ``strict=true`` also none was left out; else 1.
    """
    given = take_only(args, KEYS, required=("model",))
    files = {k: writable(k, given.pop(k)) for k in ("json", "md") if given.get(k)}
    strict = as_flag("strict", given.pop("strict", False))
    given = {k: v for k, v in given.items() if k not in ("json", "md")}
    report = parity(**given)
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(console_table(report))
    if "json" in files:
        write_json(files["json"], report)
    if "md" in files:
        write_text(files["md"], markdown(report))
    verdicts = [row["verdict"] for row in report["rows"]]
    return 0 if PASS in verdicts and FAIL not in verdicts and (not strict or set(verdicts) == {PASS}) else 1


def parity(
    model: str,
    baseline: str | None = None,
    *,
    formats: Any = "torchscript,onnx",
    variants: Any = "base",
    data: str | None = None,
    source: str | None = None,
    count: int = 8,
    imgsz: int = 640,
    conf: float = 0.25,
    rounds: int = 20,
    timeout: float = 3600,
    boxes: float = 0.1,
    scores: float = 1e-3,
    ap: float = 0.5,
) -> dict[str, Any]:
    """Hold exports of a checkpoint against PyTorch.

    Args:
        model: checkpoint of a detection model, trained (random weights prove little); official ones are fetched.
        baseline: checkpoint of the stock head, put through the same.
        formats: the host's names joined by commas, or ``all``: torchscript, onnx, openvino, ncnn, mnn, executorch,
            litert, saved_model, pb, paddle, coreml, engine.
        variants: words, several of one export joined by ``+``, exports by commas, or ``all``: base (float32, fixed
            size, batch 1), half, int8, dynamic, nms, end2end, native, unslimmed, opset12, batch8, 480x640.
        data: data YAML: images from its validation split, AP on it, int8 calibrated on its training split.
        source: folder of images instead of `data`; without both, the two photographs the host ships.
        count: images to compare on.
        imgsz: side of the input in pixels, a multiple of 32; other sizes go into `variants`, as 480x640.
        conf: threshold of detections.
        rounds: of timing; 0 for none.
        timeout: seconds a format may take.
        boxes: largest error of a box's side in pixels with which a float32 export passes; of others AP decides.
        scores: the same for scores.
        ap: points of AP that coarser arithmetic may cost beyond what it costs the baseline.

    Returns:
        ``rows`` (see `tscode_yolo.parity.measure.measure`, with ``verdict``, ``reason`` and ``packages``), what was
        asked for, and ``provenance``. No path of this machine.

    Raises:
        ValueError, FileNotFoundError: an argument that makes no sense.
    """
    register.register()
    weights = weights_file("model", model)
    stock = weights_file("baseline", baseline) if baseline else None
    for file in filter(None, (weights, stock)):
        load(str(file))  # a clear error now rather than one in every process
    tolerances = Tolerances(as_number("boxes", boxes), as_number("scores", scores), as_number("ap", ap))
    conf, timeout = as_number("conf", conf, most=1.0), as_number("timeout", timeout, least=1)
    if data and source:
        raise ValueError(f"source={source}: expected no data= beside it, whose images are compared on; leave one out")
    labels = as_text("data", data) if data else None
    labels = str(Path(labels).expanduser().absolute()) if labels and Path(labels).expanduser().is_file() else labels
    images = pick_images(labels, source, as_count("count", count))
    if rounds == 1:
        raise ValueError("rounds=1: expected 2 or more, or 0 for no timing")
    setting = Setting(images, labels, conf, tolerances.scores, as_count("rounds", rounds, 0), as_side(imgsz), {})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for fmt, words in plan(formats, variants, setting.imgsz, exported.two_branches(weights)).items():
            request: dict[str, Any] = {"model": str(weights), "baseline": str(stock) if stock else None, "format": fmt}
            request |= {"variants": words, "setting": asdict(setting)}
            rows += worker.run(request, Path(folder) / fmt, timeout)
    for row in rows:
        row["verdict"], row["reason"] = judge(row, tolerances)
    return {
        "model": weights.name,
        "baseline": stock.name if stock else None,
        "imgsz": setting.imgsz,
        "conf": conf,
        "data": "/".join(Path(labels).parts[-2:]) if labels else None,
        "images": [Path(f).name for f in images],
        "tolerances": tolerances.as_dict(),
        "rows": rows,
        "provenance": provenance(),
    }


ARGUMENTS = parity  # for `tscode parity help`


def plan(formats: Any, words: Any, imgsz: int, end2end: bool) -> dict[str, list[str]]:
    """Format -> names of its variants.

    Raises:
        ValueError: an unknown format or variant, the closest one named.
    """
    wanted = as_list(formats)
    wanted = list(variants.NEEDS) if "all" in wanted else wanted
    if not wanted:
        raise ValueError(f"formats=: expected one or more of {', '.join(variants.NEEDS)}, or all")
    for fmt in wanted:
        if fmt not in variants.NEEDS:
            raise ValueError(unknown_name("format", str(fmt), [*variants.NEEDS, "all"]))
    listed = [str(w) for w in as_list(words)]  # 480 comes as a number
    return {fmt: [v.name for v in variants.plan(fmt, listed, imgsz, end2end)] for fmt in wanted}


def pick_images(data: str | None, source: str | None, count: int) -> list[str]:
    """Files of real images, evenly spaced over the sorted list.

    Raises:
        ValueError: there are none, or `data` is no data YAML.
        FileNotFoundError: `data` is not there.
    """
    if source:
        files = _images_in(Path(source).expanduser(), f"source={source}")
    elif data:
        split = data_yaml(data)["val"]
        files = [
            f
            for p in as_list(str(split) if isinstance(split, Path) else split)
            for f in _images_in(Path(p), f"data={data}")
        ]
    else:
        files = _images_in(Path(ASSETS), "the host's own images")
    if not files:
        where = f"source={source}" if source else f"data={data}" if data else "the host's own images"
        raise ValueError(f"{where}: expected images, got none")
    step = max(len(files) // count, 1)
    return files[::step][:count]


def _images_in(place: Path, named: str) -> list[str]:
    """Absolute paths of the images in a folder, or named in a text file; `named` says in errors which that was."""
    if place.is_file():
        try:
            lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as e:
            raise ValueError(f"{named}: expected a folder of images or a text file that lists them, got {e}") from None
        return sorted(str((place.parent / line).absolute()) for line in lines if line)
    return sorted(str(p.absolute()) for p in place.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS)
