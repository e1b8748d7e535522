"""Images and their annotations, one at a time, so that memory does not follow the size of the data set.

Two kinds of annotation are read: Ultralytics label files (one text file an image) and a COCO ``instances`` JSON, which
may mark ``iscrowd`` and ``ignore``. Nothing is cached on disk and nothing in the data set is rewritten; what cannot be
read is counted and left out. Label rules follow the host (``ultralytics.data.utils.verify_image_label``): a file with
a bad row loses its image, repeated rows count once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, img2label_paths
from ultralytics.utils.patches import imread


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


@dataclass(frozen=True, slots=True)
class Sample:
    """One readable image: its number in the stream, path, BGR pixels (H, W, 3) uint8 and annotations."""

    index: int
    path: Path
    image: np.ndarray
    objects: Objects


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
        BadLabel: a row has a wrong number of values, a class outside 0..nc-1, or coordinates outside 0..1.
    """
    rows: dict[tuple[float, ...], None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(v) for v in line.split()]
        except ValueError as error:
            raise BadLabel(f"{path}:{number}: expected numbers, got {line!r}") from error
        if len(values) > 6:
            xy = np.array(values[1:]).reshape(-1, 2) if len(values) % 2 else None
            if xy is None:
                raise BadLabel(f"{path}:{number}: expected pairs x y after the class, got {len(values) - 1} values")
            low, high = xy.min(0), xy.max(0)
            values = [values[0], *((low + high) / 2), *(high - low)]
        if len(values) != 5:
            raise BadLabel(f"{path}:{number}: expected 'class cx cy w h', got {len(values)} values")
        if not (0 <= values[0] < nc and values[0] == int(values[0])):
            raise BadLabel(f"{path}:{number}: expected a class from 0 to {nc - 1}, got {values[0]:g}")
        if min(values[1:]) < -0.01 or max(values[1:]) > 1.01:
            raise BadLabel(f"{path}:{number}: expected coordinates from 0 to 1, got {line!r}")
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


class CocoFile:
    """Annotations from a COCO ``instances`` JSON, with its crowds.

    ``iscrowd`` means what it means in COCO. A plain ``ignore: 1`` is honoured too (pycocotools overwrites it): the
    object is neither to be found nor to be punished, at its ordinary IoU. The file is held in memory, as pycocotools
    does: it is the one part that grows with the data set.

    Args:
        path: the JSON.
        names: the model's class names by index; categories are matched by name, else by order of id when as many.

    Raises:
        ValueError: the file is not of that form, or its categories cannot be told apart from the names.
    """

    def __init__(self, path: Path, names: dict[int, str]) -> None:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = [k for k in ("images", "annotations", "categories") if k not in content]
        if missing:
            raise ValueError(f"{path}: expected a COCO instances file, got one without {', '.join(missing)}")
        self.classes = self._class_of(content["categories"], names)
        self.files: dict[str, int] = {image["file_name"]: image["id"] for image in content["images"]}
        self.names = {Path(name).name: key for name, key in self.files.items()}
        self.rows: dict[int, list[dict[str, Any]]] = {}
        for row in content["annotations"]:
            if row["category_id"] in self.classes:
                self.rows.setdefault(row["image_id"], []).append(row)

    @staticmethod
    def _class_of(categories: list[dict[str, Any]], names: dict[int, str]) -> dict[int, int]:
        index = {name: i for i, name in names.items()}
        matched = {c["id"]: index[c["name"]] for c in categories if c.get("name") in index}
        if matched:
            return matched
        if len(categories) == len(names):
            return {c["id"]: i for i, c in enumerate(sorted(categories, key=lambda c: int(c["id"])))}
        raise ValueError(
            f"expected categories named like the model's {len(names)} classes, got {len(categories)} others; "
            "rename them in the JSON or use the data set the model was trained on"
        )

    def __call__(self, path: Path, width: int, height: int) -> Objects | None:
        """Return the objects of one image, or None if the file does not list it."""
        key = self.names.get(path.name)
        if key is None:
            return None
        rows = self.rows.get(key, [])
        ltwh = np.array([r["bbox"] for r in rows], dtype=np.float64).reshape(-1, 4)
        boxes = np.hstack([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]])
        return Objects.build(
            boxes,
            [self.classes[r["category_id"]] for r in rows],
            [bool(r.get("iscrowd", 0)) for r in rows],
            [bool(r.get("ignore", 0)) for r in rows],
            [float(r.get("area", w * h)) for r, (_, _, w, h) in zip(rows, ltwh, strict=True)],
        )


