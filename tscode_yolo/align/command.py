"""``tscode align model=A [baseline=B] data=...``: look at a detector's disagreement and write the report.

The folder it writes holds report.html (self-contained), report.json (every number) and the pictures as PNG.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER
from ultralytics.utils.files import increment_path

from tscode_yolo.align import curves, html, pictures
from tscode_yolo.align.collect import Settings, collect
from tscode_yolo.align.predict import Detector
from tscode_yolo.align.report import build
from tscode_yolo.align.source import open_source
from tscode_yolo.align.verdict import findings, headline
from tscode_yolo.verbs.arguments import (
    as_count,
    as_device,
    as_flag,
    as_number,
    as_side,
    as_text,
    existing,
    take_only,
    weights_file,
)
from tscode_yolo.verbs.storage import write_bytes, write_json, write_text

PATHS = ("model", "data", "baseline", "split", "annotations", "images", "results", "baseline_results", "out")
COUNTS = {
    "batch": 1,
    "max_det": 1,
    "max_rows": 1,
    "examples": 0,
    "cam": 0,
    "resamples": 0,
    "seed": 0,
    "limit": 1,
}


@dataclass(frozen=True)
class AlignArgs:
    """The keys of ``tscode align``.

    Attributes:
        model: checkpoint to look at.
        data: data YAML, or a COCO instances JSON with ``images``.
        baseline: a second checkpoint, shown beside the first and subtracted from it.
        split: part of the YAML.
        annotations: COCO JSON to use instead of the YAML's label files (crowds are then known).
        images: folder of the images of a COCO JSON.
        imgsz: long side of the input in pixels, a multiple of 32; by default what the (first) checkpoint was trained
            with, else 640.
        rect: pad like ``yolo val`` (True) or to a square.
        batch: images a forward pass.
        device: cpu, mps or a GPU's number.
        conf: score floor before NMS.
        iou: NMS threshold.
        max_det: detections an image.
        end2end: which branch of a two-branch head, true for one-to-one; by default as the model is set.
        limit: first so many images only.
        examples: worst disagreements drawn, per model.
        cam: objects for which gradient maps are drawn, per model.
        resamples: bootstrap draws; 0 for no intervals.
        seed: of the draws.
        max_rows: ceiling on the rows kept per table.
        results: results.csv of the model's training, or its folder.
        baseline_results: the same for the baseline.
        out: folder to write; a free ``runs/align`` by default.
        verbose: show progress and the findings.
    """

    model: str
    data: str
    baseline: str | None = None
    split: str = "val"
    annotations: str | None = None
    images: str | None = None
    imgsz: int | None = None
    rect: bool = True
    batch: int = 1
    device: str = "cpu"
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    end2end: bool | None = None
    limit: int | None = None
    examples: int = 8
    cam: int = 3
    resamples: int = 200
    seed: int = 0
    max_rows: int = 1_500_000
    results: str | None = None
    baseline_results: str | None = None
    out: str | None = None
    verbose: bool = True

    @classmethod
    def parse(cls, args: dict[str, Any]) -> AlignArgs:
        """Check keys and values.

        Args:
            args: key -> value, as the command line gives them.

        Returns:
            The arguments.

        Raises:
            ValueError: an unknown or missing key, or a value out of range; the message says what to do.
            FileNotFoundError: a file that is named is not there.
        """
        given = take_only(args, [f.name for f in fields(cls)], required=("model", "data"))
        typed: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        for key, value in typed.items():
            if key in PATHS:
                typed[key] = as_text(key, value)
            elif key in COUNTS:
                typed[key] = as_count(key, value, COUNTS[key])
            elif key == "imgsz":
                typed[key] = as_side(value)
            elif key in ("conf", "iou"):
                typed[key] = as_number(key, value, most=1.0)
            elif key in ("rect", "verbose", "end2end"):
                typed[key] = as_flag(key, value)
            else:
                typed[key] = str(as_device(value))
        found = cls(**typed)
        if found.baseline_results and not found.results:
            raise ValueError("expected results=... beside baseline_results=, got none")
        for key in ("model", "baseline"):
            if str(getattr(found, key)).endswith(".pt"):
                weights_file(key, getattr(found, key))  # is there, or is fetched
        if found.annotations:
            existing("annotations", found.annotations)
        return found


ARGUMENTS = AlignArgs  # for `tscode align help`


def short_names(paths: list[str]) -> list[str]:
    """Names that tell models apart: the file's, with its folders in front when two share one (best.pt, best.pt)."""
    parts = [Path(p).with_suffix("").parts for p in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]).lstrip("/") for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{n} ({i + 1})" for i, n in enumerate("/".join(p[-1:]) for p in parts)]


