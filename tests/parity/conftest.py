"""Weights that behave like trained ones without a training: statistics that fit, scores and boxes that vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch


def coarse() -> torch.Tensor:
    """Eight 160x160 images of coarse noise, of the kind that `noise` writes."""
    return torch.nn.functional.interpolate(torch.rand(8, 3, 15, 15), size=(160, 160), mode="bilinear")


def standardise(conv: torch.nn.Conv2d, _: object, out: torch.Tensor) -> None:
    """Scale a predictor so that its outputs, logits of scores or of distances, have mean -1 and deviation 1.5."""
    scale = 1.5 / out.std().clamp(min=1e-6)
    conv.weight.mul_(scale)
    if conv.bias is not None:
        conv.bias.sub_(out.mean()).mul_(scale).sub_(1)


@pytest.fixture(scope="session")
def make_lively() -> Callable[..., Path]:
    """Write a checkpoint: (file, model YAML, seed) to its path.

    A freshly built network answers every place with nearly the same numbers, so that ties decide NMS. Here BatchNorm
    gets the statistics of noise images, and the predictors are scaled for scores all over (0, 1).
    """

    def make(file: Path, name: str = "yolo11n-tscode.yaml", nc: int = 3, seed: int = 0) -> Path:
        from ultralytics.nn.tasks import DetectionModel

        import tscode_yolo.register

        tscode_yolo.register.register()
        torch.manual_seed(seed)
        net = DetectionModel(name, nc=nc, verbose=False)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # average over all it sees
        with torch.no_grad():
            net.train()
            for _ in range(2):
                net(coarse())
            net.eval()
            names = [p + n for p in ("", "one2one_") for n in ("cv2", "cv3", "cls_skip")]
            branches = [t for n in names for t in getattr(net.model[-1], n, None) or ()]
            predictors = [t[-1] for t in branches if not isinstance(t, torch.nn.Identity)]
            for predictor in predictors:
                predictor.register_forward_hook(standardise)
            net(coarse())
            for predictor in predictors:
                predictor._forward_hooks.clear()
        net.names = {i: f"class {i}" for i in range(nc)}
        net.args = {"imgsz": 96}
        torch.save({"model": net.eval(), "ema": None, "train_args": net.args}, file)
        return file

    return make


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory, make_lively: Callable[..., Path]) -> Path:
    """best.pt of a lively yolo11n-tscode with three classes."""
    return make_lively(tmp_path_factory.mktemp("lively") / "best.pt")


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of two images of coarse noise."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    files = [str(folder / f"{i}.png") for i in range(2)]
    for file in files:
        cv2.imwrite(file, cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (128, 96)))
    return files
