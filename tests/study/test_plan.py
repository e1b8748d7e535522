"""A study is settled, and refused if unfair, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from tscode_yolo.study.jobs import write_jobs
from tscode_yolo.study.plan import Arm, make_study, resolve_model, settle_optimizer, warm_label_caches
from tscode_yolo.verbs.storage import read_json, write_json

ARMS = [Arm("yolo11n", "yolo11n.yaml"), Arm("yolov8n", "yolov8n.yaml")]


def settled(data: Path, out: Path, arms: list[Arm] | None = None, theirs: dict[str, Any] | None = None, **ours: Any):
    given = {"data": str(data), "epochs": 2, "seeds": 2, "out": str(out), **ours}
    return make_study("compare", arms or ARMS, given, {"imgsz": 64, "batch": 4, **(theirs or {})})


def begun(study: Any) -> list[Path]:
    """The jobs of a study of which every run has begun."""
    folders = write_jobs(study)
    for folder in folders:
        write_json(folder / "trained.json", {})
    return folders


def test_every_run_of_a_data_set_gets_the_same_arguments(drawn, tmp_path):
    study = settled(drawn, tmp_path / "out")
    jobs = [read_json(f / "job.json") for f in write_jobs(study)]
    assert [(j["seed"], j["arm"]) for j in jobs] == [(0, "yolo11n"), (0, "yolov8n"), (1, "yolo11n"), (1, "yolov8n")]
    assert all(j["train"] == jobs[0]["train"] for j in jobs)
    train = jobs[0]["train"]
    assert train["optimizer"] == "AdamW"
    assert train["lr0"] == pytest.approx(0.002 * 5 / (4 + 2), abs=1e-6)  # the host's rule for 2 classes
    assert (train["deterministic"], train["patience"], train["pretrained"]) == (True, 0, False)


@pytest.mark.parametrize(
    ("epochs", "given", "expected"),
    [
        (2, {}, ("AdamW", 0.001667, 0.0)),
        (20_000, {}, ("SGD", 0.01, 0.0)),  # 8 images, nominal batch 64: one iteration an epoch
        (6_000, {"nbs": 4}, ("SGD", 0.01, 0.0)),
        (6_000, {"nbs": 4, "fraction": 0.5}, ("AdamW", 0.001667, 0.0)),
        (2, {"optimizer": "SGD"}, ("SGD", 0.01, 0.1)),
        (2, {"optimizer": "Adam", "lr0": 0.5}, ("Adam", 0.5, 0.0)),
    ],
)
def test_the_optimizer_is_named_whatever_was_asked(drawn, tmp_path, epochs, given, expected):
    data = settled(drawn, tmp_path).datasets[0]
    values, note = settle_optimizer({"epochs": epochs, "batch": 4, **given}, data)
    assert (values["optimizer"], values["lr0"], values["warmup_bias_lr"]) == (
        expected[0],
        pytest.approx(expected[1]),
        expected[2],
    )
    assert expected[0] in note
    assert ("lr0" in note) == ("lr0" not in given)  # what the user did not give is said


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({}, {"batch": -1}, "may differ by head"),
        ({}, {"batch": 0.7}, "may differ by head"),
        ({}, {"device": "0,1"}, "one device a run"),
        ({"weights": "first"}, {}, "expected one of last, best"),
        ({"epochs": 0}, {}, "epochs=0"),
        ({"confidence": 95}, {}, "confidence=95"),
        ({}, {"optimizer": "Foo"}, "optimizer='Foo': expected one of auto, SGD"),
        ({}, {"imgsz": "abc"}, "imgsz='abc'"),
        ({}, {"imgsz": 100}, "imgsz=100: expected a multiple of 32, the nearest are 96 and 128"),
        ({}, {"batch": True}, "batch=True"),
        ({}, {"device": "foo"}, "device=foo: expected cpu, mps, or the number of a GPU"),
        ({}, {"device": 99}, "device=99: expected"),
        ({}, {"freeze": "abc"}, "freeze='abc'"),
        ({}, {"classes": "a"}, "classes='a': expected a whole number"),
        ({}, {"classes": [0, 2]}, r"classes=\[0, 2\]: expected numbers below 2, for drawn has no more classes, got 2"),
        ({}, {"device": "meta"}, "device=meta: expected cpu, mps, or the number of a GPU"),
        ({"final_split": "test"}, {}, "final_split=: expected final= with it"),
        ({"final": __file__}, {}, "final=test_plan.py: expected a data YAML"),
        ({}, {"cache": "foo"}, "cache='foo': expected one of true, false, ram, disk"),
        ({}, {"optimizer": "adamw"}, "did you mean AdamW"),
        ({}, {"lr0": "abc"}, "lr0"),
        ({"effect": 0}, {}, "effect=0: expected AP points"),
        ({"effect": "much"}, {}, "effect='much': expected AP points"),
    ],
)
def test_what_would_be_unfair_is_refused(drawn, tmp_path, ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        settled(drawn, tmp_path, theirs=theirs, **ours)


def test_init_must_cover_all_below_the_heads(drawn, tmp_path):
    weights = tmp_path / "init.pt"
    torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, weights)
    assert settled(drawn, tmp_path, arms=[ARMS[0], Arm("t", "yolo11n-tscode.yaml")], init=str(weights)).init == weights
    with pytest.raises(ValueError, match="same family and scale"):
        settled(drawn, tmp_path, init=str(weights))
    with pytest.raises(FileNotFoundError, match="init="):
        settled(drawn, tmp_path, init=str(tmp_path / "none.pt"))


def test_an_arm_that_is_a_checkpoint_needs_init_and_is_known_by_its_content(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="model="):
        resolve_model("w.pt")
    init, weights = tmp_path / "init.pt", tmp_path / "w.pt"
    for seed, file in enumerate((init, weights)):
        torch.manual_seed(seed)
        torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, file)
    arms = [ARMS[0], Arm("w", resolve_model("w.pt"))]
    with pytest.raises(ValueError, match="give init="):
        settled(drawn, tmp_path / "out", arms=arms)
    study = settled(drawn, tmp_path / "out", arms=arms, init=str(init))
    assert [n for n in study.notes if "its head starts from w.pt" in n]
    begun(study)
    torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, weights)
    with pytest.raises(ValueError, match="another model_sha256"):
        write_jobs(settled(drawn, tmp_path / "out", arms=arms, init=str(init)))


def test_a_file_is_no_folder_for_a_study(drawn):
    with pytest.raises(ValueError, match="expected a folder or a new name, got a file"):
        settled(drawn, Path(__file__))


def test_labels_the_host_cannot_use_are_known_before_the_first_run(draw, tmp_path):
    data = draw(tmp_path / "cells")
    for file in (tmp_path / "cells/labels").rglob("*.txt"):
        file.write_text("5 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"under 'train:', got none; of the first it says: .*class 5 exceeds"):
        warm_label_caches(settled(data, tmp_path))


def test_images_the_host_leaves_out_are_a_warning_of_the_study(draw, tmp_path):
    study = settled(draw(tmp_path / "cells"), tmp_path)
    next((tmp_path / "cells/labels/val").glob("*.txt")).write_text("5 0.5 0.5 0.1 0.1\n")
    warm_label_caches(study)
    (warning,) = study.warnings
    assert warning.startswith("cells: the host leaves out 1 of 4 images under 'val:'")


def test_a_teacher_that_is_not_there_is_said_before_the_first_run(drawn, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"distill_model=none\.pt: expected a file"):
        settled(drawn, tmp_path, theirs={"distill_model": "none.pt"})


def test_two_things_of_one_name_are_refused(drawn, draw, tmp_path):
    with pytest.raises(ValueError, match="to compare a model with itself, copy its file under another name"):
        settled(drawn, tmp_path, arms=[ARMS[0], ARMS[0]])
    twin = draw(tmp_path / "drawn", seed=5)
    with pytest.raises(ValueError, match="expected different names"):
        settled(f"{drawn},{twin}", tmp_path)


def test_the_final_set_must_be_one_that_training_never_saw(drawn, draw, tmp_path):
    with pytest.raises(ValueError, match="that training never saw"):
        settled(drawn, tmp_path, final=str(drawn))
    fresh = draw(tmp_path / "fresh", seed=50)
    study = settled(drawn, tmp_path, final=str(fresh))
    assert study.finals["drawn"][0].yaml == fresh


def test_a_folder_with_other_settings_is_not_overwritten_but_more_seeds_go_on(drawn, tmp_path):
    begun(settled(drawn, tmp_path / "out"))
    assert len(write_jobs(settled(drawn, tmp_path / "out", seeds=3))) == 6
    with pytest.raises(ValueError, match="another last, epochs, mosaic; choose another out="):
        write_jobs(settled(drawn, tmp_path / "out", epochs=3, theirs={"mosaic": 0.0}))


def test_a_job_that_never_began_may_be_corrected(drawn, tmp_path):
    write_jobs(settled(drawn, tmp_path / "out"))
    (folder, *_) = write_jobs(settled(drawn, tmp_path / "out", epochs=3))
    assert read_json(folder / "job.json")["train"]["epochs"] == 3


@pytest.mark.parametrize("model", ["yolo11n-seg.yaml", "rtdetr-l.yaml"])
def test_models_that_do_more_than_detect_are_refused(drawn, tmp_path, model):
    with pytest.raises(ValueError, match="expected a detection model with a Detect head"):
        settled(drawn, tmp_path, arms=[ARMS[0], Arm("x", model)])


def test_a_changed_model_file_is_noticed(drawn, tmp_path):
    file = tmp_path / "mine.yaml"
    content = yaml_model_load("yolo11n.yaml")
    content.pop("yaml_file")
    file.write_text(yaml.safe_dump(content))
    arms = [ARMS[0], Arm("mine", resolve_model(str(file)))]
    begun(settled(drawn, tmp_path / "out", arms=arms))
    content["reg_max"] = 8
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="another model_sha256"):
        write_jobs(settled(drawn, tmp_path / "out", arms=arms))


def test_a_name_that_is_neither_yaml_nor_checkpoint_is_refused():
    with pytest.raises(ValueError, match="expected a model YAML, whose head starts fresh, or a checkpoint"):
        resolve_model("yolo11n.onnx")


def test_models_are_named_so_that_another_process_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("yolo11n.yaml") == "yolo11n.yaml"
    (tmp_path / "yolo99.yaml").write_text("nc: 1\nscales: {n: [1, 1, 8]}\nbackbone: []\nhead: []\n")
    assert resolve_model("yolo99n.yaml") == str(tmp_path / "yolo99n.yaml")
