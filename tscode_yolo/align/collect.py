"""One pass over the data set: raw predictions in, bounded tables out.

Each image is read once, shown to every model, measured and forgotten. What stays is a fixed number of rows
(:mod:`store`), counters, and the few worst examples.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from ultralytics.utils import LOGGER, TQDM

from tscode_yolo.align.gallery import Finding, Gallery, Suspect
from tscode_yolo.align.match import SIZES, Candidates, Matches, candidates, match, own, pairwise_iou, suppress
from tscode_yolo.align.objects import OBJECT_ROW, examine, size_of
from tscode_yolo.align.oracle import ORACLES, rescore
from tscode_yolo.align.predict import Detector, Frame, Raw, batches
from tscode_yolo.align.source import Sample, Source
from tscode_yolo.align.store import RowTable
from tscode_yolo.align.tide import Kind, diagnose

DETECTION_ROW = np.dtype(
    [
        ("image", np.uint32),
        ("cls", np.uint16),
        ("score", np.float32),
        ("tp", np.uint16, len(SIZES)),
        ("ignored", np.uint16, len(SIZES)),
        ("iou", np.float32, len(SIZES)),  # with the object matched at 0.5, else 0
        ("best_iou", np.float32),  # with the best object of its class, matched or not
        ("best_size", np.uint8),  # that object's size, 0 below an IoU of 0.1
        ("kind", np.uint8),
        ("repaired", np.int16),  # TIDE: the class in which it would be right, -1 if repairing removes it
        ("repaired_size", np.uint8),
    ]
)
ORACLE_ROW = np.dtype([DETECTION_ROW.descr[i] for i in range(5)])  # image, cls, score, tp, ignored
TINY_SIDE = 8.0  # input pixels: one cell of the finest usual level
SAME_PLACE = 0.9  # IoU above which two labels are taken for one object


@dataclass(frozen=True)
class Settings:
    """What decides which boxes are compared; the defaults are ``yolo val``'s.

    Attributes:
        conf: score floor of NMS.
        iou: threshold of NMS.
        max_det: detections kept an image.
        batch: images a forward pass.
        max_rows: detections kept for the metrics, per table (the ceiling on memory).
        examples: worst examples kept for the pictures, per model.
    """

    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    batch: int = 1
    max_rows: int = 1_500_000
    examples: int = 8


@dataclass
class Collector:
    """The tables of one model.

    Attributes:
        detections: rows after NMS.
        oracles: rows after NMS of each oracle's candidates.
        objects: one row an object.
        counts: of images and predictions.
    """

    detector: Detector
    settings: Settings
    detections: RowTable = field(init=False)
    oracles: dict[str, RowTable] = field(init=False)
    objects: RowTable = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    suspects: list[tuple[float, int, Suspect]] = field(default_factory=list)

    def __post_init__(self) -> None:
        limit = self.settings.max_rows
        self.detections = RowTable(DETECTION_ROW, limit, by="score")
        self.oracles = {name: RowTable(ORACLE_ROW, limit, by="score") for name in ORACLES}
        self.objects = RowTable(OBJECT_ROW, limit)

    def add(self, sample: Sample, raw: Raw) -> Finding:
        """Measure one image."""
        s, objects = self.settings, sample.objects
        nms_iou = None if self.detector.end2end else s.iou
        boxes = raw.clipped
        owned = own(boxes, objects)
        pairs = candidates(raw, s.conf)
        owner, overlap = owned.of(pairs)
        survivors = suppress(pairs, nms_iou)
        final = survivors[: s.max_det]
        rows = examine(raw, objects, owned, pairs, survivors, s.max_det, nms_iou, s.conf)
        found = match(boxes[pairs.anchor[final]], pairs.cls[final], objects)
        table, missed, unfound = self._detections(sample, boxes, pairs, final, found, (owner, overlap))
        rows["image"], rows["missed"], rows["unfound"] = sample.index, missed, unfound
        self.detections.add(table)
        self.objects.add(rows)
        for name, changed in rescore(pairs, owner, overlap, objects).items():
            self._add_oracle(name, changed, raw, sample)
        self.counts["candidates"] += len(pairs)
        self.counts["detections"] += len(final)
        self.counts["images_without_predictions"] += not len(final)
        return Finding(raw, objects, rows, pairs, final)

    def _detections(
        self,
        sample: Sample,
        boxes: np.ndarray,
        pairs: Candidates,
        final: np.ndarray,
        found: Matches,
        owned: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Build the detections' rows and remember the most confident background ones."""
        objects, placed = sample.objects, boxes[pairs.anchor[final]]
        kind, repaired, missed, unfound = diagnose(placed, pairs.cls[final], found, objects)
        table = np.zeros(len(final), DETECTION_ROW)
        table["image"], table["cls"], table["score"] = sample.index, pairs.cls[final], pairs.score[final]
        table["tp"], table["ignored"], table["iou"] = found.tp, found.ignored, found.iou
        table["kind"] = kind
        owner, table["best_iou"] = (part[final] for part in owned)
        sizes = np.append(size_of(objects.areas), 0)  # the last one for -1, no object
        table["best_size"], table["repaired_size"] = sizes[owner], sizes[repaired]
        table["repaired"] = np.append(objects.labels, -1)[repaired]
        for d in np.flatnonzero(kind == Kind.BACKGROUND)[: self.settings.examples]:
            suspect = Suspect(sample.path, placed[d], int(table["cls"][d]), float(table["score"][d]))
            heapq.heappush(self.suspects, (suspect.score, -len(self.suspects) - self.counts["suspects"], suspect))
            self.counts["suspects"] += 1
            if len(self.suspects) > self.settings.examples:
                heapq.heappop(self.suspects)
        keep = ~objects.ignore
        return table, missed[keep], unfound[keep]

    def _add_oracle(self, name: str, pairs: Candidates, raw: Raw, sample: Sample) -> None:
        final = suppress(pairs, self.settings.iou)[: self.settings.max_det]
        height, width = raw.size
        boxes = np.clip(pairs.boxes[final], 0, np.array([width, height, width, height]))
        found = match(boxes, pairs.cls[final], sample.objects)
        table = np.zeros(len(final), ORACLE_ROW)
        table["image"], table["cls"], table["score"] = sample.index, pairs.cls[final], pairs.score[final]
        table["tp"], table["ignored"] = found.tp, found.ignored
        self.oracles[name].add(table)


