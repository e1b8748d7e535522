"""What happens inside each object before NMS: does the box with the best IoU also have the best score?

The paper's Figure 1 as numbers. The candidates of an object are the raw boxes that find it (IoU 0.5 or more) and
overlap no other object of its class more; all of them count, whatever their score. A lower bound would take in boxes of
unlabelled neighbours: at 0.1 the worst "disagreements" were confident boxes on the thing next to the object.

- rank: position of the best-IoU candidate when the candidates are ordered by their score for the object's class; 1 is
  perfect agreement. Boxes of equal score share the better rank.
- gap: best IoU minus the IoU of the top-scoring candidate.
- fate of the best box: kept, suppressed by NMS in favour of a box that is worse for this object, below the score
  floor, or cut by the limit on detections.
- spearman, pearson: correlation of score and IoU over the candidates (three or more, neither constant).
An object without candidates is uncovered: no ranking could find it, so it has no rank and no gap.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy.stats import rankdata

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.match import AREA_LIMITS, FOUND_IOU, Candidates, Ownership, pairwise_iou
from tscode_yolo.align.predict import Raw

OBJECT_ROW = np.dtype(
    [
        ("image", np.uint32),
        ("cls", np.uint16),
        ("size", np.uint8),  # 1 small, 2 medium, 3 large
        ("fate", np.uint8),
        ("missed", np.bool_),  # TIDE: no detection could be corrected to find it
        ("unfound", np.bool_),  # no true positive at IoU 0.5
        ("candidates", np.uint32),
        ("rank", np.float32),
        ("best_iou", np.float32),
        ("gap", np.float32),
        ("best_score", np.float32),
        ("top_score", np.float32),
        ("spearman", np.float32),
        ("pearson", np.float32),
        ("best", np.int32),  # anchor point of the best-IoU box, -1 without candidates
        ("top", np.int32),  # anchor point of the top-scoring box
    ]
)


class Fate(IntEnum):
    """What became of an object's best box."""

    UNCOVERED = 0
    KEPT = 1
    SUPPRESSED = 2
    BELOW_FLOOR = 3
    OVER_LIMIT = 4


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r, NaN with fewer than three values or a constant one."""
    if len(x) < 3:
        return float("nan")
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx @ dx) * (dy @ dy))
    return float(dx @ dy / scale) if scale > 0 else float("nan")


def size_of(areas: np.ndarray) -> np.ndarray:
    """(G,) 1 small, 2 medium, 3 large by COCO's areas; a border value goes to the smaller one."""
    return 1 + (areas > AREA_LIMITS[1, 1]).astype(np.uint8) + (areas > AREA_LIMITS[2, 1]).astype(np.uint8)


def examine(
    raw: Raw,
    objects: Objects,
    owned: Ownership,
    pairs: Candidates,
    survivors: np.ndarray,
    limit: int,
    nms_iou: float | None,
    conf: float,
) -> np.ndarray:
    """Describe every object of one image.

    Args:
        raw: the head's raw predictions.
        objects: the annotations; ignored ones get no row.
        owned: from :func:`match.own` on the clipped boxes.
        pairs: the candidates above the floor.
        survivors: indices into ``pairs`` after NMS, before the limit.
        limit: detections kept an image.
        nms_iou: threshold of NMS, None without NMS.
        conf: score floor.

    Returns:
        Rows of ``OBJECT_ROW``, one an object that counts; image, missed and unfound are left for the caller.
    """
    counted = np.flatnonzero(~objects.ignore)
    rows = np.zeros(len(counted), OBJECT_ROW)
    rows["cls"], rows["size"] = objects.labels[counted], size_of(objects.areas[counted])
    rows["best"] = rows["top"] = -1
    for name in ("rank", "gap", "spearman", "pearson", "best_score", "top_score"):
        rows[name] = np.nan
    clipped = raw.clipped
    for row, g in zip(rows, counted, strict=True):
        who, overlap = owned.by_class[int(row["cls"])]
        row["best_iou"] = overlap[who == g].max(initial=0)
        members = np.flatnonzero((who == g) & (overlap >= FOUND_IOU))
        row["candidates"] = len(members)
        if not len(members):
            continue
        iou, score = overlap[members], raw.scores[members, row["cls"]].astype(np.float64)
        best, top = iou.argmax(), score.argmax()
        row["best"], row["top"] = members[best], members[top]
        row["best_score"], row["top_score"] = score[best], score[top]
        row["spearman"] = correlation(rankdata(score), rankdata(iou))
        row["pearson"] = correlation(score, iou)
        row["rank"] = 1 + int((score > score[best]).sum())
        row["gap"] = iou[best] - iou[top]
        row["fate"] = _fate(row, objects.boxes[g], clipped, pairs, survivors, limit, nms_iou, conf)
    return rows


def _fate(
    row: np.void,
    truth: np.ndarray,
    clipped: np.ndarray,
    pairs: Candidates,
    survivors: np.ndarray,
    limit: int,
    nms_iou: float | None,
    conf: float,
) -> Fate:
    """Say what became of the best box of one object (see :class:`Fate`)."""
    if row["best_score"] <= conf:
        return Fate.BELOW_FLOOR
    same = survivors[pairs.cls[survivors] == row["cls"]]
    position = np.flatnonzero((pairs.anchor[survivors] == row["best"]) & (pairs.cls[survivors] == row["cls"]))
    if len(position):
        return Fate.KEPT if position[0] < limit else Fate.OVER_LIMIT
    if nms_iou is None:
        return Fate.OVER_LIMIT
    mine = np.flatnonzero((pairs.anchor == row["best"]) & (pairs.cls == row["cls"]))
    if not len(mine):  # beyond the host's limit on candidates
        return Fate.OVER_LIMIT
    close = same[pairwise_iou(pairs.boxes[mine], pairs.boxes[same])[0] > nms_iou]
    overlap = pairwise_iou(clipped[pairs.anchor[close]], truth[None])[:, 0]
    return Fate.SUPPRESSED if not len(close) or overlap.min() < row["best_iou"] else Fate.KEPT
