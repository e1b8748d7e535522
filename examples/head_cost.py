"""Cost of the TSCODE head over the stock head's, for every family and scale that ships.

    python examples/head_cost.py json=head-cost.json [imgsz=640 families=yolov8,yolo11,yolo12,yolo26 scales=nsmlx]

Counted, not timed: GFLOPs of the head as deployed (2 per multiply-add) and its parameters, see `tscode profile`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tscode_yolo.cli import parse
from tscode_yolo.study.flops import count
from tscode_yolo.study.profile import load, quiet_host
from tscode_yolo.study.provenance import provenance
from tscode_yolo.study.storage import write_json


def main(args: dict) -> int:
    imgsz, rows = int(args.get("imgsz", 640)), []
    for family in str(args.get("families", "yolov8,yolo11,yolo12,yolo26")).split(","):
        for scale in str(args.get("scales", "nsmlx")):
            with quiet_host():
                ours, stock = (count(load(f"{family}{scale}{s}.yaml"), imgsz)["head"] for s in ("-tscode", ""))
            parameters = [sum(part["parameters"] for part in head["parts"]) for head in (ours, stock)]
            row = {"model": f"{family}{scale}", "gflops": ours["gflops"], "stock_gflops": stock["gflops"]}
            row |= {"parameters": parameters[0], "stock_parameters": parameters[1]}
            row |= {"gflops_ratio": ours["gflops"] / stock["gflops"], "parameter_ratio": parameters[0] / parameters[1]}
            rows.append(row)
            print(
                f"{row['model']}: GFLOPs {row['gflops_ratio']:.3f}, parameters {row['parameter_ratio']:.3f}", flush=True
            )
    if "json" in args:
        write_json(Path(str(args["json"])), {"imgsz": imgsz, "rows": rows, "provenance": provenance()})
    return 0


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
