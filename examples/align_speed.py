"""How long ``tscode align`` takes beside ``yolo val``, and how much memory, on the same images and one core.

    python examples/align_speed.py model=yolo11n.pt data=coco128.yaml images=5000 out=examples/results/align_speed.json

The images of the data set are repeated (as links) until there are enough. Each run is its own process; CPU time is
what to compare on a busy machine, wall time includes what others do. ``yolo val`` runs without plots, ``align`` with
everything it does by default: oracles, bootstrap, pictures, gradient maps, report.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import ultralytics
import yaml
from ultralytics.data.utils import check_det_dataset, img2label_paths

from tscode_yolo.align.source import list_images

VAL = "from ultralytics import YOLO; YOLO({model!r}).val(data={data!r}, imgsz={imgsz}, plots=False, verbose=False, "
VAL += "device='cpu', project={out!r}, name='val')"
ALIGN = "from tscode_yolo.align import main; raise SystemExit(main(dict(model={model!r}, data={data!r}, "
ALIGN += "imgsz={imgsz}, out={out!r} + '/align', verbose=False)))"


def repeat(data: str, count: int, folder: Path) -> Path:
    """Link the validation images and labels of a data set, over and over, until there are ``count``."""
    spec = check_det_dataset(data)
    sources = list_images(spec["val"])
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for n in range(count):
        image = sources[n % len(sources)]
        name = f"{n:06d}"
        (folder / "images" / "val" / f"{name}{image.suffix}").symlink_to(image.resolve())
        label = Path(img2label_paths([str(image)])[0])
        if label.is_file():
            (folder / "labels" / "val" / f"{name}.txt").symlink_to(label.resolve())
    file = folder / "data.yaml"
    names = {int(k): v for k, v in spec["names"].items()}
    file.write_text(yaml.safe_dump({"train": "images/val", "val": "images/val", "names": names}))
    return file


def measure(code: str) -> dict[str, float]:
    """Run Python code in a process of its own: seconds on the clock, CPU seconds, peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"expected exit code 0, got {process.returncode} from: {code}")
    return {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and write the JSON; keys: model, data, images, imgsz, out."""
    args = dict(a.split("=", 1) for a in arguments)
    count, imgsz = int(args.get("images", 1000)), int(args.get("imgsz", 640))
    os.environ["OMP_NUM_THREADS"] = "1"
    result: dict[str, Any] = {
        "what": "tscode align beside yolo val, one thread, same images",
        "command": "python examples/align_speed.py "
        + " ".join(f"{k}={Path(v).name if k in ('model', 'data', 'out') else v}" for k, v in args.items()),
        "versions": {"ultralytics": ultralytics.__version__, "torch": torch.__version__},
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, shared with other jobs; no GPU",
        "imgsz": imgsz,
    }
    with tempfile.TemporaryDirectory() as temporary:
        for images in sorted({max(count // 5, 1), count}):
            folder = Path(temporary) / str(images)
            values = {"model": str(Path(args["model"]).resolve()), "imgsz": imgsz, "out": str(folder)}
            values["data"] = str(repeat(args["data"], images, folder))
            row = {"yolo_val": measure(VAL.format(**values)), "align": measure(ALIGN.format(**values))}
            ratio = {k: round(row["align"][k] / row["yolo_val"][k], 2) for k in ("cpu_s", "wall_s")}
            result[f"{images}_images"] = {**row, "ratio": ratio}
            print(images, result[f"{images}_images"], flush=True)
    if "out" in args:
        Path(args["out"]).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
