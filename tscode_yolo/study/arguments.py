"""The arguments of the three verbs: which are ours, which are the host's, and one clear error for the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

# What a study decides itself, with the reason a user is given.
MANAGED = {
    "seed": "give seeds= (a number of seeds, or a list)",
    "project": "give out=",
    "name": "give out=",
    "save_dir": "give out=",
    "exist_ok": "a study goes on in its folder by itself",
    "resume": "a study goes on by itself: give the same command again",
    "pretrained": "give init= (everything below the head) or nothing (from scratch)",
    "save": "every run keeps its last weights",
    "save_period": "every run keeps its last weights",
    "plots": "the report has its own",
    "val": "give every= to validate less often",
    "time": "the two heads would get different numbers of epochs",
    "patience": "the two heads would get different numbers of epochs",
    "deterministic": "runs are deterministic, so that a resumed one can equal an uninterrupted one",
    "verbose": "each run keeps its own run.log",
    "mode": "name the verb",
    "task": "studies are for detection",
}


def take(args: dict[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> tuple[dict[str, Any], dict]:
    """Split a verb's arguments into ours and the host's train arguments.

    Args:
        args: key -> value as parsed from the command line.
        known: our own keys.
        required: keys that must be there.

    Returns:
        Our arguments, the host's.

    Raises:
        ValueError: a key is missing, managed by the study, or unknown (the closest valid one is named).
    """
    known = sorted(known)
    if missing := [k for k in required if k not in args]:
        raise ValueError(
            f"expected {', '.join(f'{k}=' for k in required)}, got no {', '.join(f'{k}=' for k in missing)}"
        )
    ours = {k: v for k, v in args.items() if k in known}
    theirs = {k: v for k, v in args.items() if k not in known}
    for key in theirs:
        if key in MANAGED:
            raise ValueError(f"{key}=: not an argument of a study; {MANAGED[key]}")
        if key not in DEFAULT_CFG_DICT:
            raise ValueError(unknown(key, [*known, *(k for k in DEFAULT_CFG_DICT if k not in MANAGED)]))
    return ours, theirs


def take_only(args: dict[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """As `take`, for a verb that passes nothing on to the host."""
    for key in args:
        if key not in known:
            raise ValueError(unknown(key, sorted(known)))
    return take(args, known, required)[0]


def unknown(key: str, valid: Sequence[str]) -> str:
    """Message for an argument nobody knows: the closest valid one, or all of them."""
    close = difflib.get_close_matches(key, valid, n=1)
    return f"{key}=: unknown argument; " + (f"did you mean {close[0]}=?" if close else f"valid: {', '.join(valid)}")


def as_list(value: Any) -> list[Any]:
    """A list from ``a,b`` (a string, or what the parser made of ``0,1``), one value, or nothing."""
    if value is None:
        return []
    if isinstance(value, str):
        return [v.strip() for v in value.split(",") if v.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_seeds(value: Any) -> list[int]:
    """Seeds from their number (``5`` -> 0..4) or from a list (``0,3,7``).

    Raises:
        ValueError: neither, or a seed given twice.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return list(range(value))
    items = [int(v) if isinstance(v, str) and v.isdigit() else v for v in as_list(value)]
    whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in items)
    if not isinstance(value, int) and items and whole and len(set(items)) == len(items):
        return items
    raise ValueError(f"seeds={value!r}: expected how many (5) or a list of different whole numbers (0,3,7)")


def as_count(key: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`; text of digits is one, for lists come as text.

    Raises:
        ValueError: anything else.
    """
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    if isinstance(number, int) and not isinstance(number, bool) and number >= least:
        return number
    raise ValueError(f"{key}={value!r}: expected a whole number >= {least}")


def one_of(key: str, value: Any, valid: Sequence[str]) -> str:
    """`value`, if it is one of `valid`.

    Raises:
        ValueError: it is not.
    """
    if value in valid:
        return str(value)
    raise ValueError(f"{key}={value!r}: expected one of {', '.join(valid)}")


def as_effect(value: Any) -> float:
    """AP points that a study should be able to see.

    Raises:
        ValueError: no number above 0.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ValueError(f"effect={value!r}: expected AP points, a number above 0")


def weights_file(key: str, value: Any) -> Path:
    """Absolute path of a checkpoint; official ones that are not here are fetched, as the host does by their name.

    Raises:
        FileNotFoundError: neither here nor an official name.
        ConnectionError: it cannot be fetched.
    """
    if not Path(str(value)).expanduser().is_file() and str(value) in GITHUB_ASSETS_NAMES:
        return existing(key, attempt_download_asset(str(value)))
    return existing(key, value)


def existing(key: str, value: Any) -> Path:
    """Absolute path of a file that must exist.

    Raises:
        FileNotFoundError: it does not.
    """
    path = Path(str(value)).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{key}={value}: expected a file, got none of that name")
    return path
