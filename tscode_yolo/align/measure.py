"""From the tables of one model to every number of the report, with intervals.

``Numbers`` maps a name to (B, S) values: B weightings of the images (the first is all ones), S strata: overall, then
the classes, then small, medium, large. A number that makes no sense in a stratum is NaN there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from scipy.stats import rankdata

from .ap import Ranked, average_precision, lrp
from .calibration import confident, d_ece, la_ece
from .collect import Collector
from .match import ABOUT_IOU, SIZES
from .objects import Fate, correlation
from .oracle import ORACLES, split_loss
from .tide import ERRORS, Kind

Numbers = dict[str, np.ndarray]
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
        tables = {"ap": self.detections, **{n: collector.oracles[n].rows for n in ORACLES}}
        self.classes = np.unique(self.objects["cls"])
        self.ranked = {
            (name, int(c), size): Ranked.of(rows[rows["cls"] == c], size)
            for name, rows in tables.items()
            for c in self.classes
            for size in range(len(SIZES))
        }
        self.repaired = {kind: self._repair(kind) for kind in ERRORS if kind != Kind.MISSED}
        self.calibrated = confident(self.detections)

    @property
    def strata(self) -> int:
        """Overall, the classes, the three sizes."""
        return 1 + self.k + 3

    def _repair(self, kind: Kind) -> dict[int, Ranked]:
        """The detections with one kind of error put right (TIDE), per class."""
        wrong = self.detections["kind"] == kind
        rows = self.detections[~wrong | (self.detections["repaired"] >= 0)].copy()
        fixed = rows["kind"] == kind
        rows["cls"][fixed], rows["tp"][fixed], rows["ignored"][fixed] = rows["repaired"][fixed], 1, 0
        return {int(c): Ranked.of(rows[rows["cls"] == c], 0) for c in self.classes}

    def _positives(self, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return weights[:, self.objects["image"][chosen]].sum(1, dtype=np.float64) * self.scale

    def __call__(self, weights: np.ndarray) -> Numbers:
        """Compute every number for B weightings (B, images)."""
        out = {**self._precision(weights), **self._objects(weights), **self._tide(weights)}
        return {**out, **self._lrp(weights), **self._calibration(weights), **self._kept(weights)}

    def _blank(self, weights: np.ndarray) -> np.ndarray:
        return np.full((len(weights), self.strata), np.nan)

    def _precision(self, weights: np.ndarray) -> Numbers:
        """AP as it is and under every oracle, with AP50 and AP75 of the former, and the split of the loss."""
        out: Numbers = {}
        value = len(weights) == 1  # oracles by size get no interval: it would double the time of the whole report
        for name in ("ap", *ORACLES):
            aps = np.full((len(SIZES), len(self.classes), len(weights), 10), np.nan)
            for s in range(len(SIZES) if name == "ap" or value else 1):
                for i, c in enumerate(self.classes):
                    chosen = (self.objects["cls"] == c) & ((self.objects["size"] == s) | (s == 0))
                    ranked = self.ranked[name, int(c), s]
                    aps[s, i] = average_precision(ranked, self._positives(weights, chosen), weights)
            wanted = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}
            for label, levels in wanted.items():
                if name == "ap" or label == "ap":
                    out[label if name == "ap" else f"ap_{name}"] = self._spread(aps[..., levels].mean(-1), weights)
        split = [split_loss(*v) for v in zip(*(out[n] for n in SPLIT_FROM), strict=True)]
        for part in ("scores", "boxes", "unseen"):
            out[f"loss_{part}"] = np.stack([row[part] for row in split])  # type: ignore[arg-type]
        out["loss_alignment"] = out["ap_aligned"] - out["ap"]
        return out

    def _spread(self, per_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Place (4 sizes, classes, B) values into strata; means over classes for overall and sizes."""
        out = self._blank(weights)
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

    def _ap50(self, ranked: dict[int, Ranked], weights: np.ndarray, positives: dict[int, np.ndarray]) -> np.ndarray:
        values = [average_precision(ranked[int(c)], positives[int(c)], weights, levels=1)[:, 0] for c in self.classes]
        return np.stack(values) if values else np.empty((0, len(weights)))

    def _tide(self, weights: np.ndarray) -> Numbers:
        """AP50 each kind of error costs, overall and per class."""
        count = {int(c): self._positives(weights, self.objects["cls"] == c) for c in self.classes}
        plain = {int(c): self.ranked["ap", int(c), 0] for c in self.classes}
        base = self._ap50(plain, weights, count)
        out: Numbers = {}
        for kind in ERRORS:
            ranked, positives = plain, count
            if kind == Kind.MISSED:
                gone = {int(c): (self.objects["cls"] == c) & self.objects["missed"] for c in self.classes}
                positives = {c: n - self._positives(weights, gone[c]) for c, n in count.items()}
            else:
                ranked = self.repaired[kind]
            fixed = self._ap50(ranked, weights, positives)
            fixed = np.where(np.isnan(fixed) & ~np.isnan(base), 0.0, fixed)  # all objects missed: nothing left to find
            name = f"tide_{kind.name.lower()}"
            out[name] = self._blank(weights)
            out[name][:, 1 + self.classes] = np.maximum(fixed - base, 0).T
            out[name][:, 0] = np.maximum(_mean(fixed.T) - _mean(base.T), 0)
        return out

    def _lrp(self, weights: np.ndarray) -> Numbers:
        """oLRP, its components and the optimal threshold; overall is the mean over classes."""
        names = ("olrp", "olrp_localisation", "olrp_false_positive", "olrp_false_negative", "threshold")
        out = {name: self._blank(weights) for name in names}
        for c in self.classes:
            positives = self._positives(weights, self.objects["cls"] == c)
            values = lrp(self.ranked["ap", int(c), 0], positives, weights)
            for i, name in enumerate(names):
                out[name][:, 1 + int(c)] = values[:, i]
        for name in names[:-1]:  # one threshold for all classes is not the mean of theirs
            out[name][:, 0] = _mean(out[name][:, 1 : 1 + self.k])
        return out

    def _calibration(self, weights: np.ndarray) -> Numbers:
        out = {"d_ece": self._blank(weights), "la_ece": self._blank(weights)}
        out["d_ece"][:, 0] = d_ece(self.calibrated, weights)
        for c in self.classes:
            rows = self.calibrated[self.calibrated["cls"] == c]
            out["d_ece"][:, 1 + int(c)], out["la_ece"][:, 1 + int(c)] = d_ece(rows, weights), la_ece(rows, weights)
        out["la_ece"][:, 0] = _mean(out["la_ece"][:, 1 : 1 + self.k])
        return out

    def _kept(self, weights: np.ndarray) -> Numbers:
        """Score against IoU over the detections that NMS kept on some object; no interval (ranks do not reweight)."""
        out = {"spearman_kept": self._blank(weights), "pearson_kept": self._blank(weights)}
        if not (weights == 1).all():
            return out
        rows = self.detections[self.detections["best_iou"] >= ABOUT_IOU]
        for stratum, chosen in [(0, slice(None)), *((1 + int(c), rows["cls"] == c) for c in self.classes)]:
            score, iou = (rows[chosen][n].astype(np.float64) for n in ("score", "best_iou"))
            out["pearson_kept"][:, stratum] = correlation(score, iou)
            out["spearman_kept"][:, stratum] = correlation(rankdata(score), rankdata(iou))
        return out


SPLIT_FROM = ("ap", "ap_ranking", "ap_localisation", "ap_both")
