"""Fixtures of the align room: scenes turned into tables without a network, and a small drawn data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.align.collect import Collector, Settings
from tscode_yolo.align.measure import Measurer
from tscode_yolo.align.predict import Raw
from tscode_yolo.align.source import Objects, Sample

SIZE = 400


def to_raw(image: dict, classes: int) -> Raw:
    """One raw box a detection, with a score in its class alone."""
    dets = image["dets"]
    scores = np.zeros((len(dets), classes))
    for i, d in enumerate(dets):
        scores[i, d["cls"]] = d["score"]
    return Raw(np.array([d["box"] for d in dets], dtype=float).reshape(-1, 4), scores, (SIZE, SIZE))


def to_objects(image: dict) -> Objects:
    gts = image["gts"]
    return Objects.build([g["box"] for g in gts], [g["cls"] for g in gts], [g["crowd"] for g in gts])


@pytest.fixture
def measure():
    """Scene -> (values by name for the data as they are, collector, measurer); NMS is off unless iou is given."""

    def run(scene, classes=3, iou=1.0, end2end=False, **settings):
        names = {i: str(i) for i in range(classes)}
        detector = SimpleNamespace(end2end=end2end, names=names, name="fake")
        collector = Collector(detector, Settings(iou=iou, max_det=1000, **settings))
        for i, image in enumerate(scene):
            collector.add(Sample(i, Path(f"{i}.jpg"), np.zeros((1, 1, 3), np.uint8), to_objects(image)),
                          to_raw(image, classes))  # fmt: skip
        measurer = Measurer(collector, len(scene), classes)
        values = {k: v[0] for k, v in measurer(np.ones((1, len(scene)), np.uint16)).items()}
        return values, collector, measurer

    return run


def draw_dataset(root: Path, count: int, seed: int = 0, size: int = 96) -> Path:
    """Write ``count`` images of coloured rectangles (class 0) and discs (class 1) with labels; return the YAML."""
    rng = np.random.default_rng(seed)
    for part in ("train", "val"):
        (root / "images" / part).mkdir(parents=True, exist_ok=True)
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        height, width = (size, size) if n % 3 else (size, size * 3 // 4)
        image = np.full((height, width, 3), 90, np.uint8)
        rows = []
        for cls in (0, 1):
            side = int(rng.integers(16, 36))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            colour = tuple(int(v) for v in rng.integers(120, 255, 3))
            if cls:
                cv2.circle(image, (x + side // 2, y + side // 2), side // 2, colour, -1)
            else:
                cv2.rectangle(image, (x, y), (x + side, y + side), colour, -1)
            box = ((x + side / 2) / width, (y + side / 2) / height, side / width, side / height)
            rows.append(" ".join([str(cls), *(f"{v:.6f}" for v in box)]))
        cv2.imwrite(str(root / "images" / "val" / f"{n:04d}.png"), image)
        (root / "labels" / "val" / f"{n:04d}.txt").write_text("\n".join(rows) + "\n")
    (root / "data.yaml").write_text("train: images/val\nval: images/val\nnames:\n  0: box\n  1: disc\n")
    return root / "data.yaml"


@pytest.fixture
def dataset(tmp_path):
    return draw_dataset(tmp_path / "set", 6)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """An untrained two-class yolo11n whose scores lie around one half, so that everything has something to measure."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    net = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    net.names = {0: "box", 1: "disc"}
    net.args = {"task": "detect", "imgsz": 96}
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:  # one pass sets the statistics, so that features, and scores, differ from place to place
        norm.momentum = 1.0
    net.train()(torch.rand(4, 3, 96, 96))
    for norm in norms:
        norm.momentum = momentum
    for head in net.model[-1].cv3:
        torch.nn.init.normal_(head[-1].weight, std=0.05)
        torch.nn.init.constant_(head[-1].bias, -2.0)
    path = folder / "tiny.pt"
    torch.save({"model": net.eval(), "train_args": {"task": "detect", "imgsz": 96}, "epoch": -1}, path)
    return str(path)
