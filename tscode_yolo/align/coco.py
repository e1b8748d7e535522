"""Annotations from a COCO ``instances`` JSON, which may mark ``iscrowd`` and ``ignore``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER

from tscode_yolo.align.labels import Objects

PARTS = {  # part of the file: what each of its entries has
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id",),
}


def _check_part(path: Path, content: dict[str, Any], part: str, keys: tuple[str, ...]) -> None:
    """Refuse a file without a part, or with an entry that lacks a key; the message says which."""
    rows = content.get(part)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a COCO instances file, got one without {part}")
    for number, row in enumerate(rows):
        missing = [k for k in keys if not isinstance(row, dict) or k not in row]
        if missing:
            raise ValueError(f"{path}: {part}[{number}]: expected {', '.join(keys)}, got none of {', '.join(missing)}")
        for key in keys:
            _check_key(f"{path}: {part}[{number}]", key, row[key])


def _check_key(where: str, key: str, value: Any) -> None:
    """Refuse an id that is no number and no text, or a file name that is no text."""
    if key == "file_name":
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: expected a text as file_name, got {value!r}")
    elif not isinstance(value, str) and not _is_number(value):
        raise ValueError(f"{where}: expected a number or a text as {key}, got {value!r}")


def _file_ids(path: Path, images: list[dict[str, Any]]) -> dict[str, Any]:
    """File name -> id; refuse two images of one name, or two names of one id, whose objects would get lost or mixed."""
    files: dict[str, Any] = {}
    first: dict[Any, tuple[int, str]] = {}
    for number, row in enumerate(images):
        name = Path(row["file_name"]).as_posix()
        if files.get(name, row["id"]) != row["id"]:
            earlier = first[files[name]][0]
            raise ValueError(
                f"{path}: images[{number}]: expected a file_name of its own, got {name!r} of images[{earlier}] under "
                f"another id ({row['id']!r} and {files[name]!r}); give both one entry, and their annotations its id"
            )
        earlier, other = first.setdefault(row["id"], (number, name))
        if other != name:
            raise ValueError(
                f"{path}: images[{number}]: expected an id of its own, got {row['id']!r} of images[{earlier}] "
                f"({name!r} and {other!r})"
            )
        files[name] = row["id"]
    return files


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check_box(path: Path, row: dict[str, Any]) -> None:
    """Refuse an annotation whose box or area is none."""
    box, area = row.get("bbox"), row.get("area")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
        raise ValueError(f"{path}: annotation {row.get('id')}: expected bbox [x, y, width, height], got {box}")
    if area is not None and not _is_number(area):
        raise ValueError(f"{path}: annotation {row.get('id')}: expected a number as area, got {area!r}")
    for key in ("iscrowd", "ignore"):
        if row.get(key) not in (None, 0, 1):  # True and False are 1 and 0
            raise ValueError(f"{path}: annotation {row.get('id')}: expected 0 or 1 as {key}, got {row[key]!r}")


class CocoFile:
    """Annotations from a COCO ``instances`` JSON, with its crowds.

    ``iscrowd`` means what it means in COCO. A plain ``ignore: 1`` is honoured too (pycocotools overwrites it): the
    object is neither to be found nor to be punished, at its ordinary IoU. The file is held in memory, as pycocotools
    does: it is the one part that grows with the data set.

    Args:
        path: the JSON.
        names: the model's class names by index; categories are matched by name (in any case), else by order of id when
            as many.

    Attributes:
        foreign: category name -> annotations left out, because the model has no such class.
        homeless: annotations left out, because their image is not among the file's images.

    Raises:
        ValueError: the file is not of that form, or its categories cannot be told apart from the names.
    """

    def __init__(self, path: Path, names: dict[int, str]) -> None:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: expected a COCO instances file, got no JSON ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a COCO instances file, got a {type(content).__name__} at its top")
        for part, keys in PARTS.items():
            _check_part(path, content, part, keys)
        self.classes = self._class_of(path, content["categories"], names)
        called = {c["id"]: str(c.get("name", c["id"])) for c in content["categories"]}
        self.files = _file_ids(path, content["images"])
        shared = Counter(Path(name).name for name in self.files)
        self.names = {Path(n).name: key for n, key in self.files.items() if shared[Path(n).name] == 1}
        self.foreign: Counter[str] = Counter()
        self.rows: dict[Any, list[dict[str, Any]]] = {}
        listed = set(self.files.values())
        self.homeless = 0
        for row in content["annotations"]:
            if row["category_id"] not in self.classes:
                self.foreign[called.get(row["category_id"], str(row["category_id"]))] += 1
                continue
            _check_box(path, row)
            self.homeless += row["image_id"] not in listed
            self.rows.setdefault(row["image_id"], []).append(row)

    @staticmethod
    def _class_of(path: Path, categories: list[dict[str, Any]], names: dict[int, str]) -> dict[Any, int]:
        index = {str(name).strip().lower(): i for i, name in names.items()}
        found = {c["id"]: index.get(str(c.get("name", "")).strip().lower()) for c in categories}
        matched = {key: i for key, i in found.items() if i is not None}
        if matched:
            return matched
        if len(categories) == len(names):
            for number, category in enumerate(categories):
                if not _is_number(category["id"]) and not category["id"].isdecimal():
                    raise ValueError(
                        f"{path}: categories[{number}]: expected a name of the model's classes, or a number as id to "
                        f"put the classes in order, got id {category['id']!r}, name {category.get('name')!r}"
                    )
            return {c["id"]: i for i, c in enumerate(sorted(categories, key=lambda c: float(c["id"])))}
        raise ValueError(
            f"{path}: expected categories named like the model's {len(names)} classes, got {len(categories)} others; "
            "rename them in the JSON or use the data set the model was trained on"
        )

    def __call__(self, path: Path, width: int, height: int) -> Objects | None:
        """Return the objects of one image, or None if the file does not list it."""
        key = self.key(path)
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
            [w * h if r.get("area") is None else float(r["area"]) for r, (_, _, w, h) in zip(rows, ltwh, strict=True)],
        )

    def key(self, path: Path) -> int | str | None:
        """The id of an image: by the folders that the file names too, else by its own name if no other has it."""
        parts = path.parts
        for first in range(len(parts)):
            name = "/".join(parts[first:])
            if name in self.files:
                return self.files[name]
        return self.names.get(path.name)


def listed_images(paths: list[Path], reader: CocoFile) -> list[Path]:
    """The images that a COCO file lists, each once; says what of the file is left out."""
    keys = {p: reader.key(p) for p in paths}
    twins = [k for k, n in Counter(k for k in keys.values() if k is not None).items() if n > 1]
    if twins:
        both = [str(p) for p, k in keys.items() if k == twins[0]]
        raise ValueError(
            f"expected one image for each entry of the COCO json, got {' and '.join(both)} for image {twins[0]}; "
            "write the folders into its file_name, or give a narrower images="
        )
    listed = [p for p in paths if keys[p] is not None]
    if not listed:
        raise ValueError("expected images named in the COCO json, got none in the folder")
    absent = len(reader.files) - len(listed)
    if absent:
        LOGGER.warning(f"{absent} of {len(reader.files)} images of the COCO json are not there; they are left out")
    if reader.homeless:
        LOGGER.warning(
            f"{reader.homeless} annotations are left out, for the COCO json lists no image of their image_id"
        )
    if reader.foreign:
        left = ", ".join(f"{name} ({count})" for name, count in reader.foreign.most_common(5))
        LOGGER.warning(
            f"{sum(reader.foreign.values())} annotations are left out, for the model has no class of that name: {left}"
        )
    return listed
