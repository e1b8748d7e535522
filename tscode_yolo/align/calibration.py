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
from scipy.sparse import csr_array

SCORE_FLOOR = 0.05
BINS, LA_BINS = 20, 25


def bin_of(score: np.ndarray, bins: int) -> np.ndarray:
    """(N,) index of the equal-width bin of each score; a border belongs to the bin below it, 0 to the first."""
    return np.clip(np.ceil(score.astype(np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)


def confident(rows: np.ndarray, size: int = 0) -> np.ndarray:
    """The rows both errors are measured on: not ignored in that size range, score at least ``SCORE_FLOOR``."""
    return rows[(rows["score"] >= SCORE_FLOOR) & ((rows["ignored"][:, size] & 1) == 0)]


class Tally:
    """What each image adds to each bin of each class, so that a weighting of the images is one sparse product.

    Args:
        rows: of ``DETECTION_ROW``, from :func:`confident`.
        size: index into ``SIZES``: of which range the hits are.
        classes: K.
        images: how many there are.
        bins: equal-width bins.
    """

    def __init__(self, rows: np.ndarray, size: int, classes: int, images: int, bins: int) -> None:
        score, hit = rows["score"].astype(np.float64), (rows["tp"][:, size] & 1).astype(np.float64)
        place = rows["cls"].astype(np.int64) * bins + bin_of(score, bins), rows["image"].astype(np.int64)
        columns = np.ones(len(rows)), hit, score, hit * rows["iou"][:, size]
        self.parts = [csr_array((value, place), shape=(classes * bins, images)) for value in columns]
        self.shape = classes, bins

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(4, K, bins, B): detections, true positives, summed scores, summed IoU of the true positives."""
        turned = weights.T.astype(np.float64)
        return np.stack([(part @ turned).reshape(*self.shape, -1) for part in self.parts])


def d_ece(tally: Tally, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D-ECE of all detections together and of each class.

    Args:
        tally: in :data:`BINS` bins.
        weights: (B, images).

    Returns:
        (B,) and (K, B), NaN without detections.
    """
    count, hits, scores, _ = tally(weights)
    together = _share(np.abs((hits - scores).sum(0)).sum(0), count.sum((0, 1)))
    return together, _share(np.abs(hits - scores).sum(1), count.sum(1))


def la_ece(tally: Tally, weights: np.ndarray) -> np.ndarray:
    """LaECE of each class, (K, B); arguments as :func:`d_ece`, in :data:`LA_BINS` bins.

    Precision times the mean IoU of the true positives is the summed IoU over the detections, so a bin without true
    positives expects a score of 0.
    """
    count, _, scores, ious = tally(weights)
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
    tally = Tally(rows, 0, int(rows["cls"].max(initial=0)) + 1, images, bins)
    count, hits, scores, ious = tally(np.ones((1, images)))[..., 0].sum(1)

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
