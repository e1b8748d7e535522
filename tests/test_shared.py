"""On real images, weights and video, where ../shared is beside the repository."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import fresh_python
from test_commands import rows, yolo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def coco128(installed, shared) -> Path:
    """data.yaml of a copy, since the host writes label caches beside the labels."""
    copy = installed / "coco128"
    shutil.copytree(shared / "data/coco128", copy, copy_function=shutil.copyfile)
    return copy / "data.yaml"


@pytest.fixture(scope="module")
def trained(installed, shared, coco128) -> Callable[[str], Path]:
    """Weights of one epoch on coco128 from a family's restored weights, trained when first asked for."""

    @functools.cache
    def best(family: str) -> Path:
        weights = shared / f"weights/{family}-restored.pt"
        options = (f"pretrained={weights}", "epochs=1", "imgsz=160", "batch=16", "workers=0", "device=cpu")
        out = yolo(installed, "train", f"model={family}-tscode.yaml", f"data={coco128}", f"name={family}", *options)
        assert "(100 %)" in out
        return installed / f"runs/detect/{family}/weights/last.pt"

    return best


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_training_on_coco128_starts_from_official_weights(installed, trained, coco128, family):
    weights = trained(family)
    losses = rows(installed / f"runs/detect/{family}/results.csv")[-1]
    assert 0 < losses["train/box_loss"] < 10
    out = yolo(installed, "val", f"model={weights}", f"data={coco128}", "imgsz=160", "device=cpu", "plots=False")
    assert "128        898" in out  # every image and box of val was judged


@pytest.fixture(scope="module")
def eight_images(installed, coco128) -> Path:
    """data.yaml of eight images of coco128 that have boxes; trained and judged on."""
    root = installed / "eight"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    labels = [f for f in sorted((coco128.parent / "labels/train").glob("*.txt")) if f.read_text().strip()][:8]
    for label in labels:
        shutil.copyfile(label, root / "labels" / label.name)
        image = coco128.parent / "images/train" / label.with_suffix(".jpg").name
        shutil.copyfile(image, root / "images" / image.name)
    names = yaml.safe_load(coco128.read_text())["names"]
    (root / "data.yaml").write_text(
        yaml.safe_dump({"path": str(root), "train": "images", "val": "images", "names": names})
    )
    return root / "data.yaml"


@pytest.mark.parametrize("family", ["yolo11n", "yolo26n"])
def test_a_fresh_head_overfits_eight_real_images(installed, shared, eight_images, family):
    """AP50 over 0.9 on what it was trained on, each object learnt by heart, with a batch of two and no augmentation."""
    plain = [f"{k}=0" for k in ("mosaic", "hsv_h", "hsv_s", "hsv_v", "fliplr", "translate", "scale", "erasing")]
    options = (
        "epochs=40",
        "batch=2",
        "nbs=2",
        "optimizer=AdamW",
        "lr0=0.001",
        "lrf=0.05",
        "weight_decay=0",
        "val=False",
    )
    where = ("imgsz=320", "workers=0", "device=cpu", "amp=False", "plots=False", f"name=overfit-{family}")
    weights = f"pretrained={shared / f'weights/{family}-restored.pt'}"
    yolo(installed, "train", f"model={family}-tscode.yaml", weights, f"data={eight_images}", *options, *where, *plain)
    code = f"""
from ultralytics import YOLO
model = YOLO("runs/detect/overfit-{family}/weights/last.pt")
print("AP50", model.val(data={str(eight_images)!r}, imgsz=320, device="cpu", plots=False, workers=0).box.map50)
"""
    assert float(fresh_python(code, installed).rpartition("AP50")[2]) > 0.9


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort with ReID"])
def test_tracking_the_real_video(installed, shared, trained, tracker):
    from ultralytics.utils import ROOT

    config = "bytetrack.yaml"
    if tracker != "bytetrack":
        config = installed / "reid.yaml"
        text = (ROOT / "cfg/trackers/botsort.yaml").read_text()
        config.write_text(text.replace("with_reid: False", "with_reid: True"))
    video = shared / "data/video/bikes.mp4"
    options = ("imgsz=160", "conf=0.01", "device=cpu", "vid_stride=5")
    out = yolo(installed, "track", f"model={trained('yolo11n')}", f"source={video}", f"tracker={config}", *options)
    assert "(frame 50/50)" in out or "(frame 250/250)" in out
