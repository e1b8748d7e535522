"""Files that survive a kill at any moment: written whole or not at all, and one process a folder."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no flock: the guard against two processes in one run folder is off there
    fcntl = None  # type: ignore[assignment]

_PART = r"[/\\][^/\\\s'\":,]+"
ABSOLUTE = re.compile(rf"(?<![\w./])(?:[A-Za-z]:)?(?:{_PART})*?(?P<last>(?:{_PART}){{2}})(?![/\\\w])")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then put it in place in one step.

    Args:
        path: final place; its folder is made.
        write: gets the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        if temporary.stat().st_mode != mode:  # some writers put a private file in its place
            with suppress(OSError):  # not every file system has modes
                temporary.chmod(mode)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all. NaN and infinity become null: JSON has no word for them."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_whole(path, lambda p: p.write_bytes(content))


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if there is none.

    Raises:
        ValueError: the file is no JSON; ours are written whole, so somebody else's hand was in it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        folder = "/".join(path.parent.parts[-3:])
        raise ValueError(f"{path.name}: expected JSON, got {e}; restore it, or delete the folder {folder}") from e


@contextmanager
def sole_owner(folder: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold `folder` for this process; the system lets go when the process dies, however it dies.

    Args:
        folder: made if absent.
        patience: seconds to wait for another owner, for one that was orphaned is about to notice and stop.

    Raises:
        BlockingIOError: another live process still holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + patience
        while fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        f"{folder.name}: expected to be the only process in this folder, got another one at work; "
                        "wait for it or choose another out="
                    ) from e
                time.sleep(0.2)
        yield


def short(path: Path) -> str:
    """A file's name with its folder's: enough to know it, not the machine."""
    return "/".join(path.absolute().parts[-2:])


def without_folders(text: str) -> str:
    """A message with each absolute path cut to its last two parts: enough to know the file, not the machine."""
    return ABSOLUTE.sub(lambda found: found["last"].strip("/\\"), text)


def _finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, tuples as lists, numpy scalars as Python's."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
