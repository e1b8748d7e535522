"""Calibration: does a score of 0.7 mean right seven times in ten (D-ECE), and right by that much (LaECE)?

D-ECE: Kueppers et al., "Multivariate Confidence Calibration for Object Detection", arXiv:2004.13546, in its
confidence-only form: over bins, weighted by their detections, |precision - mean score|.
LaECE: Oksuz et al., "Towards Building Self-Aware Object Detectors", arXiv:2307.00934, eq. 4 (class-wise, 25 bins): over
bins |precision x mean IoU of the true positives - mean score|, then the mean over the classes that detect anything.
Both look at detections with a score of at least 0.05: an average over the thousands of near-zero scores that
``conf=0.001`` lets through would say little (Kuzucu et al., arXiv:2405.20459, make the same point). True means matched
at IoU 0.5 by COCO's rules.
"""

from __future__ import annotations

import numpy as np

SCORE_FLOOR = 0.05
BINS, LA_BINS = 20, 25


def bin_of(score: np.ndarray, bins: int) -> np.ndarray:
    """(N,) index of the equal-width bin of each score; a border belongs to the bin below it, 0 to the first."""
    return np.clip(np.ceil(score.astype(np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)


def _sums(rows: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """(B, 4, bins): detections, true positives, summed scores, summed IoU of the true positives."""
    index, score = bin_of(rows["score"], bins), rows["score"].astype(np.float64)
    hit = (rows["tp"][:, 0] & 1).astype(np.float64)
    out = np.empty((len(weights), 4, bins))
    for b, w in enumerate(weights):
        each = w[rows["image"]].astype(np.float64)
        for i, value in enumerate((each, each * hit, each * score, each * hit * rows["iou"])):
            out[b, i] = np.bincount(index, weights=value, minlength=bins)
    return out


def confident(rows: np.ndarray) -> np.ndarray:
    """The rows both errors are measured on: not ignored, score at least ``SCORE_FLOOR``."""
    return rows[(rows["score"] >= SCORE_FLOOR) & ((rows["ignored"][:, 0] & 1) == 0)]


def d_ece(rows: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """D-ECE of detections of any classes.

    Args:
        rows: of ``DETECTION_ROW``, from :func:`confident`.
        weights: (B, images).
        bins: equal-width bins.

    Returns:
        (B,), NaN without detections.
    """
    count, hits, scores, _ = np.moveaxis(_sums(rows, weights, bins), 1, 0)
    return _share(np.abs(hits - scores).sum(1), count.sum(1))


def la_ece(rows: np.ndarray, weights: np.ndarray, bins: int = LA_BINS) -> np.ndarray:
    """LaECE of the detections of one class; arguments and result as :func:`d_ece`.

    Precision times the mean IoU of the true positives is the summed IoU over the detections, so a bin without true
    positives expects a score of 0.
    """
    count, _, scores, ious = np.moveaxis(_sums(rows, weights, bins), 1, 0)
    return _share(np.abs(ious - scores).sum(1), count.sum(1))


def reliability(rows: np.ndarray, images: int, bins: int = BINS) -> dict[str, list[float | int | None]]:
    """The reliability plot's numbers.

    Args:
        rows: from :func:`confident`.
        images: how many images there are.
        bins: equal-width bins.

    Returns:
        Per bin: ``detections``, mean ``score``, ``precision``, ``precision_x_iou``; None where a bin is empty.
    """
    count, hits, scores, ious = _sums(rows, np.ones((1, images), np.uint8), bins)[0]

    def mean(total: np.ndarray) -> list[float | int | None]:
        return [float(t / n) if n else None for t, n in zip(total, count, strict=True)]

    return {
        "detections": [int(n) for n in count],
        "score": mean(scores),
        "precision": mean(hits),
        "precision_x_iou": mean(ious),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
