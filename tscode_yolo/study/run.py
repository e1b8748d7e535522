"""One run of a study, in a process of its own: ``python -m tscode_yolo.study.run FOLDER``.

The folder holds ``job.json``. The process ends with ``result.json``, or with ``error.json`` and a status other than 0.
Killed at any point and started again it goes on from its last epoch; started again when done, it does nothing.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from tscode_yolo.study.record import FILE, finished
from tscode_yolo.verbs.storage import read_json, sole_owner, without_folders, write_json

ORPHAN_CHECK_S = 1.0


def main(argv: list[str]) -> int:
    """Do the job in ``argv[0]``; ``argv[1]``, JSON, holds what this machine lends it (see `execute`)."""
    folder, lent = Path(argv[0]).absolute(), json.loads(argv[1]) if len(argv) > 1 else {}
    _stop_with_parent()
    try:
        with sole_owner(folder):
            if finished(folder) is None:
                write_json(folder / FILE, execute(folder, lent))
            (folder / "error.json").unlink(missing_ok=True)
    except Exception as e:
        traceback.print_exc()
        error = f"{type(e).__name__}: {without_folders(str(e).splitlines()[0]) if str(e) else ''}"
        write_json(folder / "error.json", {"error": error, "traceback": traceback.format_exc()})
        return 1
    return 0


def execute(folder: Path, lent: dict[str, Any]) -> dict[str, Any]:
    """Train and judge one run.

    Args:
        folder: of the run, with ``job.json`` (`plan.Job`) inside.
        lent: ``cores`` (list of core numbers), ``threads`` and ``device``, each optional.

    Returns:
        The run's record: who it was, its metrics, its history and what it took. ``threads``, ``device``, ``hardware``
        and ``software`` are those of its last epochs, ``places`` those of all its processes in turn, equal
        neighbours once, and ``judged`` those of the process that judged it.

    Raises:
        ValueError: the model or the weights have changed since the study was settled.
    """
    if lent.get("cores") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, lent["cores"])
    from tscode_yolo.study.evaluation import evaluate
    from tscode_yolo.study.jobs import settings
    from tscode_yolo.study.trainer import StudyTrainer

    job = read_json(folder / "job.json")
    _require_unchanged(job)
    args = {**job["train"], "model": job["model"], "data": job["data"], "seed": job["seed"]}
    args |= {"project": str(folder), "name": "train", "exist_ok": True}
    if lent.get("device") is not None:
        args["device"] = lent["device"]
    options = {k: job[k] for k in ("init", "last", "every")}
    best = job["weights"] == "best"
    trainer = StudyTrainer(overrides=args, threads=lent.get("threads"), keep_best=best, **options)
    here = _place(trainer, lent.get("threads"))
    record = _trained(trainer, folder, here)
    started = time.monotonic()
    weights = trainer.best if best else trainer.last
    batch = 2 * args["batch"]  # as after each epoch: images of a batch share its padding
    judge = partial(evaluate, weights, args={**args, "batch": batch}, folder=folder / "train", rect=job["val_rect"])
    metrics = judge(Path(job["data"]), "val")
    final = job["final_data"] and judge(Path(job["final_data"]), job["final_split"])
    trainer.state_file.unlink(missing_ok=True)
    return {
        **{k: job[k] for k in ("arm", "dataset", "seed", "weights")},
        "settings": settings(job),
        **metrics,
        "final": final,
        "averaged": average_last([h["coco"] for h in record["history"] if "coco" in h]),
        **record,
        "wall_s": sum(h["seconds"] for h in record["history"]) + time.monotonic() - started,
        **(record["places"][-1] if record.get("places") else here),
        "judged": here,
    }


def _place(trainer: Any, threads: int | None) -> dict[str, Any]:
    """What this process trains or judges with, and on."""
    from tscode_yolo.verbs.provenance import hardware, software

    return {"threads": threads, "device": str(trainer.device), "hardware": hardware(), "software": software()}


def average_last(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each COCO number over the last epochs: less noise than one epoch, and nothing is picked."""
    if not epochs:
        return {"epochs": 0}
    keys = [k for k in epochs[0] if all(e[k] is not None for e in epochs)]
    return {"epochs": len(epochs), **{k: sum(e[k] for e in epochs) / len(epochs) for k in keys}}


def _require_unchanged(job: dict[str, Any]) -> None:
    """Refuse to train something else than what the other runs of the study were given."""
    from tscode_yolo.study.start import file_hash, model_hash

    found = {"model": model_hash(job["model"]), "init": file_hash(Path(job["init"])) if job["init"] else None}
    for key, value in found.items():
        if value != job[f"{key}_sha256"]:
            raise ValueError(
                f"{key}={Path(job[key]).name}: expected it as it was when the study began, got another content; "
                "restore it, or start a study with another out="
            )


def _trained(trainer: Any, folder: Path, here: dict[str, Any]) -> dict[str, Any]:
    """Train, unless an earlier process has, and return what the trainer recorded, and where all of it took place."""
    from tscode_yolo.study.trainer import RECORD

    record = read_json(folder / "trained.json")
    if record is None:
        places = read_json(folder / "places.json") or []
        if not trainer.already_trained():
            places += [here] if here not in places[-1:] else []
            write_json(folder / "places.json", places)
            trainer.train()
        record = {**{k: getattr(trainer, k) for k in RECORD}, "places": places}
        write_json(folder / "trained.json", record)
    return record


def _stop_with_parent() -> None:
    """End this process soon after its parent has ended: a killed study must not leave runs behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
