"""Does a grey border around an image change the boxes inside? AP and sizes of the boxes at borders of several widths.

    python examples/border_effect.py json=border.json model=best.pt data=my.yaml [imgsz=640 borders=0,16,32 images=100]

(One line.) Validation images are scaled to ``imgsz`` and set into a square with so many grey pixels more on each side:
16 is what ``yolo val`` adds to a square image. Scale augmentation leaves such a border around what it made smaller, so
that a model can learn that a border means small objects, above all where all objects of a set have one size. ``model=``
may be several, joined by commas. `size` is the geometric mean of predicted over labelled sides, of boxes of IoU > 0.5.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torchvision.ops import box_convert, box_iou
from ultralytics import YOLO
from ultralytics.data.utils import img2label_paths

from tscode_yolo.cli import parse
from tscode_yolo.study.inventory import DataSet, read_dataset
from tscode_yolo.verbs.arguments import as_count, as_list, as_side, existing, take_only
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json

GREY = (114, 114, 114)  # the host's letterbox
ARGUMENTS = ("json", "model", "data", "imgsz", "borders", "images")


def main(args: dict[str, Any]) -> int:
    """Judge every model at every border; write one JSON."""
    args = take_only(args, ARGUMENTS, required=("json", "model", "data"))
    imgsz, limit = as_side(args.get("imgsz", 640)), as_count("images", args.get("images", 100))
    borders = [as_count("borders", b, 0) for b in as_list(args.get("borders", "0,16,32"))]
    if odd := [b for b in borders if b % 16]:
        raise ValueError(f"borders={odd[0]}: expected a multiple of 16, so that the whole is one of 32")
    models = [existing("model", m) for m in as_list(args["model"])]
    whole = read_dataset(args["data"])
    rows = []
    for border in borders:
        with tempfile.TemporaryDirectory() as folder:
            data = framed(whole, limit, imgsz, border, Path(folder))
            for file in models:
                rows.append({"model": file.name, "border": border, **judged(file, data, imgsz + 2 * border)})
                ap, ap75, size = (rows[-1][k] or 0 for k in ("AP", "AP75", "size"))
                print(f"{file.name}, border {border}: AP {ap:.1f}, AP75 {ap75:.1f}, size {size:.3f}", flush=True)
    settings = {"imgsz": imgsz, "images": min(limit, len(whole.images["val"])), "data": whole.as_dict()}
    write_json(Path(str(args["json"])), {**settings, "rows": rows, "provenance": provenance()})
    return 0


def framed(whole: DataSet, limit: int, imgsz: int, border: int, folder: Path) -> Path:
    """Data YAML of at most `limit` evenly spaced validation images, each in its border; written into `folder`."""
    files = whole.images["val"]
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else list(files)
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    side = imgsz + 2 * border
    for file, label in zip(chosen, img2label_paths([str(f) for f in chosen]), strict=True):
        image = cv2.imread(str(file))
        scale = imgsz / max(image.shape[:2])
        h, w = (round(n * scale) for n in image.shape[:2])
        top, left = (side - h) // 2, (side - w) // 2
        inner = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        image = cv2.copyMakeBorder(inner, top, side - h - top, left, side - w - left, cv2.BORDER_CONSTANT, value=GREY)
        cv2.imwrite(str(folder / "images/val" / f"{Path(file).stem}.png"), image)
        text = Path(label).read_text(encoding="utf-8") if Path(label).is_file() else ""
        labels = np.array([line.split() for line in text.splitlines() if line.strip()], float).reshape(-1, 5)
        labels[:, 1:] = (labels[:, 1:] * (w, h, w, h) + (left, top, 0, 0)) / side
        lines = [" ".join(f"{v:.7g}" for v in row) for row in labels]
        (folder / "labels/val" / f"{Path(file).stem}.txt").write_text("\n".join(lines), encoding="utf-8")
    content = {"path": str(folder), "train": "images/val", "val": "images/val", "names": dict(enumerate(whole.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "data.yaml"


def judged(model: Path, data: Path, side: int) -> dict[str, float | None]:
    """AP (the host's, percent) and size of the boxes of one model on framed images; None if no box is near a label."""
    options: dict[str, Any] = {"imgsz": side, "rect": False, "plots": False, "save": False, "verbose": False}
    box = YOLO(str(model)).val(data=str(data), workers=0, project=str(data.parent), **options).box
    ratios = []
    yolo = YOLO(str(model))
    for file in sorted((data.parent / "images/val").iterdir()):
        found = yolo.predict(str(file), imgsz=side, verbose=False)[0].boxes.xyxy.cpu()
        text = (data.parent / "labels/val" / f"{file.stem}.txt").read_text(encoding="utf-8")
        labels = torch.tensor([[float(v) * side for v in line.split()[1:]] for line in text.splitlines()]).view(-1, 4)
        labels = box_convert(labels, "cxcywh", "xyxy")
        if len(found) and len(labels):
            iou, which = box_iou(found, labels).max(1)
            pairs = found[iou > 0.5], labels[which[iou > 0.5]]
            own, labelled = (p[:, 2:] - p[:, :2] for p in pairs)
            ratios.append(torch.log(own / labelled))
    sides = torch.cat(ratios) if ratios else torch.empty(0)
    size = float(sides.mean().exp()) if len(sides) else None
    return {"AP": 100 * float(box.map), "AP50": 100 * float(box.map50), "AP75": 100 * float(box.map75), "size": size}


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
