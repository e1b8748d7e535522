"""What a run is told: one ``job.json`` in a folder of its own, the same whenever the study is started again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tscode_yolo.study.plan import Study
from tscode_yolo.study.record import FILE, finished, missing
from tscode_yolo.study.start import file_hash, model_hash
from tscode_yolo.verbs.arguments import existing
from tscode_yolo.verbs.storage import read_json, short, write_json

PATHS = ("model", "data", "init", "final_data")  # may be others when a study has moved; their contents may not
NAMES = ("arm", "dataset")  # say what is meant, not what is done
BEGUN = (FILE, "trained.json", "train/weights/resume.pt")  # one of them is there after the first epoch


@contextmanager
def unless_refused(out: Path) -> Iterator[None]:
    """Leave nothing of a new folder whose study is refused for its arguments before a run has been started.

    Args:
        out: the study's folder, there or not.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except Exception as e:
        ours = out in new and not isinstance(e, BlockingIOError)
        if ours and not any(out.glob("runs/*/*/seed*/run.log")) and not begun(out):
            shutil.rmtree(out, ignore_errors=True)
            with suppress(OSError):  # the first that holds something else, and so those above it
                for folder in new[1:]:
                    folder.rmdir()
        raise


def begun(out: Path, arm: str = "*") -> bool:
    """Whether a run of a study, or of one of its arms, holds something that would be lost."""
    return any(f for b in BEGUN for f in out.glob(f"runs/*/{arm}/seed*/{b}"))


def write_jobs(study: Study) -> list[Path]:
    """Write ``job.json`` for every run of the study, seeds outermost, so that early results are pairs.

    Returns:
        Folders of the runs.

    Raises:
        ValueError: a folder holds a run with other settings.
    """
    init_hash = file_hash(study.init) if study.init else None
    models = {a.name: model_hash(a.model) for a in study.arms}
    folders = []
    for seed in study.seeds:
        for dataset in study.datasets:
            final, split = study.finals.get(dataset.name, (None, None))
            for arm in study.arms:
                job = {
                    "arm": arm.name,
                    "model": arm.model,
                    "model_sha256": models[arm.name],
                    "dataset": dataset.name,
                    "data": str(dataset.yaml),
                    "data_sha256": dataset.sha256,
                    "init": str(study.init) if study.init else None,
                    "init_sha256": init_hash,
                    "seed": seed,
                    "train": {**study.train, **study.optimizers[dataset.name]},
                    "last": study.last,
                    "every": study.every,
                    "weights": study.weights,
                    "val_rect": True,  # as `yolo val` pads
                    "final_data": str(final.yaml) if final else None,
                    "final_sha256": final.sha256 if final else None,
                    "final_split": split,
                }
                folders.append(_write_job(study.folder(dataset, arm, seed), job))
    return folders


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers: its job without places and names. A finished run keeps it under this name."""
    return {k: v for k, v in job.items() if k not in (*PATHS, *NAMES)}


def reuse(folders: Sequence[Path], files: Sequence[Path]) -> int:
    """Take finished runs over from earlier reports, where the settings are this study's: nothing is trained twice.

    Args:
        folders: of `write_jobs`; those that have a result already are left as they are.
        files: each a ``results.json``, of any study.

    Returns:
        How many runs were taken over.

    Raises:
        ValueError: a file is no ``results.json`` with settings, or no run of it could stand in this study.
        FileNotFoundError: there is none.
    """
    jobs = {f: read_json(f / "job.json") for f in folders}
    usable: dict[Path, dict[str, Any]] = {}
    for file in files:
        known = _known_runs(file)
        found = {f: run for f, job in jobs.items() if (run := known.get(_key(settings(job)))) is not None}
        if not found:
            raise ValueError(
                f"reuse={short(file)}: expected a run with the settings of this study, got {len(known)} others; the "
                f"nearest differs in {', '.join(_nearest([settings(j) for j in jobs.values()], known.values()))}"
            )
        usable = {**{f: {**run, "reused": short(file)} for f, run in found.items()}, **usable}
    taken = [f for f in usable if finished(f) is None]
    for folder in taken:
        write_json(folder / FILE, {**usable[folder], **{k: jobs[folder][k] for k in NAMES}})
    return len(taken)


def _known_runs(file: Path) -> dict[str, dict[str, Any]]:
    """Runs of a report, by their settings."""
    try:
        content = read_json(existing("reuse", file))
    except ValueError as e:
        raise ValueError(
            f"reuse={short(file)}: expected a results.json of `tscode compare` or `ablate`, got a file that is no JSON"
        ) from e
    runs = content.get("runs") if isinstance(content, dict) else None
    usable = [r for r in runs if not missing(r) and _is_job(r.get("settings"))] if isinstance(runs, list) else []
    known = {_key(r["settings"]): r for r in usable}
    if not known:
        raise ValueError(
            f"reuse={short(file)}: expected a results.json of `tscode compare` or `ablate` whose runs keep their "
            "settings (reports older than that cannot be reused), got none in it"
        )
    return known


def _nearest(wanted: Sequence[dict[str, Any]], known: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the settings in which the two most similar runs differ."""
    flat = [({**w, **w["train"]}, {**k["settings"], **k["settings"]["train"]}) for k in known for w in wanted]
    return min(
        (sorted(n for n in {*a, *b} - {"train"} if a.get(n) != b.get(n)) for a, b in flat),
        key=len,
    )


def _is_job(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("train"), dict)


def _key(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _write_job(folder: Path, job: dict[str, Any]) -> Path:
    """Write a job; if a run has begun there, make sure that its job is the same (places of files aside)."""
    old = read_json(folder / "job.json")
    if old is not None and not _is_job(old):
        raise ValueError(
            f"job.json: expected the settings of a run, got something else; delete the folder "
            f"{'/'.join(folder.parts[-3:])} to run it again"
        )
    if old is not None and any((folder / f).exists() for f in BEGUN):
        changed = [k for k in job if k not in PATHS and old.get(k) != job[k]]
        if "train" in changed:
            a, b = old.get("train", {}), job["train"]
            changed = [k for k in changed if k != "train"] + sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
        if changed:
            names = ["loader_workers" if k == "workers" else k for k in changed]  # as a study calls it
            raise ValueError(
                f"out=: {folder.parent.parent.name}/{folder.parent.name}/{folder.name} holds a run with another "
                f"{', '.join(names)}; choose another out=, or delete the folder to start again"
            )
    write_json(folder / "job.json", job)
    return folder
