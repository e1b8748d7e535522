"""What a data set consists of: its images and labels, a hash of every one, and whether two sets share images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.data.utils import IMG_FORMATS, img2label_paths

from tscode_yolo.verbs.loading import data_yaml

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataSet:
    """One data YAML, read and hashed.

    Attributes:
        name: short name for tables: the YAML's stem, or its folder for ``data.yaml``.
        yaml: absolute path of the YAML.
        names: class names in order.
        images: split -> image paths.
        digests: split -> digest of each image's bytes, in the order of `images`.
        sha256: of names, image bytes and label bytes of every split; file places do not enter.
    """

    name: str
    yaml: Path
    names: tuple[str, ...]
    images: dict[str, tuple[Path, ...]]
    digests: dict[str, tuple[str, ...]]
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """What a report keeps: no paths."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "classes": list(self.names),
            "images": {split: len(files) for split, files in self.images.items()},
        }


def dataset_name(data: str | Path) -> str:
    """The short name that `read_dataset` gives a data YAML, without reading its images."""
    return _name(_file(data_yaml(data), data))


def read_dataset(data: str | Path, key: str = "data") -> DataSet:
    """Resolve a data YAML as the host does, list every image of its splits and hash images and labels.

    Args:
        data: as the host finds it.
        key: argument that named it, for messages.

    Raises:
        FileNotFoundError: the host cannot find the YAML, or a split that it names.
        ValueError: no data YAML, or train or val is missing or empty.
    """
    info = data_yaml(data, key)
    yaml = _file(info, data)
    images = {s: tuple(_image_files(info[s])) for s in SPLITS if info.get(s)}
    for split in ("train", "val"):
        if not images.get(split):
            raise ValueError(
                f"{key}={yaml.name}: expected images under '{split}:', got none; name the folder in the YAML"
            )
    names = tuple(str(info["names"][i]) for i in sorted(info["names"]))
    total = hashlib.sha256("\n".join(names).encode())
    digests: dict[str, tuple[str, ...]] = {}
    for split, files in images.items():
        digests[split] = tuple(_digest(f) for f in files)
        labels = (_digest(Path(p)) for p in img2label_paths([str(f) for f in files]))
        for image, digest, label in zip(files, digests[split], labels, strict=True):
            total.update(f"{split} {image.name} {digest} {label}\n".encode())
    return DataSet(_name(yaml), yaml, names, images, digests, total.hexdigest())


def require_unseen(final: DataSet, split: str, trained: DataSet) -> None:
    """Make sure that a final test set can judge models trained on `trained`.

    Args:
        final: the set to report on.
        split: its split to report on.
        trained: the set whose train and val images the models, or their makers, have seen.

    Raises:
        ValueError: the split is missing, classes differ, or an image of it is, byte for byte, also in train or val.
    """
    if split not in final.images:
        raise ValueError(f"final={final.yaml.name}: expected a '{split}' split, got {sorted(final.images)}")
    if final.names != trained.names:
        raise ValueError(
            f"final={final.yaml.name}: expected the classes of {trained.name}, {list(trained.names)}, "
            f"got {list(final.names)}"
        )
    known = {d for s in ("train", "val") for d in trained.digests.get(s, ())}
    shared = [f.name for f, d in zip(final.images[split], final.digests[split], strict=True) if d in known]
    if shared:
        raise ValueError(
            f"final={final.yaml.name}: expected images that training never saw, got {len(shared)} that are also in "
            f"{trained.name} (first: {shared[0]}); keep them out of one of the two"
        )


def seen_in_training(dataset: DataSet) -> str:
    """A sentence if images of val are, byte for byte, in train too, so that its AP says little; else nothing."""
    train = set(dataset.digests["train"])
    shared = sum(d in train for d in dataset.digests["val"])
    if not shared:
        return ""
    return (
        f"{dataset.name}: {shared} of {len(dataset.digests['val'])} val images are also in train; AP there is of "
        "images that training saw."
    )


def _file(info: dict[str, Any], data: str | Path) -> Path:
    return Path(info.get("yaml_file") or data).absolute()


def _name(yaml: Path) -> str:
    return yaml.parent.name if yaml.stem == "data" else yaml.stem


def _image_files(entry: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files of a split entry: folders, text files that list images, or a list of those."""
    files: list[Path] = []
    for item in [entry] if isinstance(entry, (str, Path)) else entry:
        path = Path(item)
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS)
            files += [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif path.is_file():
            lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
            files += [path.parent / line if line.startswith("./") else Path(line) for line in lines if line]
        else:
            raise FileNotFoundError(f"split entry: expected a folder or a text file that lists images, got {path.name}")
    return sorted(files)


def _digest(path: Path) -> str:
    """Digest of a file's bytes; of nothing for a file that is absent (an image without objects has no label)."""
    return hashlib.blake2b(path.read_bytes() if path.is_file() else b"", digest_size=16).hexdigest()
