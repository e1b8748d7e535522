"""The YAMLs that come with the package: where they lie, and what they are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def cfg_dir() -> Path:
    """Folder of the shipped YAMLs: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    installed = package / "cfg"
    return installed if installed.is_dir() else package.parent / "cfg"


def cfg_path(name: str | Path) -> Path | None:
    """Path of a shipped YAML, or None.

    Args:
        name: a bare file name, ``yolo11-tscode.yaml`` or ``tscode.yaml``; a scale letter is not taken off. Names with
            a folder are the user's own and never match.
    """
    if Path(name).name != str(name):
        return None
    return next((p for p in sorted(cfg_dir().rglob("*.yaml")) if p.name == str(name)), None)


def model_names() -> list[str]:
    """Bare names of the shipped model YAMLs; those of a YOLO family take a scale letter (yolo11s-tscode.yaml)."""
    return sorted(p.name for p in cfg_dir().rglob("*.yaml") if p.parent.name != "datasets")


def scaled_names(bare: Iterable[str]) -> list[str]:
    """Names of model YAMLs, and of those of a YOLO family each with its five scale letters (yolo11n-tscode.yaml)."""
    family = re.compile(r"^(yolov?\d+|tscode)(?=[-.])")  # where the letter goes
    return list(dict.fromkeys(x for n in bare for x in (n, *(family.sub(rf"\g<1>{s}", n) for s in "nsmlx"))))


def closest_model(name: str, others: Sequence[str] = ()) -> str | None:
    """The model YAML whose name is most like `name`, at any scale, among ours and `others`; None if none is like it."""
    known = scaled_names([*model_names(), *others])
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)), None)
