"""Runs of an earlier report stand in a study whose settings are theirs, and in no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics.nn.tasks import yaml_model_load

from tscode_yolo.config import PRESETS
from tscode_yolo.study.jobs import reuse, settings, unless_refused, write_jobs
from tscode_yolo.study.plan import Arm, make_study
from tscode_yolo.study.start import model_hash
from tscode_yolo.verbs.storage import read_json, write_json

from .records import run


def jobs(
    data: Path, out: Path, *models: str, epochs: int = 2, seeds: Any = 2, prefix: str = "", **theirs: Any
) -> list[Path]:
    arms = [Arm(prefix + Path(m).stem, m) for m in models]
    ours = {"data": str(data), "epochs": epochs, "seeds": seeds, "out": str(out)}
    return write_jobs(make_study("compare", arms, ours, {"imgsz": 64, "batch": 4, **theirs}))


def report(file: Path, folders: list[Path]) -> Path:
    """A results.json with one made-up run for each job; its AP is the place in the list."""
    runs = []
    for place, folder in enumerate(folders):
        job = read_json(folder / "job.json")
        runs.append(run(job["arm"], job["seed"], float(place), job["dataset"], settings=settings(job)))
    write_json(file, {"runs": runs})
    return file


def test_a_larger_study_trains_only_what_is_new(drawn, tmp_path):
    """Two seeds of two models are known; of three seeds and another second model, the first model's two are."""
    earlier = report(tmp_path / "earlier/results.json", jobs(drawn, tmp_path / "a", "yolo11n.yaml", "yolov8n.yaml"))
    folders = jobs(drawn, tmp_path / "b", "yolo11n.yaml", "yolo26n.yaml", seeds=3)
    assert reuse(folders, [earlier]) == 2
    results = {f.relative_to(tmp_path / "b/runs").as_posix(): read_json(f / "result.json") for f in folders}
    taken = {name: (r["coco"]["AP"], r["reused"]) for name, r in results.items() if r}
    assert taken == {
        "drawn/yolo11n/seed0": (0, "earlier/results.json"),
        "drawn/yolo11n/seed1": (2, "earlier/results.json"),
    }
    assert reuse(folders, [earlier]) == 0


def test_a_run_is_known_by_what_it_did_and_not_by_its_name(drawn, tmp_path):
    earlier = report(tmp_path / "results.json", jobs(drawn, tmp_path / "a", "yolo11n.yaml", "yolov8n.yaml", seeds=1))
    folders = jobs(drawn, tmp_path / "b", "yolo11n.yaml", "yolo26n.yaml", seeds=1, prefix="my-")
    assert reuse(folders, [earlier]) == 1
    assert read_json(folders[0] / "result.json")["arm"] == "my-yolo11n"


def test_a_finished_run_is_left_as_it_is(drawn, tmp_path):
    folders = jobs(drawn, tmp_path / "a", "yolo11n.yaml", "yolov8n.yaml", seeds=1)
    earlier = report(tmp_path / "results.json", folders)
    own = run("yolo11n", 0, 12.3)
    write_json(folders[0] / "result.json", own)
    assert reuse(folders, [earlier]) == 1
    assert read_json(folders[0] / "result.json") == own


def test_what_cannot_be_reused_is_said(drawn, tmp_path):
    models = ("yolo11n.yaml", "yolov8n.yaml")
    earlier = report(tmp_path / "results.json", jobs(drawn, tmp_path / "a", *models))
    folders = jobs(drawn, tmp_path / "b", *models, epochs=3, mosaic=0.0)
    with pytest.raises(ValueError, match=r"got 4 others; the nearest differs in epochs, last, mosaic"):
        reuse(folders, [earlier])
    assert not any((f / "result.json").exists() for f in folders)
    old = tmp_path / "old.json"
    write_json(old, {"runs": [{"arm": "yolo11n"}]})
    good = read_json(earlier)["runs"][0]
    for number, runs in enumerate((5, [{"settings": 5}], [{"settings": {}}], [{**good, "coco": None}], [good["coco"]])):
        write_json(tmp_path / f"{number}.json", {"runs": runs})
        with pytest.raises(ValueError, match="whose runs keep their settings"):
            reuse(folders, [tmp_path / f"{number}.json"])
    for file in (old, tmp_path / "a/runs/drawn/yolo11n/seed0/job.json"):
        with pytest.raises(ValueError, match="whose runs keep their settings"):
            reuse(folders, [file])
    (tmp_path / "report.md").write_text("# a report")
    with pytest.raises(ValueError, match=r"reuse=.*/report.md: expected a results.json .* got a file that is no JSON$"):
        reuse(folders, [tmp_path / "report.md"])
    with pytest.raises(FileNotFoundError, match="reuse="):
        reuse(folders, [tmp_path / "none.json"])


def test_what_a_bad_file_among_good_ones_stops_writes_nothing(drawn, tmp_path):
    models = ("yolo11n.yaml", "yolov8n.yaml")
    earlier = report(tmp_path / "results.json", jobs(drawn, tmp_path / "a", *models))
    folders = jobs(drawn, tmp_path / "b", *models)
    write_json(tmp_path / "bad.json", {"runs": []})
    with pytest.raises(ValueError, match=r"bad\.json: expected"):
        reuse(folders, [earlier, tmp_path / "bad.json"])
    assert not any((f / "result.json").exists() for f in folders)
    assert reuse(folders, [earlier]) == len(folders)


@pytest.mark.parametrize("sign", ["run.log", "trained.json", "train/weights/resume.pt"])
def test_a_folder_whose_runs_have_begun_outlives_any_error(tmp_path, sign):
    out = tmp_path / "made/on/the/way"

    def study(error: Exception, *files: str) -> None:
        with unless_refused(out):
            for file in ("job.json", *files):
                path = out / "runs/drawn/yolo11n/seed0" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            raise error

    with pytest.raises(ValueError, match="refused"):
        study(ValueError("refused"))
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match="the report"):
        study(ValueError("the report"), sign)
    assert (out / "runs/drawn/yolo11n/seed0" / sign).is_file()


def test_another_default_of_the_head_is_another_model(tmp_path, monkeypatch):
    file = tmp_path / "yolo11n-tscode.yaml"
    content = {k: v for k, v in yaml_model_load(file.name).items() if k != "yaml_file"}
    file.write_text(yaml.safe_dump(content))
    before = model_hash(file.name)
    assert model_hash(str(file)) == before
    monkeypatch.setitem(PRESETS, "yolo", {**PRESETS["yolo"], "box_depth": 2})
    changed = model_hash(file.name)
    assert changed != before
    monkeypatch.undo()
    file.write_text(yaml.safe_dump({**content, "tscode": {**content["tscode"], "box_depth": 2}}))
    assert model_hash(str(file)) == changed
