"""What a finished run leaves: one ``result.json``, read here and nowhere else, so that a damaged one is named early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tscode_yolo.verbs.storage import read_json

FILE = "result.json"
KINDS: dict[str, type | tuple[type, ...]] = {  # what the statistics and the report read of it
    **{"arm": str, "dataset": str, "seed": int, "tool": str, "body": str, "device": str},
    **{"coco": dict, "host": dict, "averaged": dict, "hardware": dict, "history": list, "wall_s": (int, float)},
    **{"resumed": list, "repeated": list, "exact_resume": bool, "threads": (int, type(None))},
}


def finished(folder: Path) -> dict[str, Any] | None:
    """Record of the run in a folder, or None if it has not finished.

    Raises:
        ValueError: the file there is no record; ours are written whole, so somebody else's hand was in it.
    """
    record = read_json(folder / FILE)
    if record is None:
        return None
    if wrong := missing(record):
        raise ValueError(
            f"{FILE}: expected the record of a run, got one without a proper {', '.join(wrong)}; restore it, or delete "
            f"the folder {'/'.join(folder.parts[-3:])} to run it again"
        )
    return record


def missing(record: Any) -> list[str]:
    """What a record lacks, or has in another kind: nothing, if it is one."""
    if not isinstance(record, dict):
        return list(KINDS)
    wrong = [k for k, kind in KINDS.items() if not isinstance(record.get(k, ...), kind)]
    inner = {"host": ("mAP", "mAP50"), "hardware": ("cpu",)}
    wrong += [f"{k}.{part}" for k, parts in inner.items() if k not in wrong for part in parts if part not in record[k]]
    if "history" not in wrong:
        epochs = record["history"]
        wrong += ["history"] * (not all(isinstance(h, dict) and {"epoch", "batches"} <= h.keys() for h in epochs))
    return wrong
