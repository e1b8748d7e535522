"""Cost of the TSCODE head over the stock head's, for every family and scale that ships.

    python examples/head_cost.py json=head-cost.json [imgsz=640 families=yolov8,yolo11,yolo12,yolo26 scales=nsmlx]
        [options="{preset: stock}" loaded=true]

(One line.) ``options`` change the TSCODE head, as in its ``tscode:`` mapping. With ``loaded=true`` it is the head after
weights of the stock model were loaded: towers that are the stock head's then have its width.

Counted, not timed: GFLOPs of the head as deployed (2 per multiply-add), its parameters, the operations it launches and
the bytes they move, see `tscode profile`.
YOLO26 has two rows: as deployed with NMS (one-to-many branch), and with ``nms=False`` (one-to-one branch).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.cli import parse
from tscode_yolo.study.flops import count
from tscode_yolo.study.profile import load, quiet_host
from tscode_yolo.study.traffic import summary, trace
from tscode_yolo.verbs.loading import with_options
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json

SHOWN = {"gflops": "GFLOPs", "parameters": "parameters", "operations": "operations", "bytes": "bytes moved"}
RATIOS = {
    "gflops": "gflops_ratio",
    "parameters": "parameter_ratio",
    "operations": "operation_ratio",
    "bytes": "bytes_ratio",
}


def main(args: dict) -> int:
    imgsz, rows = int(args.get("imgsz", 640)), []
    for family in str(args.get("families", "yolov8,yolo11,yolo12,yolo26")).split(","):
        for scale in str(args.get("scales", "nsmlx")):
            rows += compared(f"{family}{scale}", imgsz, args.get("options"), bool(args.get("loaded")))
    if "json" in args:
        given = {"imgsz": imgsz, "options": args.get("options"), "loaded": bool(args.get("loaded"))}
        found = {**given, "rows": rows, "provenance": provenance()}
        write_json(Path(str(args["json"])), found)
    return 0


def compared(name: str, imgsz: int, options: Any = None, loaded: bool = False) -> list[dict[str, Any]]:
    """The rows of one model of a family and scale, printed as they come."""
    rows = []
    with quiet_host():
        tscode = DetectionModel(with_options(f"{name}-tscode.yaml", options), verbose=False)
        nets: list[Any] = [tscode, load(f"{name}.yaml")]
        if loaded:
            tscode.load(nets[1], verbose=False)
        counts = {name: [head_of(net, imgsz) for net in nets]}
        if getattr(nets[1].model[-1], "one2one_cv2", None) is not None:
            for net in nets:
                net.end2end = True
            counts[f"{name} nms=False"] = [head_of(net, imgsz) for net in nets]
    for label, (ours, stock) in counts.items():
        row = {"model": label, **ours, **{f"stock_{k}": v for k, v in stock.items()}}
        row |= {ratio: ours[k] / stock[k] for k, ratio in RATIOS.items()}
        rows.append(row)
        print(f"{label}: {', '.join(f'{shown} {row[RATIOS[k]]:.3f}' for k, shown in SHOWN.items())}", flush=True)
    return rows


def head_of(net: DetectionModel, imgsz: int) -> dict[str, Any]:
    """What is compared of a model's head."""
    head = count(net, imgsz)["head"]
    moved = summary(trace(net, imgsz))["head"]
    return {"gflops": head["gflops"], "parameters": sum(p["parameters"] for p in head["parts"]), **moved}


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
