"""The yardstick: one validator for every model, giving COCO's AP next to the host's own mAP from the same detections.

COCO's AP (Lin et al., arXiv:1405.0312; 101 recall points, at most 100 detections an image, sizes by area in pixels of
the original image: small < 32^2 <= medium < 96^2 <= large) comes from faster-coco-eval when installed, else from
pycocotools. The host's mAP interpolates differently and keeps up to 300 detections, so the two differ by a little.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import ops

from tscode_yolo.verbs.provenance import version

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
VALIDATION_KEYS = (  # of the train arguments; what decides which objects and detections count
    *("imgsz", "batch", "device", "half", "conf", "iou", "max_det", "single_cls", "classes", "agnostic_nms", "augment"),
    *("nms", "end2end"),
)
HOST_KEYS = {"metrics/mAP50-95(B)": "mAP", "metrics/mAP50(B)": "mAP50"}


def coco_tool() -> str:
    """Name and version of the package that computes COCO's AP here.

    Raises:
        ImportError: neither of the two is installed.
    """
    for package, module in (("faster-coco-eval", "faster_coco_eval"), ("pycocotools", "pycocotools")):
        if importlib.util.find_spec(module):
            return f"{package} {version(package)}"
    raise ImportError("COCO's AP needs faster-coco-eval or pycocotools, got neither; pip install faster-coco-eval")


def coco_metrics(truth: dict[str, Any], detections: list[dict[str, Any]], tool: str | None = None) -> dict[str, Any]:
    """COCO's twelve numbers, in percent.

    Args:
        truth: COCO ``images``, ``annotations`` (bbox xywh in pixels from the top left, ``area``, ``iscrowd``) and
            ``categories``.
        detections: ``image_id``, ``category_id``, ``bbox`` (xywh in pixels) and ``score`` each.
        tool: ``faster-coco-eval`` or ``pycocotools``; what `coco_tool` finds by default.

    Returns:
        `COCO_KEYS` -> percent; None where the truth has no such object (COCO prints -1).
    """
    if (tool or coco_tool()).startswith("faster"):
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    if not detections:  # of which the packages make no result
        areas = [a["area"] for a in truth["annotations"]]
        low_high = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, float("inf"))}
        there = {size: any(low <= a <= high for a in areas) for size, (low, high) in low_high.items()}
        return {k: 0.0 if there.get(k[-1], bool(areas)) else None for k in COCO_KEYS}
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, "licenses": [], **truth}
        gt.createIndex()
        evaluation = Evaluation(gt, gt.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [float(v) for v in list(evaluation.stats)[: len(COCO_KEYS)]]
    return {k: None if v < 0 else 100 * v for k, v in zip(COCO_KEYS, values, strict=True)}


class StudyValidator(DetectionValidator):
    """The host's validator, which also keeps its detections and labels in COCO's form.

    Attributes:
        wanted: keep them; off, it is the host's validator and nothing more.
        detections: COCO detections of the last pass, boxes in pixels of the original image.
    """

    wanted = True
    detections: list[dict[str, Any]]
    shapes: dict[int, tuple[int, ...]]
    dataloader: Any
    names: Any
    metrics: Any

    def init_metrics(self, model: torch.nn.Module) -> None:
        """Start a pass with no detections kept."""
        super().init_metrics(model)
        self.detections, self.shapes = [], {}
        self.image_ids = {str(f): i for i, f in enumerate(self.dataloader.dataset.im_files)}

    def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        """Keep the batch's detections, then let the host count them."""
        if self.wanted:
            for i, pred in enumerate(preds):
                self._keep(pred, self._prepare_batch(i, batch), str(batch["im_file"][i]))
        super().update_metrics(preds, batch)

    def truth(self) -> dict[str, Any]:
        """COCO annotations of the images of the last pass, from the labels the host has loaded."""
        dataset: Any = self.dataloader.dataset
        annotations: list[dict[str, Any]] = []
        images = []
        for image_id, label in enumerate(dataset.labels):
            height, width = self.shapes[image_id]
            images.append({"id": image_id, "height": height, "width": width, "file_name": Path(label["im_file"]).name})
            for cls, box in zip(label["cls"].ravel().tolist(), label["bboxes"].tolist(), strict=True):
                x, y, w, h = (v * side for v, side in zip(box, (width, height, width, height), strict=True))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(cls),
                        "bbox": [x - w / 2, y - h / 2, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": int(i), "name": str(n)} for i, n in self.names.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def coco(self) -> dict[str, Any]:
        """`coco_metrics` of the last pass."""
        return coco_metrics(self.truth(), self.detections)

    def _keep(self, pred: dict[str, Tensor], prepared: dict[str, Any], im_file: str) -> None:
        """Append one image's size and detections, boxes taken from the padded input back to the original image."""
        boxes: Any = ops.scale_boxes(
            prepared["imgsz"], pred["bboxes"].clone().float(), prepared["ori_shape"], ratio_pad=prepared["ratio_pad"]
        )
        boxes[:, 2:] -= boxes[:, :2]  # xyxy -> top left, width, height
        classes = pred["cls"] * 0 if self.args.single_cls else pred["cls"]
        rows = zip(boxes.tolist(), pred["conf"].tolist(), classes.tolist(), strict=True)
        image_id = self.image_ids[im_file]
        self.shapes[image_id] = tuple(prepared["ori_shape"])  # the host takes it off its labels for rectangles
        self.detections += [
            {"image_id": image_id, "category_id": int(c), "bbox": box, "score": s} for box, s, c in rows
        ]


def evaluate(
    weights: Path, data: Path, split: str, args: dict[str, Any], folder: Path, rect: bool = True
) -> dict[str, Any]:
    """Validate a checkpoint on a split, COCO's AP and the host's mAP from the same detections.

    Args:
        weights: checkpoint.
        data: data YAML.
        split: ``train``, ``val`` or ``test``.
        args: the run's train arguments; those that validation knows are taken over.
        folder: where the host may write.
        rect: pad as ``yolo val`` and the validation after each epoch do, to the next multiple of the stride plus half
            a stride (a square photograph at 256 pixels becomes 288), else to a square of ``imgsz``, as exported files
            of a fixed size need it. It can decide: on DeepPCB at 256 pixels the two are 7 to 10 AP apart.

    Returns:
        ``coco`` (`coco_metrics`), ``host`` (mAP and mAP50 in percent) and ``tool``.
    """
    taken: dict[str, Any] = {k: args[k] for k in VALIDATION_KEYS if k in args}
    overrides: dict[str, Any] = {**taken, "model": str(weights), "data": str(data), "split": split}
    overrides |= {"task": "detect", "mode": "val", "rect": rect, "plots": False, "verbose": False, "workers": 0}
    validator = StudyValidator(args=overrides, save_dir=folder)
    stats: Any = validator()
    host: dict[str, float] = {name: 100 * float(stats[key]) for key, name in HOST_KEYS.items()}
    return {"coco": validator.coco(), "host": host, "tool": coco_tool()}
