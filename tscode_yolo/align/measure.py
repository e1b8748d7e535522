"""From the tables of one model to every number of the report, with intervals.

``Numbers`` maps a name to (B, S) values: B weightings of the images (the first is all ones), S strata: overall, then
the classes, then small, medium, large. A number that makes no sense in a stratum is NaN there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from tscode_yolo.align.ap import Ranked, average_precision, lrp
from tscode_yolo.align.calibration import BINS, LA_BINS, Tally, confident, d_ece, la_ece
from tscode_yolo.align.collect import Collector
from tscode_yolo.align.correlate import correlations
from tscode_yolo.align.match import ABOUT_IOU, ALL_BITS, SIZES
from tscode_yolo.align.objects import Fate
from tscode_yolo.align.oracle import ORACLES, split_loss
from tscode_yolo.align.tide import ERRORS, Kind

Numbers = dict[str, np.ndarray]
Ranking = dict[tuple[int, int], Ranked]  # (class, size range) -> its detections
Positives = dict[tuple[int, int], np.ndarray]  # (class, size range) -> (B,) objects to find
OBJECT_NUMBERS = ("covered", "best_first", "rank", "gap", "nms_removed", "below_floor", "spearman", "pearson")


def resamples(images: int, count: int, seed: int, step: int = 50) -> Iterator[np.ndarray]:
    """Yield weightings of the images: first one row of ones, then ``count`` bootstrap draws, ``step`` rows at a time.

    Args:
        images: how many there are.
        count: draws; 0 gives the value without an interval.
        seed: of the draws; the same seed pairs two models.
        step: rows yielded at once.

    Yields:
        (rows, images) uint16, how often each image counts.
    """
    yield np.ones((1, images), np.uint16)
    random = np.random.default_rng(seed)
    for start in range(0, count, step):
        size = min(step, count - start)
        draws = random.integers(0, images, (size, images))
        yield np.stack([np.bincount(d, minlength=images) for d in draws]).astype(np.uint16)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN if nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-1)


class Measurer:
    """Computes :data:`Numbers` for any weighting of the images.

    Args:
        collector: the tables of one model.
        images: how many images were read.
        classes: how many classes the model knows.
    """

    def __init__(self, collector: Collector, images: int, classes: int) -> None:
        self.images, self.k = images, classes
        self.end2end = collector.detector.end2end
        self.objects = collector.objects.rows
        self.scale = collector.objects.seen / max(len(self.objects), 1)  # above 1 once objects are sampled
        self.detections = collector.detections.rows
        self.classes = np.unique(self.objects["cls"])
        self.ranked = {"ap": self._rank(self.detections, placed=True)}
        self.ranked |= {name: self._rank(collector.oracles[name].rows) for name in ORACLES}
        self.repaired = {kind: self._rank(self._repair(kind)) for kind in ERRORS if kind != Kind.MISSED}
        sure = [confident(self.detections, size) for size in range(len(SIZES))]
        self.calibrated = sure[0]
        self.tallies = [(Tally(r, s, classes, images, BINS), Tally(r, s, classes, images, LA_BINS))
                        for s, r in enumerate(sure)]  # fmt: skip

    @property
    def strata(self) -> int:
        """Overall, the classes, the three sizes."""
        return 1 + self.k + 3

    def _rank(self, rows: np.ndarray, placed: bool = False) -> Ranking:
        """Rank the rows of each class with objects, for each size range."""
        mine = {int(c): rows[rows["cls"] == c] for c in self.classes}
        return {(c, s): Ranked.of(part, s, placed) for c, part in mine.items() for s in range(len(SIZES))}

    def _repair(self, kind: Kind) -> np.ndarray:
        """The detections with one kind of error put right (TIDE)."""
        wrong = self.detections["kind"] == kind
        rows = self.detections[~wrong | (self.detections["repaired"] >= 0)].copy()
        fixed = np.flatnonzero(rows["kind"] == kind)
        rows["cls"][fixed] = rows["repaired"][fixed]
        rows["tp"][fixed], rows["ignored"][fixed] = 0, ALL_BITS
        for size in (0, rows["repaired_size"][fixed]):  # right overall and in its object's size, ignored in the others
            rows["tp"][fixed, size], rows["ignored"][fixed, size] = 1, 0
        return rows

    def _positives(self, weights: np.ndarray, chosen: np.ndarray | None = None) -> Positives:
        """Weighted objects of each class and size range, of the ``chosen`` ones where given."""
        out = {}
        for c in self.classes:
            mine = self.objects["cls"] == c if chosen is None else (self.objects["cls"] == c) & chosen
            for s in range(len(SIZES)):
                rows = mine & (self.objects["size"] == s) if s else mine
                out[int(c), s] = weights[:, self.objects["image"][rows]].sum(1, dtype=np.float64) * self.scale
        return out

    def __call__(self, weights: np.ndarray) -> Numbers:
        """Compute every number for B weightings (B, images)."""
        positives = self._positives(weights)
        out = {**self._precision(weights, positives), **self._objects(weights), **self._tide(weights, positives)}
        return {**out, **self._lrp(weights, positives), **self._calibration(weights), **self._kept(weights)}

    def _blank(self, weights: np.ndarray) -> np.ndarray:
        return np.full((len(weights), self.strata), np.nan)

    def _aps(self, ranking: Ranking, positives: Positives, weights: np.ndarray, levels: int) -> np.ndarray:
        """(4 sizes, classes, B, levels) average precision."""
        out = np.full((len(SIZES), len(self.classes), len(weights), levels), np.nan)
        for s in range(len(SIZES)):
            for i, c in enumerate(map(int, self.classes)):
                out[s, i] = average_precision(ranking[c, s], positives[c, s], weights, levels)
        return out

    def _precision(self, weights: np.ndarray, positives: Positives) -> Numbers:
        """AP as it is and under every oracle, with AP50 and AP75 of the former, and the split of the loss."""
        aps = self._aps(self.ranked["ap"], positives, weights, 10)
        wanted = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
        out = {label: self._spread(aps[..., levels].mean(-1)) for label, levels in wanted.items()}
        for name in ORACLES:
            out[f"ap_{name}"] = self._spread(self._aps(self.ranked[name], positives, weights, 10).mean(-1))
        split = [split_loss(*v) for v in zip(*(out[n] for n in SPLIT_FROM), strict=True)]
        for part in ("scores", "boxes", "unseen"):
            out[f"loss_{part}"] = np.stack([row[part] for row in split])  # type: ignore[arg-type]
        out["loss_alignment"] = out["ap_aligned"] - out["ap"]
        agreement = np.minimum(np.maximum(out["loss_alignment"], 0), np.maximum(out["loss_scores"], 0))
        out["loss_classes"] = out["loss_scores"] - agreement
        return out

    def _spread(self, per_class: np.ndarray) -> np.ndarray:
        """Place (4 sizes, classes, B) values into strata; means over classes for overall and sizes."""
        out = np.full((per_class.shape[2], self.strata), np.nan)
        out[:, 0] = _mean(per_class[0].T)
        out[:, 1 + self.classes] = per_class[0].T
        for s in (1, 2, 3):
            out[:, self.k + s] = _mean(per_class[s].T)
        return out

    def _objects(self, weights: np.ndarray) -> Numbers:
        """Means over objects; ``rank`` is the median (half the objects rank at least that well)."""
        rows, covered = self.objects, self.objects["fate"] != Fate.UNCOVERED
        values = {
            "covered": covered.astype(np.float64),
            "best_first": np.where(covered, rows["rank"] == 1, np.nan),
            "gap": rows["gap"].astype(np.float64),
            "nms_removed": np.where(covered & (not self.end2end), rows["fate"] == Fate.SUPPRESSED, np.nan),
            "below_floor": np.where(covered, rows["fate"] == Fate.BELOW_FLOOR, np.nan),
            "spearman": rows["spearman"].astype(np.float64),
            "pearson": rows["pearson"].astype(np.float64),
        }
        if self.end2end:
            values["nms_removed"][:] = np.nan  # there is no NMS to remove anything
        out = {name: self._blank(weights) for name in OBJECT_NUMBERS}
        order = np.argsort(rows["rank"], kind="stable")  # NaN last
        for stratum, chosen in self._strata_of_objects():
            for name, value in values.items():
                use = np.flatnonzero(chosen & ~np.isnan(value))
                w = weights[:, rows["image"][use]].astype(np.float64)
                total = w.sum(1)
                with np.errstate(invalid="ignore"):
                    out[name][:, stratum] = (w @ value[use]) / np.where(total > 0, total, np.nan)
            use = order[chosen[order] & covered[order]]
            if len(use):
                running = np.cumsum(weights[:, rows["image"][use]], axis=1, dtype=np.float64)
                middle = (running < running[:, -1:] / 2).sum(1).clip(max=len(use) - 1)
                found = rows["rank"][use][middle].astype(np.float64)
                out["rank"][:, stratum] = np.where(running[:, -1] > 0, found, np.nan)
        return out

    def _strata_of_objects(self) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, np.ones(len(self.objects), bool)
        for c in self.classes:
            yield 1 + int(c), self.objects["cls"] == c
        for s in (1, 2, 3):
            yield self.k + s, self.objects["size"] == s

    def _tide(self, weights: np.ndarray, positives: Positives) -> Numbers:
        """AP50 each kind of error costs, overall, per class and per size."""
        base = self._aps(self.ranked["ap"], positives, weights, 1)[..., 0]
        gone = self._positives(weights, self.objects["missed"])
        left = {key: n - gone[key] for key, n in positives.items()}
        out: Numbers = {}
        for kind in ERRORS:
            if kind == Kind.MISSED:
                fixed = self._aps(self.ranked["ap"], left, weights, 1)[..., 0]
                fixed = np.where(np.isnan(fixed) & ~np.isnan(base), 0.0, fixed)  # all missed: nothing left to find
            else:
                fixed = self._aps(self.repaired[kind], positives, weights, 1)[..., 0]
            out[f"tide_{kind.name.lower()}"] = np.maximum(self._spread(fixed) - self._spread(base), 0)
        return out

    def _lrp(self, weights: np.ndarray, positives: Positives) -> Numbers:
        """oLRP, its components and the optimal threshold; overall and for sizes the means over classes."""
        values = np.full((5, len(SIZES), len(self.classes), len(weights)), np.nan)
        for s in range(len(SIZES)):
            for i, c in enumerate(map(int, self.classes)):
                values[:, s, i] = lrp(self.ranked["ap"][c, s], positives[c, s], weights).T
        names = ("olrp", "olrp_localisation", "olrp_false_positive", "olrp_false_negative", "threshold")
        out = {name: self._spread(part) for name, part in zip(names, values, strict=True)}
        for stratum in (0, *range(self.k + 1, self.strata)):  # one threshold for all classes is not the mean of theirs
            out["threshold"][:, stratum] = np.nan
        return out

    def _calibration(self, weights: np.ndarray) -> Numbers:
        """D-ECE of all detections together, LaECE as the mean over classes, both also per class and size."""
        out = {"d_ece": self._blank(weights), "la_ece": self._blank(weights)}
        strata = (0, *range(self.k + 1, self.strata))
        for stratum, (plain, aware) in zip(strata, self.tallies, strict=True):
            together, each = d_ece(plain, weights)
            located = la_ece(aware, weights)[self.classes]
            out["d_ece"][:, stratum], out["la_ece"][:, stratum] = together, _mean(located.T)
            if stratum == 0:
                out["d_ece"][:, 1 + self.classes], out["la_ece"][:, 1 + self.classes] = each[self.classes].T, located.T
        return out

    def _kept(self, weights: np.ndarray) -> Numbers:
        """Score against IoU over the detections that NMS kept on some object."""
        out = {"spearman_kept": self._blank(weights), "pearson_kept": self._blank(weights)}
        rows = self.detections[self.detections["best_iou"] >= ABOUT_IOU]
        strata = [(0, np.ones(len(rows), bool)), *((1 + int(c), rows["cls"] == c) for c in self.classes)]
        strata += [(self.k + s, rows["best_size"] == s) for s in (1, 2, 3)]
        for stratum, chosen in strata:
            mine = rows[chosen]
            found = correlations(mine["score"], mine["best_iou"], mine["image"], weights)
            out["pearson_kept"][:, stratum], out["spearman_kept"][:, stratum] = found
        return out


SPLIT_FROM = ("ap", "ap_ranking", "ap_localisation", "ap_both")
