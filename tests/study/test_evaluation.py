"""COCO's numbers: by hand, from two packages, and from the host's own labels and detections."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.evaluation import COCO_KEYS, StudyValidator, coco_metrics, evaluate

TOOLS = ["faster-coco-eval", "pycocotools"]


def truth(*boxes: list[float], images: int = 1) -> dict:
    """One class; boxes are [image, x, y, w, h] in pixels."""
    rows = [
        {"id": i + 1, "image_id": int(b[0]), "category_id": 0, "bbox": b[1:], "area": b[3] * b[4], "iscrowd": 0}
        for i, b in enumerate(boxes)
    ]
    sizes = [{"id": i, "height": 400, "width": 400} for i in range(images)]
    return {"images": sizes, "annotations": rows, "categories": [{"id": 0, "name": "x"}]}


def found(*rows: list[float]) -> list[dict]:
    """Rows are [image, x, y, w, h, score]."""
    return [{"image_id": int(r[0]), "category_id": 0, "bbox": r[1:5], "score": r[5]} for r in rows]


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param.replace("-", "_"))
    return request.param


def test_perfect_boxes_give_100_and_absent_sizes_nothing(tool):
    """Areas 20*20 = 400 (small) and 50*50 = 2500 (medium); no large object."""
    m = coco_metrics(
        truth([0, 10, 10, 20, 20], [0, 100, 100, 50, 50]),
        found([0, 10, 10, 20, 20, 0.9], [0, 100, 100, 50, 50, 0.8]),
        tool,
    )
    assert [m[k] for k in ("AP", "AP50", "APs", "APm")] == pytest.approx([100] * 4)
    assert m["APl"] is None


def test_one_of_two_objects_found_gives_51_of_101_recall_points(tool):
    """Precision 1 up to recall 0.5: points 0, 0.01, ..., 0.50 are 51 of 101."""
    m = coco_metrics(truth([0, 10, 10, 50, 50], [0, 200, 200, 50, 50]), found([0, 10, 10, 50, 50, 0.9]), tool)
    assert m["AP"] == pytest.approx(100 * 51 / 101)
    assert m["AR100"] == pytest.approx(50)


def test_a_false_positive_above_halves_precision(tool):
    """Ranked first and wrong, then right: precision 1/2 at recall 1, and 1/2 everywhere by interpolation."""
    m = coco_metrics(truth([0, 10, 10, 50, 50]), found([0, 300, 300, 50, 50, 0.9], [0, 10, 10, 50, 50, 0.8]), tool)
    assert m["AP"] == pytest.approx(50)


def test_a_loose_box_counts_up_to_its_iou(tool):
    """Box 100x100 found as 100x71 inside it: IoU 0.71, right at thresholds 0.50 to 0.70, 5 of 10."""
    m = coco_metrics(truth([0, 0, 0, 100, 100]), found([0, 0, 0, 100, 71, 0.9]), tool)
    assert m["AP"] == pytest.approx(50)
    assert (m["AP50"], m["AP75"]) == pytest.approx((100, 0))


def test_no_detections_are_zero_not_an_error(tool):
    m = coco_metrics(truth([0, 0, 0, 10, 10]), [], tool)
    assert m["AP"] == 0


def test_without_detections_absent_sizes_are_still_nothing(tool):
    """One object of 50*50: medium, and neither small nor large."""
    m = coco_metrics(truth([0, 10, 10, 50, 50]), [], tool)
    assert m == {k: None if k in ("APs", "APl", "ARs", "ARl") else 0.0 for k in COCO_KEYS}
    found_wrongly = coco_metrics(truth([0, 10, 10, 50, 50]), found([0, 300, 300, 50, 50, 0.9]), tool)
    assert found_wrongly == m


def test_images_are_padded_as_yolo_val_pads_them_unless_a_square_is_wanted(drawn, tmp_path, monkeypatch):
    YOLO("yolo11n.yaml").save(tmp_path / "m.pt")
    args = {"imgsz": 128, "batch": 3, "device": "cpu"}
    seen: list[tuple[int, ...]] = []
    original = DetectionValidator.preprocess

    def remember(self, batch):
        seen.append(tuple(batch["img"].shape))
        return original(self, batch)

    def shapes(call: Callable[[], object]) -> list[tuple[int, ...]]:
        seen.clear()
        call()
        return list(seen)

    monkeypatch.setattr(DetectionValidator, "preprocess", remember)
    host = YOLO(tmp_path / "m.pt")
    given = {"data": str(drawn), "plots": False, "workers": 0, "project": str(tmp_path), "verbose": False}
    expected = shapes(lambda: host.val(**args, **given))
    assert expected == [(3, 3, 160, 160), (1, 3, 160, 160)]  # half a stride of padding around 128
    assert shapes(lambda: evaluate(tmp_path / "m.pt", drawn, "val", args, tmp_path)) == expected
    square = shapes(lambda: evaluate(tmp_path / "m.pt", drawn, "val", args, tmp_path, rect=False))
    assert square == [(3, 3, 128, 128), (1, 3, 128, 128)]


def test_the_validator_gives_detections_and_labels_in_pixels_of_the_original(drawn, tmp_path, monkeypatch):
    """Let the model 'detect' exactly the labels: whatever the padding and scaling, COCO and host must both give 100."""
    import torch
    from ultralytics.utils import ops

    model = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    model.names = {0: "box", 1: "disc"}
    args = {"data": str(drawn), "imgsz": 160, "batch": 3, "plots": False, "task": "detect", "mode": "val", "workers": 0}
    validator = StudyValidator(args=args, save_dir=tmp_path)
    current: dict = {}
    original = StudyValidator.preprocess

    def remember(self, batch):
        current.update(batch)
        return original(self, batch)

    def perfect(self, _preds):
        side = torch.tensor(current["img"].shape[2:])[[1, 0, 1, 0]]
        out = []
        for i in range(len(current["im_file"])):
            own = current["batch_idx"] == i
            boxes = ops.xywh2xyxy(current["bboxes"][own]) * side
            out.append(
                {
                    "bboxes": boxes,
                    "conf": torch.ones(len(boxes)) * 0.9,
                    "cls": current["cls"][own][:, 0],
                    "extra": boxes[:, :0],
                }
            )
        return out

    monkeypatch.setattr(StudyValidator, "preprocess", remember)
    monkeypatch.setattr(StudyValidator, "postprocess", perfect)
    stats = validator(model=model)
    coco = validator.coco()
    assert coco["AP"] == pytest.approx(100)
    assert stats["metrics/mAP50-95(B)"] == pytest.approx(0.995, abs=0.005)  # the host's interpolation stops at 0.995
    label = validator.truth()["annotations"][0]
    file = sorted((drawn.parent / "labels" / "val").glob("*.txt"))[0]
    cls, x, y, w, h = (float(v) for v in file.read_text().split("\n")[0].split())
    assert label["category_id"] == cls
    assert label["bbox"] == pytest.approx([96 * (x - w / 2), 96 * (y - h / 2), 96 * w, 96 * h], abs=1e-3)
    assert label["area"] == pytest.approx(96 * w * 96 * h, rel=1e-4)
