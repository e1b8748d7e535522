"""Pool the paired differences of several `tscode compare` studies, for example of other families or data sets.

    python examples/pool_studies.py results=a/results.json,b/results.json out=pooled.json [arms=yolo11n-tower]

``arms=`` names the one to take of a study that has several beside its baseline.
The unit is the data set: where several studies are of one, their differences are averaged seed by seed first, for they
share its images. All data sets weigh the same, whatever their number of seeds. The two intervals are those of
``tscode_yolo.study.statistics.pooled``: for these very data sets, and for others like them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tscode_yolo.cli import parse
from tscode_yolo.study.statistics import pooled
from tscode_yolo.verbs.arguments import as_list, existing
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import read_json, write_json

MIXED = (
    "final weights were judged on images padded as `yolo val` pads them in {rect} of the studies, and to a square in "
    "{square}; AP_averaged is of the former everywhere"
)
METRICS = ("AP", "AP_averaged", "AP50", "AP75", "APs", "APm", "APl", "mAP")


def main(args: dict[str, Any]) -> int:
    """Pool the files given, write and print what comes out."""
    out = Path(str(args.pop("out")))
    arms = [str(a) for a in as_list(args.pop("arms", []))]
    found = pool((existing("results", f) for f in as_list(args.pop("results"))), arms)
    write_json(out, {**found, "provenance": provenance()})
    print(text(found))
    return 0


def pool(results: Iterable[Path], arms: Sequence[str] = ()) -> dict[str, Any]:
    """Differences to the baseline, in points of AP, pooled over the data sets of all files.

    Args:
        results: ``results.json`` of studies with one arm and its baseline each, or several of which `arms` has one.
        arms: names of arms.

    Returns:
        ``contrasts``: data set -> what was subtracted from what. ``metrics``: name -> ``statistics.pooled`` of it;
        those that a comparison lacks for some seed (APs without small objects) are left out. ``remarks``: what makes
        the studies less alike than they look.

    Raises:
        ValueError: no results of ``tscode compare``; more arms than one, which share their baseline's runs; the same
            comparison twice: seeds of two studies are not put together; or an arm that no study has.
    """
    contrasts: dict[str, list[str]] = {}
    comparisons: dict[str, list[dict[str, Any]]] = {}
    paddings: dict[bool, int] = {}
    missing = set(arms)
    for file in results:
        content = read_json(file)
        if not isinstance(content, dict) or not content.get("comparisons"):
            raise ValueError(f"results={file}: expected a results.json of `tscode compare`, got no comparisons in it")
        there = {c["arm"] for c in content["comparisons"]}
        if len(there) > 1 and len(there & set(arms)) != 1:
            raise ValueError(
                f"results={file}: expected one arm and its baseline, got {', '.join(sorted(there))}; name one by arms="
            )
        taken = there & set(arms) if len(there) > 1 else there
        missing -= taken
        for c in (c for c in content["comparisons"] if c["arm"] in taken):
            contrast = f"{c['arm']} - {c['baseline']}"
            if contrast in contrasts.setdefault(c["dataset"], []):
                raise ValueError(f"results={file}: {contrast} on {c['dataset']} is in an earlier file already")
            contrasts[c["dataset"]].append(contrast)
            comparisons.setdefault(c["dataset"], []).append(c)
        rect = all(r.get("settings", {}).get("val_rect") for r in content.get("runs", []))
        paddings[rect] = paddings.get(rect, 0) + 1
    if missing:
        raise ValueError(f"arms={', '.join(sorted(missing))}: no study has an arm of that name")
    everywhere = [c for cs in comparisons.values() for c in cs]
    metrics = {
        name: pooled({dataset: by_seed(name, cs) for dataset, cs in comparisons.items()})
        for name in METRICS
        if all(name in c["metrics"] and len(c["metrics"][name]["values"]) == len(c["seeds"]) for c in everywhere)
    }
    mixed = len(paddings) > 1
    remarks = [MIXED.format(rect=paddings[True], square=paddings[False])] if mixed else []
    return {"contrasts": contrasts, "metrics": metrics, "remarks": remarks}


def by_seed(metric: str, comparisons: list[dict[str, Any]]) -> list[float]:
    """Differences on one data set, averaged over the comparisons that have the seed."""
    rows = [dict(zip(c["seeds"], c["metrics"][metric]["values"], strict=True)) for c in comparisons]
    return [statistics.mean(r[seed] for r in rows if seed in r) for seed in sorted({s for r in rows for s in r})]


def text(found: dict[str, Any]) -> str:
    """What `pool` found: the contrasts, then one line a metric."""
    lines = [f"{dataset}: {', '.join(contrasts)}" for dataset, contrasts in found["contrasts"].items()]
    for name, m in found["metrics"].items():
        lines.append(f"{name}: {m['mean']:+.2f}; these data sets {_ends(m['these'])}, others {_ends(m['others'])}")
    return "\n".join([*lines, *found.get("remarks", [])])


def _ends(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"[{interval['low']:+.2f}, {interval['high']:+.2f}]"


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
