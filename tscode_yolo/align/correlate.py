"""Correlation of score and IoU over all kept detections, for many weightings of the images at once.

An image that a bootstrap draw takes three times counts as three copies: Pearson's r then needs weighted sums alone;
Spearman's needs the ranks anew, the mean rank of equal values being (copies before) + (copies of the value + 1) / 2.
Letters: B weightings, N rows.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1_000_000  # ranks held at once, bounds the memory of long tables


def _product_moment(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(B,) weighted Pearson's r of (B or 1, N) values; NaN below three rows or with a constant."""
    total = weight.sum(1, keepdims=True)
    whole = np.where(total > 0, total, 1)
    dx = x - (weight * x).sum(1, keepdims=True) / whole
    dy = y - (weight * y).sum(1, keepdims=True) / whole
    xy, xx, yy = ((weight * a * b).sum(1) for a, b in ((dx, dy), (dx, dx), (dy, dy)))
    # A constant leaves rounding errors behind, 1e-32 of its square.
    varies = (xx > 1e-20 * (weight * x * x).sum(1)) & (yy > 1e-20 * (weight * y * y).sum(1)) & (total[:, 0] >= 3)
    return np.divide(xy, np.sqrt(xx * yy), out=np.full(len(weight), np.nan), where=varies)


class _Ranks:
    """The order of one column, sorted once for all weightings."""

    def __init__(self, values: np.ndarray) -> None:
        unique, self.group = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.group, kind="stable")
        self.ends = np.searchsorted(self.group[self.order], np.arange(len(unique)), side="right") - 1

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        """(B, N) mean ranks under (B, N) weights."""
        upto = np.cumsum(weight[:, self.order], axis=1)[:, self.ends]
        before = np.concatenate([np.zeros((len(weight), 1)), upto[:, :-1]], axis=1)
        return ((before + upto + 1) / 2)[:, self.group]


def correlations(
    score: np.ndarray, iou: np.ndarray, image: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's and Spearman's correlation under every weighting.

    Args:
        score: (N,)
        iou: (N,)
        image: (N,) number of each row's image.
        weights: (B, images) how often each image counts.

    Returns:
        (B,) Pearson and (B,) Spearman; NaN below three counted rows or where one of the two does not vary.
    """
    b = len(weights)
    pearson, spearman = np.full(b, np.nan), np.full(b, np.nan)
    if len(score) < 1:
        return pearson, spearman
    x, y = score.astype(np.float64)[None], iou.astype(np.float64)[None]
    rank_x, rank_y = _Ranks(score), _Ranks(iou)
    step = max(1, _CHUNK // len(score))
    for start in range(0, b, step):
        part = slice(start, start + step)
        weight = weights[part][:, image].astype(np.float64)
        pearson[part] = _product_moment(x, y, weight)
        spearman[part] = _product_moment(rank_x(weight), rank_y(weight), weight)
    return pearson, spearman
