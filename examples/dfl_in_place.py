"""What it is worth in an exported file to leave DFL's bins where they are (`tscode_yolo.integral`).

    python examples/dfl_in_place.py json=dfl.json [models=yolo11n,yolov8n formats=onnx,openvino imgsz=640 rounds=30
        threads=1]

(One line.) Three files of each model, in turns with the stock model as the host exports it: the TSCODE model with the
bins moved as in the host, the same with the bins in place (as in its ONNX export), and the stock model with them there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tscode_yolo import head
from tscode_yolo.cli import parse
from tscode_yolo.integral import Integral
from tscode_yolo.study.profile import exported_latency, load, quiet_host
from tscode_yolo.verbs.arguments import as_count, as_list, as_side, one_of, take_only
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json

ARGUMENTS = ("json", "models", "formats", "imgsz", "rounds", "threads")
MOVED = "tscode, moved"


def main(args: dict[str, Any]) -> int:
    """Time every model in every format; write one JSON."""
    args = take_only(args, ARGUMENTS, required=("json",))
    imgsz, rounds = as_side(args.get("imgsz", 640)), as_count("rounds", args.get("rounds", 30), 6)
    torch.set_num_threads(as_count("threads", args.get("threads", 1)))
    formats = [one_of("formats", f, ("onnx", "openvino")) for f in as_list(args.get("formats", "onnx,openvino"))]
    rows = []
    for name in map(str, as_list(args.get("models", "yolo11n,yolov8n"))):
        for fmt in formats:
            with quiet_host():
                for label, net in variants(name).items():
                    head.IN_PLACE = () if label == MOVED else (fmt,)  # what a TSCODE head's export looks at
                    row = exported_latency({label: net, name: load(f"{name}.yaml")}, fmt, imgsz, [1], rounds)[0]
                    rows.append({"model": name, "variant": label, **row})
                    r = row["ratio"]
                    print(f"{name}, {fmt}, {label}: {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})", flush=True)
    settings = {"imgsz": imgsz, "threads": torch.get_num_threads()}
    write_json(Path(str(args["json"])), {**settings, "rows": rows, "provenance": provenance()})
    return 0


def variants(name: str) -> dict[str, nn.Module]:
    """The models that are timed against the stock one, by what they are."""
    ours, stock = load(f"{name}-tscode.yaml"), load(f"{name}.yaml")
    bins = stock.model[-1].reg_max
    if bins == 1:
        raise ValueError(f"models={name}: expected a model whose boxes have bins, got one that regresses distances")
    stock.model[-1].dfl = Integral(bins)
    stock.model[-1].dfl.in_place = True  # of ours the export sets it
    return {MOVED: ours, "tscode, in place": ours, "stock, in place": stock}


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
