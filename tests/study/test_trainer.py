"""What makes two runs fair and a killed one resumable."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from tscode_yolo.study import run, start
from tscode_yolo.study import trainer as tr
from tscode_yolo.study.engines import command, environment
from tscode_yolo.study.run import execute
from tscode_yolo.study.start import model_hash
from tscode_yolo.verbs.storage import read_json, write_json


@pytest.fixture(scope="module")
def models() -> dict[str, DetectionModel]:
    names = {"a": ("yolo11n.yaml", 0), "b": ("yolo11n.yaml", 1), "other": ("yolov8n.yaml", 0)}
    built = {}
    for name, (model, seed) in names.items():
        torch.manual_seed(seed)
        built[name] = DetectionModel(model, nc=2, verbose=False)
    return built


def test_transfer_moves_everything_below_the_head_and_nothing_of_it(models):
    source, target = models["a"], DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    with torch.no_grad():
        for p in target.parameters():
            p.add_(1.0)
    head_before = {k: v.clone() for k, v in target.model[-1].state_dict().items()}
    moved, total = start.transfer_body(source, target)
    assert moved == total == len(source.model[:-1].state_dict())
    torch.testing.assert_close(dict(target.model[:-1].state_dict()), dict(source.model[:-1].state_dict()))
    torch.testing.assert_close(dict(target.model[-1].state_dict()), head_before)
    assert start.body_fingerprint(target) == start.body_fingerprint(source)


def test_transfer_refuses_weights_of_another_family(models):
    with pytest.raises(ValueError, match="expected weights for all"):
        start.transfer_body(models["other"], models["b"])


def test_body_fingerprint_does_not_see_the_head(models):
    before = start.body_fingerprint(models["b"])
    with torch.no_grad():
        models["b"].model[-1].cv2[0][-1].bias.add_(1)
        assert start.body_fingerprint(models["b"]) == before
        models["b"].model[0].conv.weight.mul_(1.5)
    assert start.body_fingerprint(models["b"]) != before


def test_the_body_under_a_fixed_seed_does_not_depend_on_the_head():
    prints = set()
    for model in ("yolo11n.yaml", "yolo11n-tscode.yaml"):
        start.seed_everything(3, -1)
        prints.add(start.body_fingerprint(DetectionModel(model, nc=2, verbose=False)))
    assert len(prints) == 1


def test_every_epoch_of_every_run_has_its_own_seed():
    seeds = {start.epoch_seed(s, e) for s in range(20) for e in range(-1, 50)}
    assert len(seeds) == 20 * 51
    draws = []
    for _ in range(2):
        start.seed_everything(1, 4)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_a_loss_objects_memory_is_kept_and_given_back():
    model = DetectionModel("yolo26n.yaml", nc=2, verbose=False)
    from ultralytics.cfg import get_cfg

    model.args = get_cfg(overrides={"epochs": 10})
    model.criterion = model.init_criterion()
    for _ in range(4):
        model.criterion.update()
    state = tr.criterion_state(model)
    weight = model.criterion.o2m
    model.criterion = None
    tr.restore_criterion(model, state)
    assert model.criterion.updates == 4
    assert model.criterion.o2m == weight


def test_a_loss_object_that_is_a_module_stays_out_of_the_weights():
    model = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    before = set(model.state_dict())
    model.criterion = nn.Linear(2, 2)
    assert set(start.weights_of(model)) == before
    assert set(tr.criterion_state(model)["tensors"]) == {"weight", "bias"}


def _job(folder: Path, data: Path, model: str, **train: object) -> Path:
    job = {
        "arm": Path(model).stem,
        "model": model,
        "model_sha256": model_hash(model),
        "dataset": "drawn",
        "data": str(data),
        "init": None,
        "init_sha256": None,
        "seed": 3,
        "train": {"imgsz": 64, "epochs": 3, "batch": 4, "nbs": 4, "optimizer": "AdamW", "lr0": 0.002, "workers": 0}
        | {"momentum": 0.9, "warmup_bias_lr": 0.0, "patience": 0, "plots": False, "close_mosaic": 1, **train},
        "last": 2,
        "every": 1,
        "weights": "last",
        "val_rect": True,
        "final_data": None,
        "final_split": None,
    }
    write_json(folder / "job.json", job)
    return folder


def _start(folder: Path) -> subprocess.Popen:
    log = (folder / "run.log").open("ab")
    return subprocess.Popen(command(folder, {"threads": 1}), env=environment(), stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["yolo11n.yaml", "yolo26n.yaml", "yolo11n-tscode.yaml"])
def test_a_run_killed_after_any_epoch_ends_as_if_it_had_not_been(drawn, tmp_path, model):
    """Kill -9 once each epoch's state is on disk, start again, and compare with a run left alone: bit for bit."""
    whole, broken = (_job(tmp_path / n, drawn, model) for n in ("whole", "broken"))
    assert _start(whole).wait() == 0
    kills = 0
    for epoch in (1, 2):
        process = _start(broken)
        while process.poll() is None and (read_json(broken / "train/progress.json") or {"epoch": 0})["epoch"] < epoch:
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills == 2
    assert _start(broken).wait() == 0
    a, b = read_json(whole / "result.json"), read_json(broken / "result.json")
    assert a["resumed"] == []
    assert b["resumed"]
    for result in (a, b):
        for row in result["history"]:
            del row["seconds"]
    assert a["history"] == b["history"]
    assert [h["epoch"] for h in a["history"]] == [1, 2, 3]
    assert (a["coco"], a["host"], a["body"]) == (b["coco"], b["host"], b["body"])
    weights = [
        torch.load(f / "train/weights/last.pt", weights_only=False)["model"].state_dict() for f in (whole, broken)
    ]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not (broken / "train/weights/resume.pt").exists()


