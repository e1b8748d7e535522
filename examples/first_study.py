"""Stock head against TSCODE on three YOLO families and several data sets, paired by seed, and all of it pooled.

    python examples/first_study.py data=DIR weights=DIR out=DIR [epochs=40 seeds=3 imgsz=320 ...]

``data=`` holds one folder a data set with a data.yaml; ``weights=`` holds FAMILY-restored.pt, from which backbone and
neck start. Each family is one ``tscode compare`` with a folder and report of its own; any of its arguments passes
through. Killed at any point, the same command goes on. ``families=`` and ``datasets=`` choose less than the default.
The data folder should be a copy of your own: the host writes its label caches there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tscode_yolo.cli import parse
from tscode_yolo.study import compare
from tscode_yolo.study.statistics import pooled
from tscode_yolo.study.storage import read_json, write_json

DEFAULTS: dict[str, Any] = {"epochs": 40, "seeds": 3, "imgsz": 320, "batch": 16, "last": 5}
FAMILIES = "yolov8n,yolo11n,yolo26n"
DATASETS = "bccd,deep_pcb"


def main(args: dict[str, Any]) -> int:
    """Run every family's study, then pool the differences of AP over families and data sets."""
    args = {**DEFAULTS, **args}
    out, folder, weights = (Path(args.pop(k)) for k in ("out", "data", "weights"))
    families = args.pop("families", FAMILIES).split(",")
    data = ",".join(str(folder / d / "data.yaml") for d in args.pop("datasets", DATASETS).split(","))
    code = 0
    for family in families:
        own = {
            "model": f"{family}-tscode.yaml",
            "baseline": f"{family}.yaml",
            "init": weights / f"{family}-restored.pt",
        }
        code |= compare.main({**args, **own, "data": data, "out": str(out / family)})
    rows = [(f, c) for f in families for c in read_json(out / f / "results.json")["comparisons"]]
    metrics = {
        name: pooled({f"{f}, {c['dataset']}": c["metrics"][name]["values"] for f, c in rows})
        for name in ("AP", "AP_averaged", "AP50", "mAP")
        if all(name in c["metrics"] for _, c in rows)
    }
    write_json(out / "pooled.json", metrics)
    for name, m in metrics.items():
        intervals = f"these: {_ends(m['these'])}, others: {_ends(m['others'])}"
        print(f"{name}: {m['mean']:+.2f} over {m['datasets']} pairs; {intervals}")
    return code


def _ends(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return "no interval"
    return f"[{interval['low']:+.2f}, {interval['high']:+.2f}]"


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
