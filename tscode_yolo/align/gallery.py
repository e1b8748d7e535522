"""What is kept for the pictures: the worst disagreements of each model, in bounded memory.

The numbers look at the raw boxes that find an object (IoU 0.5 or more, :mod:`objects`). The pictures look wider: at
every raw box that is about the object (IoU 0.1 or more, and no other object of its class overlapped more), so that a
badly placed box with a high score is seen. Such a box may belong to a neighbour that nobody labelled; that is for the
eye to judge, and the reason why the numbers leave it out.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.match import ABOUT_IOU, Candidates, own
from tscode_yolo.align.predict import Raw
from tscode_yolo.align.source import Sample

SHOWN = 3  # boxes of the best scores in a picture
WORTH_SHOWING = 0.1  # an object whose top score is lower was hardly seen: a miss, not a disagreement


@dataclass(frozen=True, slots=True)
class View:
    """One model's look at one object, for the pictures. D = its final detections.

    Attributes:
        row: the object's row of ``OBJECT_ROW``.
        best: (4,) xyxy of the best-IoU raw box, or None when no box finds the object.
        winner: (6,) xyxy, score, IoU of the top-scoring box that finds the object, the one the winner gap is measured
            from; None when no box finds it.
        top: (3, 6) xyxy, score, IoU of the three best scores among the boxes about the object (fewer if there are
            fewer).
        final: (D, 6) xyxy, score, class after NMS.
    """

    row: np.void
    best: np.ndarray | None
    winner: np.ndarray | None
    top: np.ndarray
    final: np.ndarray


@dataclass(frozen=True, slots=True)
class Example:
    """A disagreement worth a picture: where it is, and what each model made of it (in the order of the models)."""

    path: Path
    truth: np.ndarray
    label: int
    others: np.ndarray
    views: tuple[View, ...]
    worst_for: int


@dataclass(slots=True)
class Suspect:
    """A confident detection on no label: perhaps an object nobody labelled."""

    path: Path
    box: np.ndarray
    label: int
    score: float


@dataclass(slots=True)
class Finding:
    """What one model makes of one image, kept only until the next image."""

    raw: Raw
    objects: Objects
    rows: np.ndarray
    pairs: Candidates
    final: np.ndarray

    def view(self, number: int) -> View:
        """The look at the ``number``-th object that counts."""
        g, row = np.flatnonzero(~self.objects.ignore)[number], self.rows[number]
        boxes, final = self.raw.clipped, self.final
        shown = np.column_stack([boxes[self.pairs.anchor[final]], self.pairs.score[final], self.pairs.cls[final]])
        who, overlap = own(boxes, self.objects).by_class[int(row["cls"])]
        scores = self.raw.scores[:, row["cls"]]
        about = np.flatnonzero((who == g) & (overlap >= ABOUT_IOU))
        order = about[np.argsort(-scores[about], kind="stable")[:SHOWN]]

        def told(anchors: np.ndarray) -> np.ndarray:
            return np.column_stack([boxes[anchors], scores[anchors], overlap[anchors]])

        if row["best"] < 0:
            return View(row.copy(), None, None, told(order), shown)
        return View(row.copy(), boxes[row["best"]], told(np.array([row["top"]]))[0], told(order), shown)


class Gallery:
    """The worst disagreements, at most ``size`` a model and one an image, in bounded memory."""

    def __init__(self, models: int, size: int) -> None:
        self.size, self._count = size, 0
        self._heaps: list[list[tuple[float, int, Example]]] = [[] for _ in range(models)]

    def offer(self, sample: Sample, findings: list[Finding]) -> None:
        """Keep the image's worst object of each model if it is among the worst so far."""
        for m, finding in enumerate(findings):
            rows = finding.rows
            gap = np.where(rows["top_score"] >= WORTH_SHOWING, np.nan_to_num(rows["gap"]), 0)
            if self.size < 1 or not len(gap) or gap.max() <= 0:
                continue
            heap, worst = self._heaps[m], int(gap.argmax())
            if len(heap) == self.size and gap[worst] <= heap[0][0]:
                continue
            self._count += 1
            g = np.flatnonzero(~sample.objects.ignore)[worst]
            others = np.delete(sample.objects.boxes, g, axis=0)
            views = tuple(f.view(worst) for f in findings)
            label = int(sample.objects.labels[g])
            example = Example(sample.path, sample.objects.boxes[g], label, others, views, m)
            heapq.heappush(heap, (float(gap[worst]), -self._count, example))
            if len(heap) > self.size:
                heapq.heappop(heap)

    def worst(self, model: int) -> list[Example]:
        """The examples of one model, worst first."""
        return [e for _, _, e in sorted(self._heaps[model], key=lambda entry: (-entry[0], -entry[1]))]
