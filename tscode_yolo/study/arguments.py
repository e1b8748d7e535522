"""The arguments of the three verbs: which are ours, which are the host's, and one clear error for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ultralytics.cfg import DEFAULT_CFG_DICT

from tscode_yolo.verbs.arguments import as_list, require, unknown

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
    require(args, required)
    ours = {k: v for k, v in args.items() if k in known}
    theirs = {k: v for k, v in args.items() if k not in known}
    for key in theirs:
        if key in MANAGED:
            raise ValueError(f"{key}=: not an argument of a study; {MANAGED[key]}")
        if key not in DEFAULT_CFG_DICT:
            raise ValueError(unknown(key, known, [k for k in DEFAULT_CFG_DICT if k not in MANAGED]))
    return ours, theirs


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


def as_effect(value: Any) -> float:
    """AP points that a study should be able to see.

    Raises:
        ValueError: no number above 0.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf"):
        return float(value)
    raise ValueError(f"effect={value!r}: expected AP points, a number above 0")
