"""From finished runs to what may be said: pairs by seed, differences, intervals, and whether the pairs are pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tscode_yolo.study.plan import Study
from tscode_yolo.study.record import finished
from tscode_yolo.study.statistics import holm, paired, pooled, seeds_needed, summary
from tscode_yolo.verbs.storage import read_json

SCHEMA = 1
Getter = Callable[[dict[str, Any]], float | None]


def _coco(key: str) -> Getter:
    return lambda run: run["coco"].get(key)


def _final(key: str) -> Getter:
    return lambda run: run["final"]["coco"].get(key) if run.get("final") else None


# name -> (what it is, where a run has it); all in percent. AP is the one the headline is about.
METRICS: dict[str, tuple[str, Getter]] = {
    "AP": ("COCO AP", _coco("AP")),
    "AP50": ("COCO AP at IoU 0.50", _coco("AP50")),
    "AP75": ("COCO AP at IoU 0.75", _coco("AP75")),
    "APs": ("COCO AP, small objects", _coco("APs")),
    "APm": ("COCO AP, medium objects", _coco("APm")),
    "APl": ("COCO AP, large objects", _coco("APl")),
    "AP_averaged": ("COCO AP, mean over the last epochs", lambda run: run["averaged"].get("AP")),
    "mAP": ("the host's mAP50-95", lambda run: run["host"]["mAP"]),
    "mAP50": ("the host's mAP50", lambda run: run["host"]["mAP50"]),
    "final_AP": ("COCO AP on the final set", _final("AP")),
    "final_AP50": ("COCO AP at IoU 0.50 on the final set", _final("AP50")),
}
EFFECTS = (0.5, 1.0, 2.0)


def collect(study: Study, states: dict[Any, str] | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the finished runs, and who is missing and why."""
    runs, missing = [], []
    for dataset in study.datasets:
        for arm in study.arms:
            for seed in study.seeds:
                folder = study.folder(dataset, arm, seed)
                record = finished(folder)
                if record is not None:
                    runs.append(record)
                    continue
                state = (states or {}).get(folder, "not run")
                error = None if state in ("waiting", "running") else read_json(folder / "error.json")
                why = error["error"] if error else state
                missing.append({"arm": arm.name, "dataset": dataset.name, "seed": seed, "why": why})
    return runs, missing


