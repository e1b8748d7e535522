"""Average precision and LRP from the tables, for many weightings of the images at once.

Every function takes W (B, images): how often each image counts in each of B replicates. One row of ones is the value
itself; rows drawn at random are the bootstrap (Efron, 1979), which resamples images because boxes of one image are not
independent. So an interval comes out of the very code that gives the value.

AP: COCO's (pycocotools ``COCOeval.accumulate``): precision made monotone, read at 101 recalls, ignored rows absent.
LRP: Oksuz et al., "One Metric to Measure Them All", arXiv:2011.10772: at a score threshold, (sum over true positives of
(1 - IoU) / (1 - 0.5) + false positives + false negatives) / (all three counts). oLRP is the least over thresholds, and
the score where it is reached is the class's optimal threshold. The paper scans thresholds in steps of 0.01; here every
score present is one.
Letters: B replicates, N rows, K classes, T IoU thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tscode_yolo.align.match import ALL_BITS, FOUND_IOU, IOU_THRESHOLDS

RECALLS = np.linspace(0, 1, 101)
_CHUNK = 4_000_000  # weights gathered at once, bounds the memory of long tables


def interpolate(tp: np.ndarray, seen: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO's 101-point AP from cumulative counts at the true positives.

    Args:
        tp: (B, M) true positives up to and with each.
        seen: (B, M) detections up to and with each.
        positives: (B,) objects to find.

    Returns:
        (B,) AP, NaN where there is nothing to find.
    """
    if tp.shape[1] == 0:
        return np.where(positives > 0, 0.0, np.nan)
    precision = np.divide(tp, seen, out=np.zeros_like(tp), where=seen > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = tp / np.where(positives > 0, positives, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")  # recalls read up to each true positive: it gives the rest
    points = np.diff(reached, axis=1, prepend=0)
    return np.where(positives > 0, (precision * points).sum(1) / len(RECALLS), np.nan)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The rows of one class and size range, best score first, without the ignored ones and the tail under the last hit.

    Neither AP nor LRP looks below the lowest score that hits something, whatever the weights.

    Attributes:
        image: (N,) number of the image.
        score: (N,)
        tp: (N,) uint16 bits, one an IoU threshold.
        skip: (N,) uint16 bits: thresholds at which the row is ignored all the same.
        iou: (N,) IoU with the object matched at 0.5; zeros where the rows have none.
    """

    image: np.ndarray
    score: np.ndarray
    tp: np.ndarray
    skip: np.ndarray
    iou: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, size: int, placed: bool = False) -> Ranked:
        """Rank the rows of one class.

        Args:
            rows: of ``DETECTION_ROW`` or ``ORACLE_ROW``.
            size: index into ``SIZES``.
            placed: keep the IoUs, which only LRP needs; the rows are then of ``DETECTION_ROW``.

        Returns:
            The ranking; equal scores keep the order of the images, as pycocotools does.
        """
        hits = rows["score"][rows["tp"][:, size] != 0]
        lowest = hits.min() if len(hits) else np.inf
        rows = rows[(rows["ignored"][:, size] != ALL_BITS) & (rows["score"] >= lowest)]
        rows = rows[np.argsort(-rows["score"], kind="stable")]
        iou = rows["iou"][:, size].copy() if placed else np.broadcast_to(np.float32(0), len(rows))
        return cls(  # copies: a view would keep all the rows in memory
            image=rows["image"].copy(),
            score=rows["score"].copy(),
            tp=rows["tp"][:, size].copy(),
            skip=rows["ignored"][:, size].copy(),
            iou=iou,
        )

    def __len__(self) -> int:
        return len(self.score)


def average_precision(
    ranked: Ranked, positives: np.ndarray, weights: np.ndarray, levels: int = len(IOU_THRESHOLDS)
) -> np.ndarray:
    """AP of one class at the first ``levels`` IoU thresholds.

    Args:
        ranked: the detections.
        positives: (B,) weighted number of objects.
        weights: (B, images) how often each image counts.
        levels: T, from 0.50 on in steps of 0.05.

    Returns:
        (B, T), NaN where there is no object.
    """
    step = max(1, _CHUNK // max(len(ranked), 1))
    parts = [
        _average_precision(ranked, positives[b : b + step], weights[b : b + step], levels)
        for b in range(0, len(weights), step)
    ]
    return np.concatenate(parts)


def _average_precision(ranked: Ranked, positives: np.ndarray, weights: np.ndarray, levels: int) -> np.ndarray:
    out = np.empty((len(weights), levels))
    ever = np.flatnonzero(ranked.tp)
    seen = np.cumsum(weights[:, ranked.image], axis=1, dtype=np.float64)[:, ever]
    weight = weights[:, ranked.image[ever]]
    partly = np.flatnonzero(ranked.skip)
    for t in range(levels):
        true = np.flatnonzero(ranked.tp[ever] >> t & 1)  # only there can recall rise
        hits, count = ever[true], seen[:, true]
        gone = partly[(ranked.skip[partly] >> t & 1).astype(bool)]
        if len(gone):
            before = np.cumsum(weights[:, ranked.image[gone]], axis=1, dtype=np.float64)
            before = np.concatenate([np.zeros((len(weights), 1)), before], axis=1)
            count = count - before[:, np.searchsorted(gone, hits)]
        tp = np.cumsum(weight[:, true], axis=1, dtype=np.float64)
        out[:, t] = interpolate(tp, count, positives)
    return out


def lrp(ranked: Ranked, positives: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """oLRP, its three components and the optimal threshold of one class.

    Args:
        ranked: the detections, with their IoUs.
        positives: (B,) weighted number of objects.
        weights: (B, images).

    Returns:
        (B, 5): oLRP, localisation (mean 1 - IoU of true positives), false positives (1 - precision), false negatives
        (1 - recall), threshold. Without any true positive: 1, NaN, NaN, 1, NaN; without objects all NaN.
    """
    step = max(1, _CHUNK // max(len(ranked), 1))
    parts = [_lrp(ranked, positives[b : b + step], weights[b : b + step]) for b in range(0, len(weights), step)]
    return np.concatenate(parts)


def _lrp(ranked: Ranked, positives: np.ndarray, weights: np.ndarray) -> np.ndarray:
    out = np.full((len(weights), 5), np.nan)
    out[:, 0] = out[:, 3] = np.where(positives > 0, 1.0, np.nan)
    counted = np.flatnonzero((ranked.skip & 1) == 0)
    hit = (ranked.tp[counted] & 1).astype(np.float64)
    if not hit.any():
        return out
    w, score = weights[:, ranked.image[counted]].astype(np.float64), ranked.score[counted]
    ends = np.searchsorted(-score, -score[hit > 0], side="right") - 1  # a threshold takes all rows of its score
    tp = np.cumsum(w * hit, axis=1)[:, ends]
    fp = np.cumsum(w, axis=1)[:, ends] - tp
    loc = np.cumsum(w * hit * (1 - ranked.iou[counted]), axis=1)[:, ends]
    fn = positives[:, None] - tp
    total = tp + fp + fn
    value = np.divide(loc / (1 - FOUND_IOU) + fp + fn, total, out=np.ones_like(total), where=(total > 0) & (tp > 0))
    best = value.argmin(1)
    rows = np.arange(len(weights))
    found = (tp[rows, best] > 0) & (positives > 0)
    r, b = rows[found], best[found]
    out[r, 0] = value[r, b]
    out[r, 1] = loc[r, b] / tp[r, b]
    out[r, 2] = fp[r, b] / (tp[r, b] + fp[r, b])
    out[r, 3] = fn[r, b] / positives[r]
    out[r, 4] = score[ends[b]]
    return out
