"""How much of a stock model's AP a grafted TSCODE model keeps, against steps, images and minutes spent.

    python examples/graft_budget.py weights=yolo11n.pt model=yolo11n-tscode.yaml images=coco128/images/train
        data=coco128.yaml budgets=50,200,800 counts=32,128 imgsz=640 out=examples/results/graft.json

(One line.) Each row is a ``tscode graft`` of its own, from a fresh head: ``counts`` takes evenly spaced images of those
in the folder. The file is written after every row; a row that is in it already is not repeated.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tscode_yolo.cli import parse
from tscode_yolo.graft import graft
from tscode_yolo.graft.images import find_images
from tscode_yolo.verbs.arguments import as_list
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import read_json, write_json


def main(args: dict[str, Any]) -> int:
    """Graft once for every count of images and budget of steps."""
    out = Path(str(args.pop("out")))
    budgets, counts = ([int(v) for v in as_list(args.pop(k))] for k in ("budgets", "counts"))
    files = find_images([Path(str(f)) for f in as_list(args.pop("images"))])
    rows = (read_json(out) or {"rows": []})["rows"]
    for count in counts:
        for steps in budgets:
            if any((row["files"], row["steps"]) == (count, steps) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                for i in range(count):
                    file = files[i * len(files) // count]
                    shutil.copy(file, Path(folder) / f"{i:06d}{file.suffix}")
                report = graft(images=folder, steps=steps, out=str(Path(folder) / "grafted.pt"), **args)
            course, ap = report["course"], report["AP"]
            rows.append(
                {
                    "files": count,
                    "steps": steps,
                    "views": course["images"],
                    "minutes": round(course["minutes"], 2),
                    "AP_stock": round(100 * ap["weights"], 2),
                    "AP_grafted": round(100 * ap["grafted"], 2),
                    "losses": course["losses"][-1],
                }
            )
            settings = {k: report[k] for k in ("weights", "model", "options", "imgsz", "batch", "lr", "seed")}
            write_json(out, {"rows": rows, "settings": settings, "provenance": provenance()})
            print({k: v for k, v in rows[-1].items() if k != "losses"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