def analyse(study: Study, runs: list[dict[str, Any]], effect: float = 1.0) -> dict[str, Any]:
    """All statistics of a study.

    Args:
        study: with the baseline as its first arm.
        runs: finished ones.
        effect: AP points for which the number of seeds is worked out, next to `EFFECTS`.

    Returns:
        ``groups``: per data set and arm, the summary of each metric. ``comparisons``: per data set and arm other than
        the baseline, `statistics.paired` of each metric's differences and the seeds needed for given effects.
        ``pooled``: per arm, `statistics.pooled` over the data sets. ``settling``: per data set and arm, what `settling`
        found. ``fairness``: what `fairness` found.
    """
    baseline, *others = [a.name for a in study.arms]
    names = [d.name for d in study.datasets]
    groups = [
        {
            "dataset": dataset,
            "arm": arm.name,
            "metrics": {
                m: summary([v for r in _of(runs, dataset, arm.name) if (v := get(r)) is not None])
                for m, (_, get) in METRICS.items()
            },
        }
        for dataset in names
        for arm in study.arms
    ]
    comparisons = []
    for dataset in names:
        rows = [_compare(runs, dataset, baseline, arm, study.confidence, effect) for arm in others]
        adjusted = holm([row["metrics"]["AP"]["t"]["p"] if "AP" in row["metrics"] else None for row in rows])
        comparisons += [{**row, "AP_p_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    return {
        "groups": groups,
        "comparisons": comparisons,
        "pooled": [_pool(comparisons, arm, study.confidence) for arm in others] if len(names) > 1 else [],
        "settling": [
            {"dataset": dataset, "arm": arm.name, **found}
            for dataset in names
            for arm in study.arms
            if (found := settling(_of(runs, dataset, arm.name), study.last))
        ],
        "fairness": fairness(study, runs),
    }


def settling(runs: list[dict[str, Any]], last: int) -> dict[str, Any] | None:
    """Whether training had come to rest: a line through the AP of the last epochs, the second half of those judged.

    The first half is left out for the dip where the host stops mosaics, by default ten epochs before the end.

    Args:
        runs: of one arm on one data set.
        last: epochs at the end that were judged, each with ``coco`` in the history.

    Returns:
        ``epochs``: how many the line is through. ``slope``: `statistics.summary` over runs of its rise, AP points an
        epoch. ``swing``: that of the standard deviation of AP about it. None with fewer than three epochs to look at.
    """
    epochs = (last + 1) // 2
    ends = [[h["coco"]["AP"] for h in r["history"][-epochs:] if h.get("coco", {}).get("AP") is not None] for r in runs]
    lines = [(np.polyfit(range(epochs), end, 1), end) for end in ends if len(end) == epochs] if epochs >= 3 else []
    if not lines:
        return None
    swings = [float(np.std(end - np.polyval(line, range(epochs)), ddof=2)) for line, end in lines]
    return {"epochs": epochs, "slope": summary([float(line[0]) for line, _ in lines]), "swing": summary(swings)}


def fairness(study: Study, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether runs that are compared were alike: start, batches, yardstick, and what interfered.

    Returns:
        ``pairs`` (baseline and another arm finished on a data set with a seed), ``same_start``, ``same_batches``,
        ``same_tool`` (how many of those), and ``remarks``, one sentence for everything that a reader should know.
    """
    counts = {"pairs": 0, "same_start": 0, "same_batches": 0, "same_tool": 0}
    remarks = []
    finished = {(r["dataset"], r["seed"], r["arm"]): r for r in runs}
    baseline, *others = [a.name for a in study.arms]
    for dataset, seed, arm in itertools.product([d.name for d in study.datasets], study.seeds, others):
        a, b = finished.get((dataset, seed, baseline)), finished.get((dataset, seed, arm))
        if a is None or b is None:
            continue
        counts["pairs"] += 1
        counts["same_start"] += a["body"] == b["body"]
        counts["same_tool"] += a["tool"] == b["tool"]
        same = [h["batches"] for h in a["history"]] == [h["batches"] for h in b["history"]]
        counts["same_batches"] += same
        if not same:
            remarks.append(f"{dataset}, {arm}, seed {seed}: not the baseline's batches in every epoch.")
    for dataset, arm in itertools.product([d.name for d in study.datasets], [baseline, *others]):
        seen = [r["history"][0]["batches"] for r in _of(runs, dataset, arm) if r["history"]]
        if len(set(seen)) < len(seen):
            remarks.append(f"{dataset}, {arm}: seeds saw the same batches, so that the intervals are too narrow.")
    if counts["same_start"] < counts["pairs"]:
        remarks.append(
            "Weights below the head differ between arms at the start: the bodies differ, or init is missing."
        )
    for source in sorted({r["reused"] for r in runs if "reused" in r}):
        count = sum(r.get("reused") == source for r in runs)
        remarks.append(f"{count} of {len(runs)} runs were taken over from {source}.")
    for r in runs:
        who = f"{r['dataset']}, {r['arm']}, seed {r['seed']}"
        if r["resumed"]:
            how = "exactly" if r["exact_resume"] else "with the gradients or the loaders' random state lost"
            remarks.append(f"{who}: resumed at epoch {', '.join(str(e + 1) for e in r['resumed'])}, {how}.")
        if r["repeated"]:
            remarks.append(
                f"{who}: the host recovered from NaN in epoch {', '.join(str(e + 1) for e in r['repeated'])}."
            )
    everywhere = [p for r in runs for p in (r.get("places") or [r])]
    places = {(p["threads"], p["device"], p["hardware"]["cpu"]) for p in everywhere}
    if len(places) > 1:
        remarks.append(
            f"Runs took place in {len(places)} settings of threads, device and processor; sums may round apart."
        )
    versions = sorted({versions_of(p) for p in everywhere})
    if len(versions) > 1:
        remarks.append(f"Runs were made by different software: {'; '.join(versions)}.")
    return {**counts, "remarks": remarks}


def versions_of(place: dict[str, Any]) -> str:
    """Packages of a run's `software`, and the digest of our source; what is not known says so."""
    return ", ".join(f"{k} {v}" for k, v in place.get("software", {}).items() if v) or "versions not recorded"


def _of(runs: list[dict[str, Any]], dataset: str, arm: str) -> list[dict[str, Any]]:
    return sorted((r for r in runs if r["dataset"] == dataset and r["arm"] == arm), key=lambda r: r["seed"])


def _compare(
    runs: list[dict[str, Any]], dataset: str, baseline: str, arm: str, confidence: float, effect: float
) -> dict[str, Any]:
    """One arm against the baseline on one data set: differences of the seeds that both have finished."""
    base = {r["seed"]: r for r in _of(runs, dataset, baseline)}
    pairs = [(base[r["seed"]], r) for r in _of(runs, dataset, arm) if r["seed"] in base]
    metrics = {}
    for name, (_, get) in METRICS.items():
        values = [(get(a), get(b)) for a, b in pairs]
        differences = [b - a for a, b in values if a is not None and b is not None]
        if not differences:
            continue
        result = paired(differences, confidence)
        if result["sd"]:
            wanted = sorted({*EFFECTS, effect})
            result["seeds_needed"] = {str(e): seeds_needed(e, result["sd"], alpha=1 - confidence) for e in wanted}
        metrics[name] = result
    return {
        "dataset": dataset,
        "arm": arm,
        "baseline": baseline,
        "seeds": [b["seed"] for _, b in pairs],
        "metrics": metrics,
    }


def _pool(comparisons: list[dict[str, Any]], arm: str, confidence: float) -> dict[str, Any]:
    """One arm over all data sets that have pairs."""
    rows = [c for c in comparisons if c["arm"] == arm]
    metrics = {}
    for name in METRICS:
        groups = {c["dataset"]: c["metrics"][name]["values"] for c in rows if name in c["metrics"]}
        if len(groups) > 1:
            metrics[name] = pooled(groups, confidence)
    return {"arm": arm, "metrics": metrics}