def align(args: AlignArgs) -> Path:
    """Run the whole command.

    Args:
        args: see :class:`AlignArgs`.

    Returns:
        The folder with report.html, report.json and the PNGs.

    Raises:
        KeyboardInterrupt: stopped by the user; its text says what was written.
    """
    paths = [args.model, *([args.baseline] if args.baseline else [])]
    names = short_names(paths)
    runs = _runs(args, names)  # a wrong path should not cost a pass over the data
    detectors, size_from = _open(args, paths)
    source = open_source(args.data, detectors[0].names, args.split, args.annotations, args.images, args.limit)
    folder = _folder(args.out)
    settings = Settings(args.conf, args.iou, args.max_det, args.batch, args.max_rows, args.examples)
    try:
        collection = collect(source, detectors, settings, progress=args.verbose)
        report = build(collection, settings, args.resamples, args.seed, progress=args.verbose)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was written") from None
    for model, name in zip(report["models"], names, strict=True):
        model["name"] = name
    report["headline"], report["findings"] = headline(report), findings(report)
    report["settings"] |= {"imgsz": detectors[0].imgsz, "imgsz_from": size_from}
    report["arguments"] = {k: _short(v) for k, v in asdict(args).items()}
    _clear(folder)
    # The numbers first: a picture may fail, or take so long that somebody loses patience.
    numbers = folder / "report.json"
    write_json(numbers, report)
    try:
        drawn = list(pictures.draw(pictures.plan(collection, report, names, args.cam, runs), args.verbose))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the numbers are complete in {numbers}; no page and no pictures were written"
        ) from None
    title = f"{' against '.join(names)} on {Path(args.data).parent.name}/{Path(args.data).name}, {args.split}"
    title += f", {detectors[0].imgsz} px"
    page = html.render(report, names, drawn, title)
    seen: Counter[str] = Counter()
    for group, picture in drawn:
        seen[group] += 1
        write_bytes(folder / f"{group}-{seen[group]}.png", picture.png)
    write_text(folder / "report.html", page)
    return folder


def _open(args: AlignArgs, paths: list[str]) -> tuple[list[Detector], str]:
    """The detectors, all at one input size, and who chose it: the command, the checkpoint, or nobody."""
    first = Detector(paths[0], args.device, args.imgsz, args.end2end, args.rect)
    rest = [Detector(p, args.device, first.imgsz, args.end2end, args.rect) for p in paths[1:]]
    if args.imgsz is not None:
        return [first, *rest], "given"
    source = "the training of the first model" if first.trained_imgsz else "the default, for the model names none"
    LOGGER.info(f"tscode align: imgsz={first.imgsz}, {source}")
    for other in rest:
        if other.trained_imgsz not in (None, first.imgsz):
            LOGGER.warning(f"the baseline was trained with imgsz={other.trained_imgsz}; both are shown {first.imgsz}")
    return [first, *rest], source


def _runs(args: AlignArgs, names: list[str]) -> dict[str, curves.Run]:
    """Name -> losses of the trainings that have some, the first model's first so that colours agree."""
    labels = [names[0], names[-1] if args.baseline else "baseline"]
    paths = [path for path in (args.results, args.baseline_results) if path]
    found = {label: curves.read_results(path) for label, path in zip(labels, paths)}
    return {label: run for label, run in found.items() if run is not None}


def _clear(folder: Path) -> None:
    """Make the folder; take away the page and the pictures of a run before, which would not fit the new numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").unlink(missing_ok=True)
    for group in pictures.GROUPS:
        for old in folder.glob(f"{group}-*.png"):
            old.unlink()


def _folder(out: str | None) -> Path:
    """The report's folder, not made yet; a place where none can be made should not cost a pass over the data."""
    folder = Path(out) if out else Path(increment_path(Path("runs") / "align", mkdir=False))
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"out={out}: expected a folder that can be made, but {there} is no folder to write in")
    return folder


def _short(value: Any) -> Any:
    """Paths without the folders of this machine."""
    return "/".join(Path(value).parts[-2:]) if isinstance(value, str) and Path(value).is_absolute() else value


def main(args: dict[str, Any]) -> int:
    """Entry of the ``align`` verb.

    Args:
        args: key -> value.

    Returns:
        0.

    Raises:
        ValueError, OSError: an argument that makes no sense, or a file that cannot be read.
        KeyboardInterrupt: stopped by the user; its text says what was written.
    """
    parsed = AlignArgs.parse(args)
    folder = align(parsed)
    if parsed.verbose:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        LOGGER.info(report["headline"])
        for line in report["findings"]:
            LOGGER.info(f"  - {line}")
    LOGGER.info(f"Report: {folder / 'report.html'}")
    return 0
