"""Scenes as raw predictions and annotations, and a small drawn data set on disk."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.predict import Raw

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


class Page(HTMLParser):
    """Reads a page: what stays open, its pictures, and whatever it would fetch from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        if tag in ("script", "link", "iframe"):
            self.links.append(tag)
        self.links += [v for k, v in attrs.items() if k in ("href", "src") and not str(v).startswith("data:")]
        if tag not in ("img", "meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
