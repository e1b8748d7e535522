"""Values of a verb's arguments: each is what it should be, or one clear error says what was expected and what came."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset


def take_only(args: dict[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """The arguments of a verb that passes nothing on to the host.

    Args:
        args: key -> value as parsed from the command line.
        known: all keys.
        required: keys that must be there.

    Raises:
        ValueError: a key is missing, or unknown (the closest valid one is named).
    """
    for key in args:
        if key not in known:
            raise ValueError(unknown(key, sorted(known)))
    require(args, required)
    return dict(args)


def require(args: dict[str, Any], keys: Iterable[str]) -> None:
    """Raise ValueError unless all of `keys` were given."""
    if missing := [k for k in keys if args.get(k) in (None, "")]:
        raise ValueError(f"expected {', '.join(f'{k}=' for k in keys)}, got no {', '.join(f'{k}=' for k in missing)}")


def unknown(key: str, valid: Sequence[str], host: Sequence[str] = ()) -> str:
    """Message for an argument nobody knows: the closest valid one, or all of ours (the host has a hundred more)."""
    close = difflib.get_close_matches(key, [*valid, *host], n=1)
    every = f"valid: {', '.join(valid)}" + (", and the train arguments of the host" if host else "")
    return f"{key}=: unknown argument; " + (f"did you mean {close[0]}=?" if close else every)


def as_text(key: str, value: Any) -> str:
    """A name or path; a number, as which a plain ``out=7`` is parsed, is one too.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, (str, Path)) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"{key}={value!r}: expected a name or path")


def as_list(value: Any) -> list[Any]:
    """A list from ``a,b`` (a string, or what the parser made of ``0,1``), one value, or nothing."""
    if value is None:
        return []
    if isinstance(value, str):
        return [v.strip() for v in value.split(",") if v.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_count(key: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`; text of digits is one, for lists come as text.

    Raises:
        ValueError: anything else.
    """
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    if isinstance(number, int) and not isinstance(number, bool) and number >= least:
        return number
    raise ValueError(f"{key}={value!r}: expected a whole number >= {least}")


def as_flag(key: str, value: Any) -> bool:
    """True or false.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"{key}={value!r}: expected true or false")


def as_number(key: str, value: Any, least: float = 0.0, most: float = math.inf) -> float:
    """A finite number from `least` to `most`.

    Raises:
        ValueError: anything else.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if number and least <= value <= most:
        return float(value)
    wanted = f">= {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
    raise ValueError(f"{key}={value!r}: expected a number {wanted}")


def one_of(key: str, value: Any, valid: Sequence[str]) -> str:
    """`value`, if it is one of `valid`.

    Raises:
        ValueError: it is not.
    """
    if value in valid:
        return str(value)
    spelt = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(str(value).lower(), list(spelt), n=1)
    hint = f"; did you mean {spelt[close[0]]}?" if close else ""
    raise ValueError(f"{key}={value!r}: expected one of {', '.join(valid)}{hint}")


def as_side(value: Any, least: int = 32) -> int:
    """Side of a square input in pixels: the host would round others up, and train on another size than it was told.

    Raises:
        ValueError: no multiple of 32, or less than `least`.
    """
    side = as_count("imgsz", value, least)
    if side % 32:
        raise ValueError(
            f"imgsz={side}: expected a multiple of 32, the nearest are {side // 32 * 32} and {-(-side // 32) * 32}"
        )
    return side


def as_device(value: Any) -> torch.device:
    """A device of torch: ``cpu``, ``mps``, ``cuda:1``, or a GPU's number. Unlike the host's it changes no environment.

    Raises:
        ValueError: no device's name, or a GPU that is not here.
    """
    name = f"cuda:{value}" if str(value).isdigit() else str(value)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device={value}: expected cpu, mps, or the number of a GPU") from None
    if device.type not in ("cpu", "mps", "cuda"):
        raise ValueError(f"device={value}: expected cpu, mps, or the number of a GPU")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={value}: expected a device that is here, this torch has no MPS; give device=cpu")
    if device.type == "cuda" and (device.index or 0) >= (here := torch.cuda.device_count()):
        raise ValueError(
            f"device={value}: expected one of {here} GPUs, counted from 0; give device=cpu"
            if here
            else f"device={value}: expected a GPU, torch sees none; give device=cpu"
        )
    return device


def weights_file(key: str, value: Any) -> Path:
    """Absolute path of a checkpoint; official ones that are not here are fetched, as the host does by their name.

    Raises:
        ValueError: not called .pt.
        FileNotFoundError: neither here nor an official name.
        ConnectionError: it cannot be fetched.
    """
    value = as_text(key, value)
    if not value.endswith(".pt"):
        raise ValueError(f"{key}={value}: expected a checkpoint, a name that ends in .pt")
    if not Path(value).expanduser().is_file() and value in GITHUB_ASSETS_NAMES:
        return existing(key, attempt_download_asset(value))
    return existing(key, value)


def existing(key: str, value: Any) -> Path:
    """Absolute path of a file that must exist.

    Raises:
        FileNotFoundError: it does not.
    """
    path = Path(as_text(key, value)).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{key}={value}: expected a file, got none of that name")
    return path


def writable(key: str, value: Any) -> Path:
    """Absolute path of a file that can be written, checked before the work whose outcome it is to hold.

    Raises:
        ValueError: it is a folder, or no file can be made there.
    """
    path = Path(as_text(key, value)).expanduser().absolute()
    if path.is_dir():
        raise ValueError(f"{key}={value}: expected a file, got a folder; name a file in it")
    nearest = next(p for p in path.parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{key}={value}: expected a place to write to, got none in {nearest.name or nearest}")
    return path
