"""What a run is told: one ``job.json`` in a folder of its own, the same whenever the study is started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tscode_yolo.study.plan import Study
from tscode_yolo.study.start import file_hash, model_hash
from tscode_yolo.study.storage import read_json, write_json

PATHS = ("model", "data", "init", "final_data")  # may be others when a study has moved; their contents may not
BEGUN = ("result.json", "trained.json", "train/weights/resume.pt")  # one of them is there after the first epoch


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
                    "final_data": str(final.yaml) if final else None,
                    "final_sha256": final.sha256 if final else None,
                    "final_split": split,
                }
                folders.append(_write_job(study.folder(dataset, arm, seed), job))
    return folders


def _write_job(folder: Path, job: dict[str, Any]) -> Path:
    """Write a job; if a run has begun there, make sure that its job is the same (places of files aside)."""
    old = read_json(folder / "job.json")
    if old is not None and any((folder / f).exists() for f in BEGUN):
        changed = [k for k in job if k not in PATHS and old.get(k) != job[k]]
        if "train" in changed:
            a, b = old.get("train", {}), job["train"]
            changed = [k for k in changed if k != "train"] + sorted(k for k in {*a, *b} if a.get(k) != b.get(k))
        if changed:
            raise ValueError(
                f"out=: {folder.parent.parent.name}/{folder.parent.name}/{folder.name} holds a run with another "
                f"{', '.join(changed)}; choose another out=, or delete the folder to start again"
            )
    write_json(folder / "job.json", job)
    return folder
