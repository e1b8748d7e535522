"""A drawn data set and a tiny study, small enough to train in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

CLASSES = ("box", "disc")


def draw_split(folder: Path, split: str, count: int, seed: int, side: int = 96) -> None:
    """Images with one to three filled shapes on noise, and their labels."""
    rng = np.random.default_rng(seed)
    (folder / "images" / split).mkdir(parents=True)
    (folder / "labels" / split).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
        lines = []
        for _ in range(rng.integers(1, 4)):
            cls, half = int(rng.integers(2)), int(rng.integers(8, 20))
            x, y = (int(v) for v in rng.integers(half, side - half, 2))
            if cls:
                cv2.circle(image, (x, y), half, (40, 40, 250), -1)
            else:
                cv2.rectangle(image, (x - half, y - half), (x + half, y + half), (250, 200, 40), -1)
            lines.append(f"{cls} {x / side} {y / side} {2 * half / side} {2 * half / side}")
        cv2.imwrite(str(folder / "images" / split / f"{split}{i}.png"), image)
        (folder / "labels" / split / f"{split}{i}.txt").write_text("\n".join(lines) + "\n")


def drawn_dataset(folder: Path, seed: int = 0, train: int = 8, val: int = 4) -> Path:
    """Write a data set into `folder` and return its YAML."""
    draw_split(folder, "train", train, seed)
    draw_split(folder, "val", val, seed + 1000)
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASSES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    return folder / "data.yaml"


@pytest.fixture(scope="session")
def draw() -> Callable[..., Path]:
    """`drawn_dataset`, for tests that want one of their own."""
    return drawn_dataset


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML of a drawn data set, shared by the session."""
    return drawn_dataset(tmp_path_factory.mktemp("data") / "drawn")
