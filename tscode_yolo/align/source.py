"""Images and their annotations, one at a time, so that memory does not follow the size of the data set.

Two kinds of annotation are read: Ultralytics label files (:mod:`labels`) and a COCO ``instances`` JSON (:mod:`coco`).
Nothing is cached on disk and nothing in the data set is rewritten; what cannot be read is counted and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import imread

from tscode_yolo.align.coco import CocoFile, listed_images
from tscode_yolo.align.labels import BadLabel, LabelFolder, Objects
from tscode_yolo.verbs.loading import data_yaml
from tscode_yolo.verbs.storage import short

LISTED = 20  # problems named in the report: enough to act on; the count says how many more


@dataclass(frozen=True, slots=True)
class Sample:
    """One readable image: its number in the stream, path, BGR pixels (H, W, 3) uint8 and annotations."""

    index: int
    path: Path
    image: np.ndarray
    objects: Objects


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
        self.unlisted = 0

    def __len__(self) -> int:
        return len(self.images)

    def _skip(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if len(self.problems) < LISTED:
            self.problems.append(message)
        else:
            self.unlisted += 1

    def __iter__(self) -> Iterator[Sample]:
        self.counts.clear()
        self.problems.clear()
        self.unlisted = 0
        for path in self.images:
            self.counts["images_listed"] += 1
            try:
                image = imread(str(path))
            except (OSError, cv2.error) as error:
                self._skip("corrupt_images", f"{short(path)}: {error}")
                continue
            if image is None:
                self._skip("corrupt_images", f"{short(path)}: cannot be decoded as an image")
                continue
            if image.ndim != 3 or image.shape[2] != 3:
                self._skip("corrupt_images", f"{short(path)}: expected three channels, got the shape {image.shape}")
                continue
            height, width = image.shape[:2]
            try:
                objects = self.annotations(path, width, height)
            except BadLabel as error:
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
        spec = data_yaml(data)
        if not spec.get(split):
            raise ValueError(
                f"expected a part named {split!r} in {data}, got {sorted(set(spec) & {'train', 'val', 'test'})}"
            )
        _compare_names(names, spec["names"], data)
        reader = CocoFile(Path(annotations), names) if annotations else LabelFolder(len(names))
        paths = list_images(images or spec[split])
    if isinstance(reader, CocoFile):  # like COCO: an image the file does not list is not part of the set
        paths = listed_images(paths, reader)
    return Source(paths[:limit], reader, names)


def _compare_names(names: dict[int, str], given: dict[int, str], data: str) -> None:
    """ValueError if model and data have other numbers of classes or the same names in another order; else a warning."""
    if len(given) != len(names):
        raise ValueError(f"expected {len(names)} classes (the model's), got {len(given)} in {data}")
    ours, theirs = ([str(d[i]).strip().lower() for i in sorted(d)] for d in (names, given))
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise ValueError(
            f"expected the classes in the model's order, {list(names.values())}, got {list(given.values())} in {data}"
        )
    differ = [f"{i}: {a} and {b}" for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    if differ:
        LOGGER.warning(
            f"{len(differ)} classes are called otherwise in the model and in {data}: {', '.join(differ[:5])}"
        )
