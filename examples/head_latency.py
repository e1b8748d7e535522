"""Time of whole models with the TSCODE head over the stock models', for families and scales that ship.

    python examples/head_latency.py json=head-latency.json [imgsz=640 families=yolov8,yolo11,yolo26 scales=smx
        formats=pytorch,onnx rounds=30 threads=1 device=cpu batches=1]

(One line.) Fused, the two models in turns in one process, as in `tscode profile`, which times training too and takes
longer. device=0 is the first GPU: half precision, timed by events; formats=cudagraph leaves out the time of launching
kernels one by one. The file is written after every model; what is in it in the same format is not timed again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tscode_yolo.cli import parse
from tscode_yolo.study.profile import FORMATS, GRAPH, exported_latency, load, pytorch_latency, quiet_host
from tscode_yolo.verbs.arguments import as_count, as_device, as_list, as_side, one_of, take_only
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import read_json, write_json

ARGUMENTS = ("json", "imgsz", "families", "scales", "formats", "rounds", "threads", "device", "batches")


def main(args: dict[str, Any]) -> int:
    """Time every model that is asked for."""
    args = take_only(args, ARGUMENTS, required=("json",))
    file, imgsz = Path(str(args["json"])), as_side(args.get("imgsz", 640))
    rounds = as_count("rounds", args.get("rounds", 30), 6)  # fewer give no interval
    torch.set_num_threads(as_count("threads", args.get("threads", 1)))
    formats = [one_of("formats", f, tuple(FORMATS)) for f in as_list(args.get("formats", "pytorch"))]
    device = as_device(args.get("device", "cpu"))
    batches = [as_count("batches", b) for b in as_list(args.get("batches", 1))]
    if device.type != "cuda" and GRAPH in formats:
        raise ValueError(f"formats={GRAPH}: expected a CUDA device, got device={device}; give device=0")
    settings = {"imgsz": imgsz, "batches": batches, "threads": torch.get_num_threads(), "device": str(device)}
    kept = read_json(file) or {**settings, "rows": [], "provenance": []}
    earlier = kept["provenance"]
    if other := [k for k, v in settings.items() if kept.get(k) != v]:
        raise ValueError(f"json={file.name}: holds rows with another {', '.join(other)}; choose another file")
    for family in as_list(args.get("families", "yolov8,yolo11,yolo26")):
        for scale in str(args.get("scales", "smx")):
            for fmt in formats:
                name = f"{family}{scale}"
                if any((row["model"], row["format"]) == (name, fmt) for row in kept["rows"]):
                    continue
                kept["rows"] += timed(name, fmt, imgsz, batches, device, rounds)
                write_json(file, {**kept, "provenance": [*earlier, provenance()]})
    return 0


def timed(
    name: str, fmt: str, imgsz: int, batches: list[int], device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """The rows of one model in one format, printed as they come: the model, and in PyTorch its head too."""
    with quiet_host():
        nets = {n: load(f"{n}.yaml").to(device) for n in (f"{name}-tscode", name)}
        if fmt in ("pytorch", GRAPH):
            rows = pytorch_latency(nets, imgsz, batches, device, rounds, graph=fmt == GRAPH)
        else:
            rows = exported_latency(nets, fmt, imgsz, batches, rounds)
    for row in rows:
        r = row["ratio"]
        what = f"{name}, {fmt}, batch {row['batch']}, {row['part']}"
        print(f"{what}: {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})", flush=True)
    return [{"model": name, **row} for row in rows]


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
