"""Which box belongs to which object: IoU, NMS, COCO's matching, and who ranks first inside each object.

Sources: COCO evaluation (pycocotools ``COCOeval.evaluateImg`` for the rules of ignored and crowd regions); the host's
``non_max_suppression`` (multi-label candidates, class offset, limits); TIDE (arXiv:2008.08115) for the two IoU
thresholds, 0.5 for "found" and 0.1 for "about this object at all".
Letters: A anchor points, D detections, G annotations, K classes, R size ranges, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.predict import Raw

FOUND_IOU = 0.5
ABOUT_IOU = 0.1
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZES = ("all", "small", "medium", "large")
AREA_LIMITS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # pixels squared, COCO's
ALL_BITS = np.uint16((1 << len(IOU_THRESHOLDS)) - 1)
MAX_CANDIDATES = 30000  # the host's max_nms
CLASS_OFFSET = 7680.0  # the host's max_wh: shifts classes apart so that one NMS serves all


def pairwise_iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU of every pair; against a crowd, the share of the first box inside it (COCO's rule).

    Args:
        a: (N, 4) xyxy in pixels.
        b: (M, 4) xyxy in pixels.
        crowd: (M,) bool.

    Returns:
        (N, M), 0 where a box has no area.
    """
    wide = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    high = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    inter = np.clip(wide, 0, None) * np.clip(high, 0, None)
    area_a = ((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]))[:, None]
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = area_a + area_b - inter
    if crowd is not None:
        union = np.where(crowd, area_a, union)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """(box, class) pairs above the score floor, best score first, as the host feeds to NMS. N = pairs.

    Attributes:
        anchor: (N,) index of the anchor point.
        cls: (N,) class.
        score: (N,)
        boxes: (N, 4) xyxy in original pixels, not clipped.
    """

    anchor: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def sorted(self) -> Candidates:
        """Best score first, at most ``MAX_CANDIDATES``; equal scores keep their order."""
        order = np.argsort(-self.score, kind="stable")[:MAX_CANDIDATES]
        return Candidates(self.anchor[order], self.cls[order], self.score[order], self.boxes[order])


def candidates(raw: Raw, conf: float) -> Candidates:
    """Every (box, class) pair with a score above ``conf``: the host's multi-label rule."""
    anchor, cls = np.nonzero(raw.scores > conf)
    return Candidates(anchor, cls, raw.scores[anchor, cls].astype(np.float64), raw.boxes[anchor]).sorted()


def suppress(pairs: Candidates, iou: float | None) -> np.ndarray:
    """Class-wise NMS on candidates sorted by score.

    Args:
        pairs: sorted candidates.
        iou: boxes overlapping a better one by more are dropped; None keeps all (end-to-end heads).

    Returns:
        Indices of the survivors, best first, before any limit on their number.
    """
    if iou is None or not len(pairs):
        return np.arange(len(pairs))
    scores = torch.from_numpy(pairs.score.astype(np.float32))
    if np.ptp(pairs.boxes) < CLASS_OFFSET:
        shifted = torch.from_numpy((pairs.boxes + pairs.cls[:, None] * CLASS_OFFSET).astype(np.float32))
        return nms(shifted, scores, iou).numpy()
    # Larger images: the shift would lay one class over another, and a larger one costs float32 its digits.
    boxes = torch.from_numpy(pairs.boxes.astype(np.float32))
    classes = [np.flatnonzero(pairs.cls == c) for c in np.unique(pairs.cls)]
    return np.sort(np.concatenate([rows[nms(boxes[rows], scores[rows], iou).numpy()] for rows in classes]))


