"""The arguments of the three verbs: which are ours, which are the host's, and one clear error for the rest."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

MOST_SEEDS = 1000  # more is a slip of the keyboard
# The arguments of studies, and what they mean.
OWN_KEYS = {
    "data": "data YAML, or several joined by commas: each is trained on by itself, then they are pooled",
    "epochs": "of every run; the host's default",
    "seeds": "how many (5 is the default), or which: 0,3,7",
    "init": "weights of the same family and scale for everything below the head; without it, from scratch",
    "final": "data YAML, one for each of data=, that the last weights are judged on and training never sees",
    "final_split": "train, val (default) or test of final=",
    "out": "folder of runs and report; the same command goes on where it was stopped",
    "reuse": "results.json of earlier reports, joined by commas: their runs with the same settings are not made again",
    "last": "epochs at the end whose AP is averaged; 5",
    "every": "validate each this many epochs; 1",
    "weights": "last (default) or best, which picks an epoch on the set that is reported, and says so",
    "workers": "processes at a time; 1",
    "threads": "of torch in a process; the cores shared out",
    "loader_workers": "the host's workers= of a run's data loader",
    "engine": "local (default) or ray",
    "cpus": "a run, for ray; 1",
    "gpus": "a run, for ray; 0",
    "address": "of a ray cluster; a local one is started without it",
    "confidence": "of the intervals; 0.95",
    "effect": "AP points for which the number of seeds is worked out; 1.0",
    "latency": "measure it for the report; true",
}
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
    "cfg": "give the arguments themselves",
    "split": "runs are judged on val; give final= and final_split= for another",
    "val": "give every= to validate less often",
    "time": "the two heads would get different numbers of epochs",
    "patience": "the two heads would get different numbers of epochs",
    "deterministic": "runs are deterministic, so that a resumed one can equal an uninterrupted one",
    "verbose": "each run keeps its own run.log",
    "mode": "name the verb",
    "source": "a study trains and validates, on data=",
    "format": "a study exports nothing; see tscode parity",
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
    if missing := [k for k in required if args.get(k) in (None, "")]:
        raise ValueError(
            f"expected {', '.join(f'{k}=' for k in required)}, got no {', '.join(f'{k}=' for k in missing)}"
        )
    ours = {k: v for k, v in args.items() if k in known}
    theirs = {k: v for k, v in args.items() if k not in known}
    for key in theirs:
        if key in MANAGED:
            raise ValueError(f"{key}=: not an argument of a study; {MANAGED[key]}")
        if key not in DEFAULT_CFG_DICT:
            raise ValueError(unknown(key, known, [k for k in DEFAULT_CFG_DICT if k not in MANAGED]))
    return ours, theirs


def take_only(args: dict[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """As `take`, for a verb that passes nothing on to the host."""
    for key in args:
        if key not in known:
            raise ValueError(unknown(key, sorted(known)))
    return take(args, known, required)[0]


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


def as_seeds(value: Any) -> list[int]:
    """Seeds from their number (``5`` -> 0..4) or from a list (``0,3,7``).

    Raises:
        ValueError: neither, or a seed given twice.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SEEDS:
        return list(range(value))
    items = [int(v) if isinstance(v, str) and v.isdigit() else v for v in as_list(value)]
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**31 for v in items)
    if not isinstance(value, int) and items and whole and len(set(items)) == len(items):
        return items
    one = isinstance(value, int) and MOST_SEEDS < value < 2**31  # 2024 may well be meant as a seed
    raise ValueError(
        f"seeds={value!r}: expected how many (5, at most {MOST_SEEDS}) or a list of different whole numbers (0,3,7)"
        + (f"; the one seed {value} is seeds={value}," if one else "")
    )


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


def as_number(key: str, value: Any, least: float = 0.0) -> float:
    """A finite number of at least `least`.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < float("inf"):
        return float(value)
    raise ValueError(f"{key}={value!r}: expected a number >= {least:g}")


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