def check_labels(sample: Sample, frame: Frame, counts: Counter[str]) -> None:
    """Count what makes labels hard to learn from: repeats, contradictions, objects below one cell."""
    objects = sample.objects
    plain = ~objects.ignore
    counts["objects"] += int(plain.sum())
    counts["crowd_regions"] += int(objects.crowd.sum())
    counts["ignored_objects"] += int((objects.ignore & ~objects.crowd).sum())
    boxes, labels = objects.boxes[plain], objects.labels[plain]
    counts["objects_without_area"] += int((objects.areas[plain] <= 0).sum())
    sides = (boxes[:, 2:] - boxes[:, :2]) * np.array(frame.gain)
    counts["tiny_objects"] += int((np.sqrt(np.clip(sides.prod(1), 0, None)) < TINY_SIDE).sum())
    close = np.triu(pairwise_iou(boxes, boxes) > SAME_PLACE, 1)
    same = labels[:, None] == labels
    counts["repeated_labels"] += int((close & same).sum())
    counts["contradicting_labels"] += int((close & ~same).sum())


@dataclass
class Collection:
    """Everything one pass leaves behind."""

    collectors: list[Collector]
    gallery: Gallery
    source: Source
    labels: Counter[str]
    class_objects: Counter[int]


def collect(source: Source, detectors: list[Detector], settings: Settings, progress: bool = True) -> Collection:
    """Walk through the data set once, with one or several models.

    Args:
        source: the images and annotations.
        detectors: models of one image size and padding; each sees the same input.
        settings: see :class:`Settings`.
        progress: show a bar.

    Returns:
        The tables, the worst examples and the counts.

    Raises:
        ValueError: the detectors disagree on image size, stride or classes.
    """
    first = detectors[0]
    for other in detectors[1:]:
        if (other.imgsz, other.stride, other.rect) != (first.imgsz, first.stride, first.rect):
            raise ValueError("expected models with one image size and stride, got " + _inputs(detectors))
        if list(other.names.values()) != list(first.names.values()):
            raise ValueError(
                f"expected models with the same classes, got {len(first.names)} and {len(other.names)} "
                f"({first.name} and {other.name}); compare models trained on one data set"
            )
    collectors = [Collector(d, settings) for d in detectors]
    gallery = Gallery(len(detectors), settings.examples)
    labels: Counter[str] = Counter()
    class_objects: Counter[int] = Counter()
    with TQDM(total=len(source), desc="align", disable=not progress) as bar:
        for group in batches(source, first.imgsz, first.stride, first.rect, settings.batch):
            samples, images, frames = (list(part) for part in zip(*group, strict=True))
            raws = [d(images, frames) for d in detectors]
            for i, sample in enumerate(samples):
                check_labels(sample, frames[i], labels)
                class_objects.update(sample.objects.labels[~sample.objects.ignore].tolist())
                gallery.offer(sample, [c.add(sample, r[i]) for c, r in zip(collectors, raws, strict=True)])
            bar.update(len(samples))
    left_out = source.counts["corrupt_images"] + source.counts["corrupt_labels"]
    if left_out and source.counts["images_read"]:
        more = f"; and {left_out - 5} more, see the report" if left_out > 5 else ""
        LOGGER.warning(f"{left_out} images are left out: {'; '.join(source.problems[:5])}{more}")
    if not source.counts["images_read"]:
        raise ValueError("expected at least one readable image, got none: " + "; ".join(source.problems[:3]))
    return Collection(collectors, gallery, source, labels, class_objects)


def _inputs(detectors: list[Detector]) -> str:
    return ", ".join(f"{d.name}: {d.imgsz} / {d.stride}" for d in detectors)
