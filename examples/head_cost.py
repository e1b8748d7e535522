"""Cost of the TSCODE head over the stock head's, for every family and scale that ships.

    python examples/head_cost.py json=head-cost.json [imgsz=640 families=yolov8,yolo11,yolo12,yolo26 scales=nsmlx]
        [options="{preset: stock}"]

(One line.) ``options`` change the TSCODE head, as in its ``tscode:`` mapping.

Counted, not timed: GFLOPs of the head as deployed (2 per multiply-add) and its parameters, see `tscode profile`.
YOLO26 has two rows: as deployed with NMS (one-to-many branch), and with ``nms=False`` (one-to-one branch).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.cli import parse
from tscode_yolo.study.flops import count
from tscode_yolo.study.loading import with_options
from tscode_yolo.study.profile import load, quiet_host
from tscode_yolo.study.provenance import provenance
from tscode_yolo.study.storage import write_json


def main(args: dict) -> int:
    imgsz, rows = int(args.get("imgsz", 640)), []
    for family in str(args.get("families", "yolov8,yolo11,yolo12,yolo26")).split(","):
        for scale in str(args.get("scales", "nsmlx")):
            rows += compared(f"{family}{scale}", imgsz, args.get("options"))
    if "json" in args:
        found = {"imgsz": imgsz, "options": args.get("options"), "rows": rows, "provenance": provenance()}
        write_json(Path(str(args["json"])), found)
    return 0


def compared(name: str, imgsz: int, options: Any = None) -> list[dict[str, Any]]:
    """The rows of one model of a family and scale, printed as they come."""
    rows = []
    with quiet_host():
        tscode = DetectionModel(with_options(f"{name}-tscode.yaml", options), verbose=False)
        nets: list[Any] = [tscode, load(f"{name}.yaml")]
        counts = {name: [count(net, imgsz)["head"] for net in nets]}
        if getattr(nets[1].model[-1], "one2one_cv2", None) is not None:
            for net in nets:
                net.end2end = True
            counts[f"{name} nms=False"] = [count(net, imgsz)["head"] for net in nets]
    for label, heads in counts.items():
        ours, stock = ({"gflops": h["gflops"], "parameters": sum(p["parameters"] for p in h["parts"])} for h in heads)
        row = {"model": label, **ours, **{f"stock_{k}": v for k, v in stock.items()}}
        row |= {"gflops_ratio": ours["gflops"] / stock["gflops"]}
        row |= {"parameter_ratio": ours["parameters"] / stock["parameters"]}
        rows.append(row)
        print(f"{label}: GFLOPs {row['gflops_ratio']:.3f}, parameters {row['parameter_ratio']:.3f}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
