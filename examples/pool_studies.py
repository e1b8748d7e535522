"""Pool the paired differences of several `tscode compare` studies, for example of other families or data sets.

    python examples/pool_studies.py results=a/results.json,b/results.json out=pooled.json

Every comparison (an arm on a data set) weighs the same, whatever its number of seeds; the two intervals are those of
``tscode_yolo.study.statistics.pooled``: for these very comparisons, and for others like them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tscode_yolo.cli import parse
from tscode_yolo.study.arguments import as_list, existing
from tscode_yolo.study.statistics import pooled
from tscode_yolo.study.storage import read_json, write_json

METRICS = ("AP", "AP_averaged", "AP50", "AP75", "APs", "APm", "APl", "mAP")


def main(args: dict[str, Any]) -> int:
    """Pool the files given, write and print what comes out."""
    out = Path(str(args.pop("out")))
    metrics = pool(existing("results", f) for f in as_list(args.pop("results")))
    write_json(out, metrics)
    print(text(metrics))
    return 0


def pool(results: Iterable[Path]) -> dict[str, Any]:
    """Differences to the baseline, in points of AP, pooled over the comparisons of all files.

    Args:
        results: ``results.json`` of studies.

    Returns:
        Metric -> ``statistics.pooled`` of it; metrics that a comparison has no value of (APs without small objects) are
        left out.

    Raises:
        ValueError: no results of ``tscode compare``; or two comparisons of the same arm on the same data set: seeds of
            two studies are not put together.
    """
    comparisons: dict[str, dict[str, Any]] = {}
    for file in results:
        content = read_json(file)
        if not isinstance(content, dict) or not content.get("comparisons"):
            raise ValueError(f"results={file}: expected a results.json of `tscode compare`, got no comparisons in it")
        for c in content["comparisons"]:
            name = f"{c['arm']}, {c['dataset']}"
            if name in comparisons:
                raise ValueError(f"results={file}: {name} is in an earlier file already; expected it once")
            comparisons[name] = c["metrics"]
    return {
        metric: pooled({name: m[metric]["values"] for name, m in comparisons.items()})
        for metric in METRICS
        if all(m.get(metric) for m in comparisons.values())
    }


def text(metrics: dict[str, Any]) -> str:
    """One line a metric: mean, number of comparisons, both intervals."""
    return "\n".join(
        f"{name}: {m['mean']:+.2f} over {m['datasets']} pairs; these: {_ends(m['these'])}, others: {_ends(m['others'])}"
        for name, m in metrics.items()
    )


def _ends(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"[{interval['low']:+.2f}, {interval['high']:+.2f}]"


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