def list_images(places: str | Path | list[str | Path]) -> list[Path]:
    """List the image files of folders, of text files with one path a line, or single files, sorted.

    Args:
        places: one place or several.

    Returns:
        The paths, in the host's order.

    Raises:
        FileNotFoundError: a place does not exist or no image is found.
    """
    found: list[Path] = []
    for place in places if isinstance(places, list) else [places]:
        root = Path(place)
        if root.is_dir():
            found += [p for p in root.rglob("*.*") if p.suffix[1:].lower() in IMG_FORMATS]
        elif root.suffix == ".txt" and root.is_file():
            lines = (line.strip() for line in root.read_text(encoding="utf-8-sig").splitlines())
            found += [root.parent / line[2:] if line.startswith("./") else Path(line) for line in lines if line]
        elif root.is_file():
            found.append(root)
        else:
            raise FileNotFoundError(f"expected a folder, a list or an image, got {root}, which does not exist")
    if not found:
        raise FileNotFoundError(f"expected images in {places}, got none (known endings: {sorted(IMG_FORMATS)})")
    return sorted(found)


class Source:
    """A data set to walk through: image paths, and a reader of annotations.

    Args:
        images: paths of the images.
        annotations: called with (path, width, height); None for an image without annotation.
        names: class names by index.
    """

    def __init__(
        self, images: list[Path], annotations: Callable[[Path, int, int], Objects | None], names: dict[int, str]
    ) -> None:
        self.images, self.annotations, self.names = images, annotations, names
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def __len__(self) -> int:
        return len(self.images)

    def _skip(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if len(self.problems) < 20:  # enough to act on; the count says how many more
            self.problems.append(message)

    def __iter__(self) -> Iterator[Sample]:
        self.counts.clear()
        self.problems.clear()
        for path in self.images:
            self.counts["images_listed"] += 1
            try:
                image = imread(str(path))
            except (OSError, cv2.error) as error:
                self._skip("corrupt_images", f"{path.name}: {error}")
                continue
            if image is None:
                self._skip("corrupt_images", f"{path.name}: cannot be decoded as an image")
                continue
            height, width = image.shape[:2]
            try:
                objects = self.annotations(path, width, height)
            except (BadLabel, UnicodeDecodeError) as error:
                self._skip("corrupt_labels", str(error))
                continue
            if objects is None:
                self.counts["images_without_label_file"] += 1
                objects = Objects.build([], [])
            if not len(objects):
                self.counts["images_without_objects"] += 1
            yield Sample(self.counts["images_read"], path, image, objects)
            self.counts["images_read"] += 1


def open_source(
    data: str,
    names: dict[int, str],
    split: str = "val",
    annotations: str | None = None,
    images: str | None = None,
    limit: int | None = None,
) -> Source:
    """Open an Ultralytics data YAML, or a COCO JSON with its image folder.

    Args:
        data: the YAML, or the JSON itself.
        names: the model's class names by index.
        split: which part of the YAML.
        annotations: a COCO JSON to use in place of the label files (it may mark crowds).
        images: folder of the images, needed when ``data`` is a JSON.
        limit: take the first so many images only.

    Returns:
        The source.

    Raises:
        ValueError: the pieces do not fit together; the message says which.
    """
    if str(data).endswith(".json"):
        if images is None:
            raise ValueError("expected images=FOLDER beside a COCO json, got none")
        reader: Callable[[Path, int, int], Objects | None] = CocoFile(Path(data), names)
        paths = list_images(images)
    else:
        spec = check_det_dataset(str(data))
        if not spec.get(split):
            raise ValueError(
                f"expected a part named {split!r} in {data}, got {sorted(set(spec) & {'train', 'val', 'test'})}"
            )
        if len(spec["names"]) != len(names):
            raise ValueError(f"expected {len(names)} classes (the model's), got {len(spec['names'])} in {data}")
        reader = CocoFile(Path(annotations), names) if annotations else LabelFolder(len(names))
        paths = list_images(images or spec[split])
    if isinstance(reader, CocoFile):  # like COCO: an image the file does not list is not part of the set
        paths = [p for p in paths if p.name in reader.names]
        if not paths:
            raise ValueError("expected images named in the COCO json, got none in the folder")
    return Source(paths[:limit], reader, names)
