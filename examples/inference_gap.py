"""Is a model in use as good as in training? COCO AP of the same weights in every form they are used in.

    python examples/inference_gap.py model=yolo11n-tscode.yaml baseline=yolo11n.yaml data=bccd/data.yaml init=yolo11n.pt
        json=gap.json epochs=10 imgsz=192 [any other train argument]

(One line.) Each model is trained, then judged on the validation split by one validator: the trained weights themselves,
their moving average (what the host saves), that fused, as stored (float16, then float32 again), as ONNX in float32 and
float16, and on CUDA in float16. The moving average differs from the trained weights in any model; the rest should not.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from tscode_yolo.cli import parse
from tscode_yolo.study.evaluation import StudyValidator, coco_tool
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import without_folders, write_json

FORMS = ("trained", "average", "fused", "stored", "onnx", "onnx half", "cuda half")


def main(args: dict[str, Any]) -> int:
    """Train and judge each model; write one JSON."""
    out, init = Path(str(args.pop("json"))), args.pop("init", None)
    models = [args.pop("model"), *([args.pop("baseline")] if "baseline" in args else [])]
    rows = {}
    for name in map(str, models):
        with tempfile.TemporaryDirectory() as folder:
            rows[Path(name).stem] = row = judged(name, init, args, Path(folder))
        shown = ", ".join(f"{form} {row[form]['AP']:.2f}" for form in FORMS if form in row)
        print(f"{name}: {shown}", flush=True)
    train = {k: without_folders(v) if isinstance(v, str) else v for k, v in args.items()}
    write_json(out, {"AP": rows, "train": train, "tool": coco_tool(), "provenance": provenance()})
    return 0


def judged(name: str, init: str | None, args: dict[str, Any], folder: Path) -> dict[str, Any]:
    """COCO's numbers (percent) of one model in each form that can be had here."""
    kept: dict[str, Any] = {}

    def keep(trainer: Any) -> None:
        kept["trained"] = copy.deepcopy(trainer.model).float()
        kept["average"] = copy.deepcopy(trainer.ema.ema).float()

    yolo = YOLO(name)
    if init is not None:
        yolo.load(str(init))
    yolo.add_callback("on_train_end", keep)
    yolo.train(**args, project=str(folder), name="run", plots=False, verbose=False)
    stored = folder / "run" / "weights" / "last.pt"
    forms: dict[str, Any] = {form: unfused(kept[form]) for form in ("trained", "average")}
    forms |= {"fused": copy.deepcopy(kept["average"]), "stored": str(stored)}
    for form, half in (("onnx", False), ("onnx half", True)):
        file = YOLO(stored).export(format="onnx", imgsz=args.get("imgsz", 640), half=half, verbose=False)
        forms[form] = str(Path(file).rename(folder / f"{'half' if half else 'full'}.onnx"))
    if torch.cuda.is_available():
        forms["cuda half"] = str(stored)
    return {form: judge(model, args, folder, half=form == "cuda half") for form, model in forms.items()}


def unfused(model: Any) -> Any:
    """The model, proof against the folding of norms that the host's inference does."""
    model = copy.deepcopy(model)
    model.fuse = lambda verbose=False: model
    return model


def judge(model: Any, args: dict[str, Any], folder: Path, half: bool) -> dict[str, float | None]:
    """COCO's numbers of a module or a file on the validation split, every image in a square of the same size."""
    overrides = {k: args[k] for k in ("data", "imgsz", "device", "single_cls") if k in args}
    overrides |= {"mode": "val", "task": "detect", "rect": False, "batch": 1, "half": half, "workers": 0}
    overrides |= {"plots": False, "verbose": False}
    by_name = isinstance(model, str)
    validator = StudyValidator(args={**overrides, **({"model": model} if by_name else {})}, save_dir=folder)
    validator(model=None if by_name else model)
    return validator.coco()


if __name__ == "__main__":
    sys.exit(main(parse(sys.argv[1:])))
