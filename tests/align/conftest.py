"""Fixtures of the align room: scenes turned into tables without a network, and a small drawn data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.align.collect import Collector, Settings
from tscode_yolo.align.measure import Measurer
from tscode_yolo.align.source import Sample

from .align_scenes import draw_dataset, to_objects, to_raw


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
