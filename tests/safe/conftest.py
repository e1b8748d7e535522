"""Checkpoints as the host's training saves them: half precision, statistics that moved, names, train arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

NAMES = {0: "disc", 1: "two words", 2: "Zelle ü"}


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Write a checkpoint of a model YAML with every tensor random: (file, yaml, changes to the YAML) to its path."""

    def make(file: Path, name: str = "yolo11n-tscode.yaml", dtype: torch.dtype = torch.half, **changes: object) -> Path:
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        import tscode_yolo.register

        tscode_yolo.register.register()
        net = DetectionModel({**yaml_model_load(name), **changes}, nc=3, verbose=False)
        generator = torch.Generator().manual_seed(7)
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.01)
            elif tensor.dtype != torch.bool:
                tensor.fill_(41)  # BatchNorm's batches seen
        net.names = dict(NAMES)
        net.args = {"imgsz": 96, "data": str(file.parent / "cells" / "data.yaml"), "lr0": 0.01, "classes": None}
        checkpoint = {"model": net.to(dtype), "ema": None, "train_args": net.args, "epoch": -1, "date": "2026-01-02"}
        torch.save({**checkpoint, "train_metrics": {"metrics/mAP50(B)": 0.5}}, file)
        return file

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    """best.pt of yolo11n-tscode."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture(scope="session")
def packed(checkpoint: Path) -> Path:
    """The same, packed."""
    from tscode_yolo.safe.pack import pack

    return pack(checkpoint)