def test_loader_processes_take_their_order_from_the_runs_seed(monkeypatch):
    """Also in a host that seeds every loader with the same number, as 8.4.0 does."""

    def hosts(_trainer, _path, batch_size, _rank, _mode):
        generator = torch.Generator().manual_seed(0)
        return InfiniteDataLoader(range(16), batch_size=batch_size, shuffle=True, num_workers=1, generator=generator)

    monkeypatch.setattr(tr.DetectionTrainer, "get_dataloader", hosts)

    def order(seed, mode="train"):
        trainer = object.__new__(tr.StudyTrainer)
        trainer.args = SimpleNamespace(seed=seed)
        return [batch.tolist() for batch in trainer.get_dataloader("", 4, -1, mode)]

    assert order(0) == order(0) != order(1)
    assert order(0, "val") == order(1, "val")


@pytest.mark.slow
def test_two_heads_see_the_same_batches_and_another_seed_does_not(drawn, tmp_path):
    seen = {}
    for name, model, seed in (("a", "yolo11n.yaml", 3), ("b", "yolo11n-tscode.yaml", 3), ("c", "yolo11n.yaml", 4)):
        folder = _job(tmp_path / name, drawn, model, epochs=2)
        write_json(folder / "job.json", {**read_json(folder / "job.json"), "seed": seed})
        assert _start(folder).wait() == 0
        result = read_json(folder / "result.json")
        seen[name] = ([h["batches"] for h in result["history"]], result["body"])
    assert seen["a"] == seen["b"]
    assert not set(seen["a"][0]) & set(seen["c"][0])


@pytest.mark.slow
def test_a_run_killed_between_training_and_judging_is_only_judged(drawn, tmp_path):
    folder = _job(tmp_path / "run", drawn, "yolo11n.yaml", epochs=1)
    hold = "import sys; from tscode_yolo.study import run; "
    hold += (
        "import tscode_yolo.study.trainer as t; t.StudyTrainer.final_eval = lambda self: __import__('os')._exit(9); "
    )
    hold += f"sys.exit(run.main([{str(folder)!r}]))"
    assert subprocess.run([sys.executable, "-c", hold], env=environment(), check=False).returncode == 9
    assert (folder / "train/weights/resume.pt").exists()
    asked = tmp_path / "asked.json"
    watch = "import json, sys; from tscode_yolo.study import evaluation as e, run; real = e.evaluate; "
    watch += "e.evaluate = lambda w, d, s, args, **k: "
    watch += (
        f"[open({str(asked)!r}, 'w').write(json.dumps([args['batch'], k['rect']])), real(w, d, s, args=args, **k)][1]; "
    )
    watch += f"sys.exit(run.main([{str(folder)!r}]))"
    assert subprocess.run([sys.executable, "-c", watch], env=environment(), check=False).returncode == 0
    result = read_json(folder / "result.json")
    assert [h["epoch"] for h in result["history"]] == [1]
    assert result["resumed"] == []
    # as the host validates after each epoch: batches of twice the size, for images of a batch share its padding
    assert read_json(asked) == [2 * read_json(folder / "job.json")["train"]["batch"], True]


@pytest.mark.slow
def test_the_best_epoch_is_one_that_was_validated(drawn, tmp_path):
    """Epochs 2, 4 and 5 of 5 are validated; 3 comes after 2 and must not take its place."""
    folder = _job(tmp_path / "run", drawn, "yolo11n.yaml", epochs=5)
    write_json(folder / "job.json", {**read_json(folder / "job.json"), "last": 1, "every": 2, "weights": "best"})
    assert _start(folder).wait() == 0
    rows = {h["epoch"]: h.get("mAP") for h in read_json(folder / "result.json")["history"]}
    validated = {e: v for e, v in rows.items() if v is not None}
    assert set(validated) == {2, 4, 5}
    kept = torch.load(folder / "train/weights/best.pt", weights_only=False)["train_metrics"]
    assert 100 * kept["metrics/mAP50-95(B)"] == pytest.approx(max(validated.values()))
    assert kept["fitness"] is not None


def test_a_model_changed_under_a_study_stops_its_runs(drawn, tmp_path):
    changing = tmp_path / "yolo11n.yaml"
    content = yaml_model_load("yolo11n.yaml")
    changing.write_text(yaml.safe_dump(content))
    folder = _job(tmp_path / "run", drawn, str(changing))
    changing.write_text(yaml.safe_dump({**content, "nc": 5}))
    with pytest.raises(ValueError, match=r"model=yolo11n.yaml: expected it as it was when the study began"):
        execute(folder, {})


def test_a_run_by_hand_may_name_its_folder_from_where_it_stands(tmp_path, monkeypatch):
    """The host changes folders under way: what was relative would be written elsewhere."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []

    def elsewhere(folder: Path, _lent: dict) -> dict:
        monkeypatch.chdir(tmp_path.parent)
        seen.append(folder)
        return {"said": "done"}

    monkeypatch.setattr(run, "execute", elsewhere)
    monkeypatch.setattr(run, "_stop_with_parent", lambda: None)
    assert run.main(["mine"]) == 0
    assert seen == [tmp_path / "mine"]
    assert read_json(tmp_path / "mine" / "result.json") == {"said": "done"}
