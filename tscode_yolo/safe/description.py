"""What a packed file may say: types and ranges of its JSON description, and what of it the host gets to see.

The host treats arguments as its own user's: `data` may name a YAML on the web whose `download:` is Python that it runs,
`model`, `project` or `tracker` name files. Of the training arguments in a file only `host_arguments` go further; the
rest stays in the description, for people to read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from tscode_yolo.config import SCHEMA, how_to_install

KEYS: dict[str, Any] = {  # key -> type; all of them must be there
    **{"task": str, "yaml": Mapping, "names": list, "stride": list, "end2end": bool, "options": (Mapping, type(None))},
    **{"schema": (int, type(None)), "train_args": Mapping, "train_metrics": Mapping, "date": str, "versions": Mapping},
}
WORDS = {str: "text", Mapping: "a mapping", list: "a list", bool: "true or false"}
LARGEST_STRIDE, LARGEST_SIDE, LONGEST = 1024, 65536, 200  # pixels, pixels, characters of a short text
YAML_NAME = re.compile(r"[\w-][\w.-]{0,80}\.ya?ml")


def check(description: Mapping[str, Any]) -> None:
    """Hold a description against what `tscode_yolo.safe.blueprint.describe` writes.

    Raises:
        ValueError: a newer head, a key that is missing, or a value of another type or out of range.
    """
    check_schema(description.get("schema"))
    if missing := [k for k in KEYS if k not in description]:
        raise ValueError(f"the file's description lacks {', '.join(missing)}; pack the .pt again")
    for key, kind in KEYS.items():
        if not isinstance(description[key], kind):
            raise wrong(key, description[key], "a mapping or null" if key == "options" else WORDS.get(kind, "a number"))
    if description["task"] != "detect":
        raise wrong("task", description["task"], "detect")
    if (description["options"] is None) != (description["schema"] is None):
        raise wrong("schema", description["schema"], "a number if the file has options of our head, else null")
    _check_names(description["names"])
    strides = description["stride"]
    if not strides or not all(is_number(s) and 0 < s <= LARGEST_STRIDE for s in strides):
        raise wrong("stride", strides, f"numbers above 0 and up to {LARGEST_STRIDE}")
    host_arguments(description["train_args"])
    if not all(v is None or isinstance(v, str) for v in description["versions"].values()):
        raise wrong("versions", description["versions"], "a text for each package")


def check_schema(schema: Any) -> None:
    """ValueError unless `schema` is None or a schema of our head that this package knows."""
    if schema is None:
        return
    if not is_whole(schema) or schema < 1:
        raise wrong("schema", schema, "a whole number from 1, or null")
    if schema > SCHEMA:
        raise ValueError(
            f"the file's TSCODE head has schema {schema}; the installed tscode_yolo knows up to {SCHEMA}. Update it: "
            f"{how_to_install()}"
        )


def host_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the host may have of a file's training arguments: what it keeps of a ``.pt``'s itself, but for `data`.

    Returns:
        ``task``, and ``imgsz`` and ``single_cls`` where the file has them.

    Raises:
        ValueError: one of these is of another type or out of range.
    """
    kept: dict[str, Any] = {"task": "detect"}
    size, single = arguments.get("imgsz"), arguments.get("single_cls")
    if size is not None:
        sides = size if isinstance(size, list) else [size]
        if not 1 <= len(sides) <= 2 or not all(is_whole(s) and 0 < s <= LARGEST_SIDE for s in sides):
            raise wrong("train_args.imgsz", size, f"one or two whole numbers from 1 to {LARGEST_SIDE}")
        kept["imgsz"] = size
    if single is not None:
        if not isinstance(single, bool):
            raise wrong("train_args.single_cls", single, "true or false")
        kept["single_cls"] = single
    return kept


def host_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a file's training metrics, the only values the host writes there."""
    return {k: v for k, v in metrics.items() if is_number(v) and len(k) <= LONGEST}


def yaml_name(name: Any) -> str | None:
    """The bare file name of the model YAML, after which the host names what it exports, or None if it is none."""
    last = re.split(r"[\\/]", name)[-1] if isinstance(name, str) else ""
    return last if YAML_NAME.fullmatch(last) else None


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def wrong(key: str, value: Any, expected: str) -> ValueError:
    """The error for a value that `describe` would not have written."""
    return ValueError(f"the file's description has {key}={str(value)[:80]!r}: expected {expected}; pack the .pt again")


def _check_names(names: list[Any]) -> None:
    """ValueError unless the names are [0, text], [1, text] ... and none of them leads out of a folder.

    The host saves cut-out objects in a folder for each class name.
    """
    for place, pair in enumerate(names):
        if not isinstance(pair, list) or len(pair) != 2 or not is_whole(pair[0]) or pair[0] != place:
            raise wrong("names", names, "[number, text] for each class, in the order of the numbers from 0")
        text = pair[1]
        if not isinstance(text, str) or _leads_out(text):
            raise wrong("names", names, "texts that are no absolute path and hold no `..`")


def _leads_out(text: str) -> bool:
    paths = PurePosixPath(text), PureWindowsPath(text)
    return any(".." in p.parts or p.root for p in paths)
