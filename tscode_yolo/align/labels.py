"""Annotations of one image, and the Ultralytics label files that hold them (one text file an image).

Label rules follow the host (``ultralytics.data.utils.verify_image_label``): a file with a bad row loses its image,
repeated rows count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import img2label_paths


@dataclass(frozen=True, slots=True)
class Objects:
    """The annotations of one image. G = annotations.

    Attributes:
        boxes: (G, 4) xyxy in pixels of the original image.
        labels: (G,) class index of the model.
        crowd: (G,) bool, a region holding many objects (COCO ``iscrowd``): any number of boxes may fall in it.
        ignore: (G,) bool, annotations that are neither to be found nor to be punished; every crowd is ignored.
        areas: (G,) pixels squared, what decides small, medium or large (COCO's ``area`` where there is one).
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def build(
        cls,
        boxes: Any,
        labels: Any,
        crowd: Any = None,
        ignore: Any = None,
        areas: Any = None,
    ) -> Objects:
        """Make the arrays from any sequences; ``crowd`` and ``ignore`` default to False, ``areas`` to the boxes'.

        Args:
            boxes: (G, 4) xyxy in pixels.
            labels: (G,) class indices.
            crowd: (G,) bool.
            ignore: (G,) bool; crowds are added to it.
            areas: (G,) pixels squared.

        Returns:
            The annotations as arrays of their final types.
        """
        box = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        n = len(box)
        is_crowd = np.zeros(n, bool) if crowd is None else np.asarray(crowd, bool).reshape(n)
        ignored = np.zeros(n, bool) if ignore is None else np.asarray(ignore, bool).reshape(n)
        size = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        return cls(
            boxes=box,
            labels=np.asarray(labels, dtype=np.int64).reshape(n),
            crowd=is_crowd,
            ignore=ignored | is_crowd,
            areas=size if areas is None else np.asarray(areas, dtype=np.float64).reshape(n),
        )


class BadLabel(ValueError):
    """A label file that breaks the format; the image is counted and left out."""


def read_label_file(path: Path, width: int, height: int, nc: int) -> Objects:
    """Read one Ultralytics label file: ``class cx cy w h`` or ``class x1 y1 x2 y2 ...`` (a polygon), relative to size.

    Args:
        path: the text file.
        width: of the image, pixels.
        height: of the image, pixels.
        nc: number of classes.

    Returns:
        The objects in pixels; none for an empty file.

    Raises:
        BadLabel: the file is not UTF-8 or cannot be read, a row has a wrong number of values, a class outside 0..nc-1,
            or coordinates outside 0..1.
    """
    rows: dict[tuple[float, ...], None] = {}
    name = "/".join(path.parts[-2:])
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadLabel(f"{name}: expected text in UTF-8, got the byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise BadLabel(f"{name}: expected a readable file, got {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = [float(v) for v in line.split()]
        except ValueError as error:
            raise BadLabel(f"{name}:{number}: expected numbers, got {line!r}") from error
        if len(values) > 6:
            xy = np.array(values[1:]).reshape(-1, 2) if len(values) % 2 else None
            if xy is None:
                raise BadLabel(f"{name}:{number}: expected pairs x y after the class, got {len(values) - 1} values")
            low, high = xy.min(0), xy.max(0)
            values = [values[0], *((low + high) / 2), *(high - low)]
        if len(values) != 5:
            raise BadLabel(f"{name}:{number}: expected 'class cx cy w h', got {len(values)} values")
        if not (0 <= values[0] < nc and values[0] == int(values[0])):
            raise BadLabel(f"{name}:{number}: expected a class from 0 to {nc - 1}, got {values[0]:g}")
        if not all(-0.01 <= v <= 1.01 for v in values[1:]):  # also not a number
            raise BadLabel(f"{name}:{number}: expected coordinates from 0 to 1, got {line!r}")
        rows[tuple(values)] = None
    table = np.array(list(rows), dtype=np.float64).reshape(-1, 5)
    centre, size = table[:, 1:3] * (width, height), table[:, 3:5] * (width, height)
    return Objects.build(np.hstack([centre - size / 2, centre + size / 2]), table[:, 0])


class LabelFolder:
    """Annotations from the label files beside the images (``images/`` -> ``labels/``, the host's rule)."""

    def __init__(self, nc: int) -> None:
        self.nc = nc

    def __call__(self, path: Path, width: int, height: int) -> Objects | None:
        """Return the objects of one image, or None if it has no label file (a background image)."""
        label = Path(img2label_paths([str(path)])[0])
        return read_label_file(label, width, height, self.nc) if label.is_file() else None
