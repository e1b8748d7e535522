"""A small detection data set that is drawn rather than downloaded, for a first training anywhere.

Discs, boxes, triangles and rings, filled with stripes, checks or noise, overlapping on a noisy background. Class is
given by outline, not by colour or texture, and small objects are common, so there is something to learn.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

NAMES = ("disc", "box", "triangle", "ring")
SPLITS = {"train": 96, "val": 32}
SIZE = 320  # pixels, square images
MARKER = ".made-by-tscode-yolo"  # only a folder that holds this file is ever replaced
VISIBLE = 0.35  # an object that others cover more than this leaves unlabelled is not labelled


def make_shapes(root: str | Path, splits: dict[str, int] | None = None, size: int = SIZE) -> Path:
    """Write the data set in the host's layout, images/SPLIT and labels/SPLIT.

    It is written beside `root` and moved there when complete, so that an interrupted run leaves nothing behind. Image
    number i of a split depends on (split, i, size) only.

    Args:
        root: folder to make; one we made before is replaced.
        splits: images per split.
        size: height and width of the images in pixels, at least 64.

    Returns:
        `root`.

    Raises:
        FileExistsError: `root` exists and is not ours.
        ValueError: `size` below 64.
    """
    if Path(root).exists() and not Path(root, MARKER).is_file():
        raise FileExistsError(
            f"shapes: {Path(root).resolve()} exists and was not made by tscode_yolo, so it is left alone. Move it, run "
            "from another folder, or give the data set another path in a copy of shapes.yaml"
        )
    if size < 64:
        raise ValueError(f"shapes: size must be at least 64 pixels, got {size}")
    root = Path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for number, (split, count) in enumerate((splits or SPLITS).items()):
            images, labels = work / "images" / split, work / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for i in range(count):
                image, boxes = draw(np.random.default_rng([number, i, size]), size)
                cv2.imwrite(str(images / f"{i:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
                lines = (f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for c, x, y, w, h in boxes)
                (labels / f"{i:05d}.txt").write_text("".join(f"{line}\n" for line in lines))
        (work / MARKER).touch()
        if root.exists():
            shutil.rmtree(root)
        work.chmod(0o755)
        os.replace(work, root)  # noqa: PTH105  # the atomic one
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Returns:
        (size, size, 3) uint8 BGR, and (N, 5) rows of class and box cx cy w h, all relative to the image size. A box
        is the extent of the object's part inside the image, covered or not.
    """
    image = _background(rng, size)
    owner = np.full((size, size), -1, np.int16)  # which object is seen at each pixel
    masks, classes = [], []
    for i in range(int(rng.integers(3, 10))):
        classes.append(int(rng.integers(len(NAMES))))
        masks.append(_mask(rng, size, classes[-1]))
        image[masks[-1]] = _texture(rng, size)[masks[-1]]
        owner[masks[-1]] = i
    rows = []
    for i, (c, mask) in enumerate(zip(classes, masks)):
        ys, xs = np.nonzero(mask)
        if len(ys) < 24 or (owner == i).sum() < VISIBLE * len(ys):
            continue
        x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        rows.append((c, (x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size))
    noisy = image.astype(np.float32) + rng.normal(0, 6, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), np.array(rows, np.float64).reshape(-1, 5)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth colour clouds."""
    coarse = rng.integers(40, 216, (6, 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) stripes, checks or noise in two random colours."""
    yy, xx = np.mgrid[:size, :size]
    period, angle = int(rng.integers(4, 14)), rng.uniform(0, np.pi)
    kind = int(rng.integers(3))
    if kind == 0:
        on = (np.cos(angle) * xx + np.sin(angle) * yy) // period % 2 == 0
    elif kind == 1:
        on = (xx // period + yy // period) % 2 == 0
    else:
        on = rng.random((size, size)) < 0.5
    dark, light = rng.integers(0, 128, 3), rng.integers(96, 256, 3)
    return np.where(on[..., None], light, dark).astype(np.uint8)


def _mask(rng: np.random.Generator, size: int, cls: int) -> np.ndarray:
    """(size, size) bool, True inside one shape of the class, partly outside the image at times."""
    radius = size * float(np.exp(rng.uniform(np.log(0.035), np.log(0.32))))
    cx, cy = rng.uniform(0, size, 2)
    aspect, turn = rng.uniform(0.6, 1.0), rng.uniform(0, 360)
    mask = np.zeros((size, size), np.uint8)
    name = NAMES[cls]
    if name in ("disc", "ring"):
        axes = (max(2, round(radius)), max(2, round(radius * aspect)))
        cv2.ellipse(mask, (round(cx), round(cy)), axes, turn, 0, 360, 1, -1)
        if name == "ring":
            cv2.ellipse(mask, (round(cx), round(cy)), tuple(max(1, round(a * 0.55)) for a in axes), turn, 0, 360, 0, -1)
    else:
        corners = [45, 135, 225, 315] if name == "box" else [90, 210, 330]
        angle = np.radians(corners)
        points = np.stack([np.cos(angle), np.sin(angle) * aspect], 1) * radius
        t = np.radians(turn)
        points = points @ np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) + (cx, cy)
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
    return mask.astype(bool)
