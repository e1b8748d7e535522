"""The report's content as plain data: values with intervals, differences between two models, and what they say.

Intervals are the bias-corrected bootstrap percentiles (Efron, "Nonparametric standard errors and confidence intervals",
1981) at 95 %: plain percentiles of AP lean upwards when a class occurs in few images, since a replicate that repeats
those images repeats its luck.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
import torch
import ultralytics
from scipy.special import ndtr, ndtri
from ultralytics.utils import TQDM

import tscode_yolo
from tscode_yolo.align.calibration import reliability
from tscode_yolo.align.collect import Collection, Settings
from tscode_yolo.align.match import SIZES
from tscode_yolo.align.measure import Measurer, Numbers, resamples
from tscode_yolo.align.objects import Fate
from tscode_yolo.align.tide import Kind

LEVEL = 0.95
RANK_EDGES = (1, 2, 3, 4, 6, 11, 21, 51, 101)  # 1, 2, 3, 4-5, 6-10, 11-20, 21-50, 51-100, more


def interval(value: float, draws: np.ndarray) -> tuple[float, float] | None:
    """Bias-corrected percentile interval.

    Args:
        value: from the data as they are.
        draws: (B,) from the resampled data; NaN where a draw held nothing to measure.

    Returns:
        (low, high), or None with fewer than 20 usable draws or no value.
    """
    draws = draws[~np.isnan(draws)]
    if len(draws) < 20 or math.isnan(value):
        return None
    below = (np.sum(draws < value) + 0.5 * np.sum(draws == value)) / len(draws)
    shift = 2 * ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
    tail = ndtri((1 + LEVEL) / 2)
    low, high = np.quantile(draws, ndtr([shift - tail, shift + tail]))
    return float(low), float(high)


def _cell(value: float, draws: np.ndarray) -> dict[str, float | None]:
    bounds = interval(value, draws)
    return {
        "value": None if math.isnan(value) else float(value),
        "low": bounds[0] if bounds else None,
        "high": bounds[1] if bounds else None,
    }


def bootstrap(measurer: Measurer, draws: int, seed: int, progress: bool = False) -> tuple[Numbers, Numbers]:
    """Values and draws of every number.

    Args:
        measurer: of one model.
        draws: B bootstrap replicates; 0 for none.
        seed: the same for two models makes their draws a pair.
        progress: show a bar.

    Returns:
        Name -> (S,) values, and name -> (B, S) draws.
    """
    parts = []
    with TQDM(total=draws + 1, desc="intervals", disable=not progress) as bar:
        for weights in resamples(measurer.images, draws, seed):
            parts.append(measurer(weights))
            bar.update(len(weights))
    empty = np.empty((0, measurer.strata))
    return (
        {name: part[0] for name, part in parts[0].items()},
        {name: np.concatenate([empty, *(p[name] for p in parts[1:])]) for name in parts[0]},
    )


def _strata(values: Numbers, draws: Numbers, stratum: int) -> dict[str, dict[str, float | None]]:
    return {name: _cell(values[name][stratum], draws[name][:, stratum]) for name in values}


def build(
    collection: Collection, settings: Settings, draws: int = 200, seed: int = 0, progress: bool = False
) -> dict[str, Any]:
    """Turn a collection into the report's data, ready for JSON.

    Args:
        collection: from :func:`collect.collect`.
        settings: it was made with.
        draws: bootstrap replicates.
        seed: of the replicates.
        progress: show a bar for each model.

    Returns:
        ``data``, ``models`` (overall, sizes, classes, plots), ``difference`` (first minus second model),
        ``settings`` and ``versions``.
    """
    images = collection.source.counts["images_read"]
    names = collection.collectors[0].detector.names
    results, models = [], []
    for collector in collection.collectors:
        measurer = Measurer(collector, images, len(names))
        values, drawn = bootstrap(measurer, draws, seed, progress)
        results.append((values, drawn))
        models.append(
            {
                "name": collector.detector.name,
                "end2end": collector.detector.end2end,
                "overall": _strata(values, drawn, 0),
                "sizes": {s: _strata(values, drawn, len(names) + i) for i, s in enumerate(SIZES) if i},
                "classes": {names[int(c)]: _strata(values, drawn, 1 + int(c)) for c in measurer.classes},
                "plots": _plots(measurer, values),
                "counts": {
                    **collector.counts,
                    "rows_dropped": collector.detections.dropped,
                    "objects_dropped": collector.objects.dropped,
                },
            }
        )
    return {
        "schema": 1,
        "data": _data(collection, names),
        "settings": {**vars(settings), "resamples": draws, "seed": seed, "level": LEVEL},
        "versions": {
            "tscode_yolo": tscode_yolo.__version__,
            "ultralytics": ultralytics.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "models": models,
        "difference": _difference(*results) if len(results) == 2 else None,
    }


def _difference(first: tuple[Numbers, Numbers], second: tuple[Numbers, Numbers]) -> dict[str, dict[str, float | None]]:
    """First minus second, overall, on the same draws."""
    out = {}
    for name in first[0]:
        gap = first[1][name][:, 0] - second[1][name][:, 0]
        out[name] = _cell(first[0][name][0] - second[0][name][0], gap)
    return out


def _data(collection: Collection, names: dict[int, str]) -> dict[str, Any]:
    source = collection.source
    kinds = ("corrupt_images", "corrupt_labels", "images_without_label_file", "images_without_objects")
    return {
        **{k: source.counts[k] for k in ("images_listed", "images_read", *kinds)},
        **{k: int(v) for k, v in sorted(collection.labels.items())},
        "classes": len(names),
        "classes_without_objects": [n for i, n in names.items() if not collection.class_objects[i]],
        "objects_per_class": {names[i]: n for i, n in sorted(collection.class_objects.items())},
        "problems": list(source.problems),
        "problems_not_listed": source.unlisted,
    }


def _plots(measurer: Measurer, values: Numbers) -> dict[str, Any]:
    """The numbers behind the pictures: rank histogram, fates, reliability, TIDE counts, confident background boxes."""
    rows, found = measurer.objects, measurer.detections
    covered = rows["fate"] != Fate.UNCOVERED
    ranks, _ = np.histogram(rows["rank"][covered], [*RANK_EDGES, np.inf])
    thresholds = values["threshold"][1 : 1 + measurer.k]
    cut = np.where(np.isnan(thresholds), np.inf, thresholds)[found["cls"]] if len(found) else np.empty(0)
    sure = found[found["score"] >= cut]
    background = int((sure["kind"] == Kind.BACKGROUND).sum())
    return {
        "rank_edges": list(RANK_EDGES),
        "rank_counts": [int(n) for n in ranks],
        "fates": {f.name.lower(): int((rows["fate"] == f).sum()) for f in Fate},
        "reliability": reliability(measurer.calibrated, measurer.images),
        "errors": {k.name.lower(): int((found["kind"] == k).sum()) for k in Kind if k != Kind.MISSED},
        "missed_objects": int(rows["missed"].sum()),
        "confident": {"detections": len(sure), "background": background},
    }