@dataclass(frozen=True, slots=True)
class Ownership:
    """For each class with objects: which object each anchor point's box overlaps most, and by how much.

    Attributes:
        by_class: class -> ((A,) index of the annotation, (A,) IoU with it); ignored annotations own nothing.
    """

    by_class: dict[int, tuple[np.ndarray, np.ndarray]]

    def of(self, pairs: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """For candidates: (N,) owning annotation of the same class (-1 for none) and (N,) IoU with it."""
        owner, iou = np.full(len(pairs), -1), np.zeros(len(pairs))
        for cls, (who, overlap) in self.by_class.items():
            mine = pairs.cls == cls
            owner[mine], iou[mine] = who[pairs.anchor[mine]], overlap[pairs.anchor[mine]]
        owner[iou < ABOUT_IOU] = -1
        return owner, iou


def own(boxes: np.ndarray, objects: Objects) -> Ownership:
    """Give every box, for each class present, to the object of that class it overlaps most.

    Args:
        boxes: (A, 4) xyxy in original pixels, clipped.
        objects: G annotations.

    Returns:
        The ownership; equal IoUs go to the first annotation.
    """
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for cls in np.unique(objects.labels[~objects.ignore]):
        members = np.flatnonzero((objects.labels == cls) & ~objects.ignore)
        iou = pairwise_iou(boxes, objects.boxes[members])
        best = iou.argmax(1)
        found[int(cls)] = (members[best], iou[np.arange(len(boxes)), best])
    return Ownership(found)


@dataclass(frozen=True, slots=True)
class Matches:
    """COCO's verdict on each detection, for each size range, one bit an IoU threshold (bit 0 is 0.50).

    Attributes:
        tp: (D, R) uint16, matched to an object that counts.
        ignored: (D, R) uint16, neither right nor wrong.
        iou: (D, R) IoU with the object matched at 0.50, else 0.
        gt: (D,) index of the object matched at 0.50 over all sizes, else -1.
    """

    tp: np.ndarray
    ignored: np.ndarray
    iou: np.ndarray
    gt: np.ndarray


def match(boxes: np.ndarray, cls: np.ndarray, objects: Objects) -> Matches:
    """Match detections to annotations as ``COCOeval.evaluateImg`` does, all thresholds and sizes at once.

    Args:
        boxes: (D, 4) xyxy in original pixels, best score first.
        cls: (D,) class of each.
        objects: G annotations.

    Returns:
        The matches. Differs from pycocotools: an annotation marked ``ignore`` without ``iscrowd`` is ignored.
    """
    n, r = len(boxes), len(SIZES)
    out = Matches(np.zeros((n, r), np.uint16), np.zeros((n, r), np.uint16), np.zeros((n, r)), np.full(n, -1))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    outside = (areas[:, None] < AREA_LIMITS[:, 0]) | (areas[:, None] > AREA_LIMITS[:, 1])  # [D, R]
    out.ignored[outside] = ALL_BITS
    for c in np.intersect1d(cls, objects.labels):
        rows, members = np.flatnonzero(cls == c), np.flatnonzero(objects.labels == c)[::-1]  # ties go to the last
        _match_class(rows, members, boxes, objects, out)
    return out


def _match_class(rows: np.ndarray, members: np.ndarray, boxes: np.ndarray, objects: Objects, out: Matches) -> None:
    """Match the detections ``rows`` to the annotations ``members`` of one class, writing into ``out``."""
    iou = pairwise_iou(boxes[rows], objects.boxes[members], objects.crowd[members])  # [d, g]
    area = objects.areas[members]
    ignore = objects.ignore[members] | (area < AREA_LIMITS[:, :1]) | (area > AREA_LIMITS[:, 1:])  # [R, g]
    taken = np.zeros((len(SIZES), len(IOU_THRESHOLDS), len(members)), bool)  # [R, T, g]
    crowd, weights = objects.crowd[members], (1 << np.arange(len(IOU_THRESHOLDS))).astype(np.uint16)
    ranges, levels = np.indices(taken.shape[:2])
    for d in np.flatnonzero(iou.max(1) >= FOUND_IOU):
        free = (~taken | crowd) & (iou[d] >= IOU_THRESHOLDS[:, None])  # [R, T, g]
        merit = np.where(free, iou[d] + 2.0 * ~ignore[:, None], -1.0)  # an object that counts beats any ignored one
        choice = merit.argmax(2)  # [R, T]
        hit = merit.max(2) >= 0
        taken[ranges[hit], levels[hit], choice[hit]] = True
        skipped = hit & ignore[ranges, choice]
        row = rows[d]
        out.tp[row] = ((hit & ~skipped) * weights).sum(1)
        unmatched = np.where(out.ignored[row][:, None] & weights, True, False) & ~hit
        out.ignored[row] = ((skipped | unmatched) * weights).sum(1)
        found = hit[:, 0] & ~skipped[:, 0]
        out.iou[row, found] = iou[d, choice[found, 0]]
        if found[0]:
            out.gt[row] = members[choice[0, 0]]
