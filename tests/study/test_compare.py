"""The whole of ``tscode compare`` and ``tscode ablate`` on drawn images, small enough for a CPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study import ablate, compare
from tscode_yolo.study.engines import environment
from tscode_yolo.study.plan import Arm, Study, make_study
from tscode_yolo.verbs.storage import read_json, write_json

from .records import run

TINY = {"imgsz": 64, "batch": 4, "nbs": 4, "epochs": 2, "latency": False, "last": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "a.yaml", "data": "d"}, "got no baseline="),
        ({"model": "a.yaml", "baseline": "b.yaml", "data": "d", "optimiser": "SGD"}, "did you mean optimizer="),
        ({"model": "a.yaml", "baseline": "b.yaml", "data": "d", "seed": 1}, "give seeds="),
    ],
)
def test_bad_arguments_are_explained(args, message):
    with pytest.raises(ValueError, match=message):
        compare.main(args)


def test_ablate_has_no_model_of_its_own():
    with pytest.raises(ValueError, match="model=: not an argument of ablate, its models are made from base="):
        ablate.main({"data": "d.yaml", "grid": "table1", "model": "yolo11n.yaml"})


def test_a_folder_keeps_the_report_of_another_study(drawn, tmp_path):
    named = [Arm("a", "yolo11n.yaml"), Arm("b", "yolov8n.yaml")]

    def study(arms: list[Arm], seeds: int = 1) -> Study:
        ours = {"data": str(drawn), "epochs": 1, "seeds": seeds, "out": str(tmp_path)}
        return make_study("compare", arms, ours, {"imgsz": 64, "batch": 4})

    compare.require_same_report(study(named))
    write_json(tmp_path / "results.json", compare.describe(study(named)))
    compare.require_same_report(study([*named, Arm("c", "yolo12n.yaml")], seeds=2))
    with pytest.raises(ValueError, match=f"got {tmp_path.name} with a report of b; choose another out="):
        compare.require_same_report(study([named[0], Arm("c", "yolo12n.yaml")]))


def test_the_default_folder_names_models_and_data(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = [Arm("a", "yolo11n.yaml"), Arm("b", "yolov8n.yaml")]
    study = make_study("compare", arms, {"data": str(drawn), "epochs": 1}, {"imgsz": 64, "batch": 4})
    assert study.out == tmp_path / "runs/study/b-vs-a-on-drawn"


def test_there_is_a_report_after_every_finished_run(drawn, tmp_path, monkeypatch):
    left = []

    def two_of_three(todo, workers, devices, tick, threads):
        """An engine that is stopped in its third run."""
        states = dict.fromkeys(todo, "waiting")
        for number, folder in enumerate(todo):
            states[folder] = "running"
            tick(states)
            results = read_json(tmp_path / "results.json")
            left.append([(m["arm"], m["seed"], m["why"]) for m in results["missing"]] if results else None)
            if number == 2:
                raise KeyboardInterrupt
            arm, seed = folder.parent.name, int(folder.name.removeprefix("seed"))
            write_json(folder / "result.json", run(arm, seed, 10.0 + number, "drawn"))
            states[folder] = "done"
            tick(states)
        return states

    monkeypatch.setattr(compare, "run_local", two_of_three)
    args = {**TINY, "model": "yolov8n.yaml", "baseline": "yolo11n.yaml", "data": str(drawn), "out": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        compare.main({**args, "seeds": 2})
    rest = [("yolo11n", 1, "waiting"), ("yolov8n", 1, "waiting")]
    assert left[0] is None
    assert left[1] == [rest[0], ("yolov8n", 0, "waiting"), rest[1]]
    assert left[2] == rest
    assert "+1.00 AP from one seed" in (tmp_path / "report.md").read_text()


def test_a_report_that_fails_between_runs_does_not_end_them(drawn, tmp_path, monkeypatch, capsys):
    def both(todo, workers, devices, tick, threads):
        for number, folder in enumerate(todo):
            write_json(folder / "result.json", run(folder.parent.name, 0, 10.0 + number, "drawn"))
            tick({f: "done" if f in todo[: number + 1] else "waiting" for f in todo})
        return dict.fromkeys(todo, "done")

    write, failed = compare.write_report, []

    def full_disk(*args):
        if not failed:
            failed.append(True)
            raise OSError("no space left")
        write(*args)

    monkeypatch.setattr(compare, "run_local", both)
    monkeypatch.setattr(compare, "write_report", full_disk)
    args = {**TINY, "model": "yolov8n.yaml", "baseline": "yolo11n.yaml", "data": str(drawn), "out": str(tmp_path)}
    assert compare.main({**args, "seeds": 1}) == 0
    assert failed
    assert "warning: no report yet: no space left" in capsys.readouterr().out
    assert read_json(tmp_path / "results.json")["missing"] == []


@pytest.mark.slow
def test_compare_from_nothing_to_the_report_with_a_failure_a_retry_and_more_seeds(drawn, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/tscode", "compare", f"data={drawn}"])
    out, fresh = tmp_path / "out", draw(tmp_path / "fresh", seed=50)
    args = {**TINY, "model": "yolo11n-tscode.yaml", "baseline": "yolo11n.yaml", "data": str(drawn), "out": str(out)}
    args |= {"final": str(fresh), "workers": 2}
    broken = out / "runs/drawn/yolo11n-tscode/seed1/train/weights/resume.pt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a checkpoint")
    assert compare.main({**args, "seeds": 2}) == 1
    results = read_json(out / "results.json")
    assert [(m["arm"], m["seed"]) for m in results["missing"]] == [("yolo11n-tscode", 1)]
    assert "delete the run's folder drawn/yolo11n-tscode/seed1 to start it again" in results["missing"][0]["why"]
    assert results["comparisons"][0]["seeds"] == [0]
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert len(stamps) == 3

    broken.unlink()
    assert compare.main({**args, "seeds": 3}) == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # what was finished is kept
    results = read_json(out / "results.json")
    assert results["comparisons"][0]["seeds"] == [0, 1, 2]
    assert results["fairness"]["pairs"] == results["fairness"]["same_start"] == results["fairness"]["same_batches"] == 3
    assert all(r["final"]["coco"]["AP"] is not None for r in results["runs"])
    assert all([h["epoch"] for h in r["history"]] == [1, 2] for r in results["runs"])
    assert results["provenance"]["command"].startswith("tscode compare data=drawn")
    text = (out / "results.json").read_text() + (out / "report.md").read_text() + (out / "report.html").read_text()
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text

    again = tmp_path / "again"
    assert compare.main({**args, "seeds": 3, "out": str(again), "reuse": str(out / "results.json")}) == 0
    taken = read_json(again / "results.json")
    assert taken["comparisons"] == results["comparisons"]
    assert "6 of 6 runs were taken over from out/results.json." in taken["fairness"]["remarks"]
    assert not list(again.rglob("*.pt"))


@pytest.mark.slow
def test_a_checkpoint_brings_its_head_and_nothing_else(drawn, tmp_path):
    files = {name: tmp_path / f"{name}.pt" for name in ("stock", "fitted")}
    for seed, (file, yaml_name) in enumerate(zip(files.values(), ("yolo11n.yaml", "yolo11n-tscode.yaml"))):
        torch.manual_seed(seed)
        net = YOLO(yaml_name)
        net.model = DetectionModel(yaml_name, nc=2, verbose=False)
        net.save(file)
    args = {**TINY, "model": str(files["fitted"]), "baseline": "yolo11n-tscode.yaml", "init": str(files["stock"])}
    still = {"epochs": 1, "optimizer": "SGD", "lr0": 1e-9, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}
    out = tmp_path / "out"
    assert compare.main({**args, **still, "data": str(drawn), "seeds": 1, "out": str(out)}) == 0
    results = read_json(out / "results.json")
    assert [a["name"] for a in results["arms"]] == ["yolo11n-tscode", "fitted"]
    assert results["fairness"]["same_start"] == results["fairness"]["same_batches"] == 1
    assert "its head starts from fitted.pt" in (out / "report.md").read_text()

    def head(file: Path) -> dict[str, torch.Tensor]:
        return torch.load(file, weights_only=False)["model"].model[-1].state_dict()

    given = head(files["fitted"])
    found = {arm: head(out / f"runs/drawn/{arm}/seed0/train/weights/last.pt") for arm in ("fitted", "yolo11n-tscode")}
    assert torch.equal(found["fitted"]["cv2.0.0.conv.weight"], given["cv2.0.0.conv.weight"])
    assert not torch.equal(found["yolo11n-tscode"]["cv2.0.0.conv.weight"], given["cv2.0.0.conv.weight"])


@pytest.mark.slow
def test_a_study_killed_with_its_runs_goes_on_where_it_was(drawn, tmp_path):
    out = tmp_path / "out"
    args = {**TINY, "model": "yolov8n.yaml", "baseline": "yolo11n.yaml", "data": str(drawn), "out": str(out)}
    args |= {"seeds": 1, "epochs": 3}
    code = f"import sys; from tscode_yolo.study.compare import main; sys.exit(main({args!r}))"
    study = subprocess.Popen([sys.executable, "-c", code], env=environment())
    second = out / "runs/drawn/yolov8n/seed0/train/progress.json"
    while not second.exists() and study.poll() is None:
        time.sleep(0.02)
    study.send_signal(signal.SIGKILL)
    study.wait()
    finished = out / "runs/drawn/yolo11n/seed0/result.json"
    stamp = finished.stat().st_mtime_ns
    assert not (second.parents[1] / "result.json").exists()
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
    assert finished.stat().st_mtime_ns == stamp
    resumed = read_json(second.parents[1] / "result.json")
    assert resumed["resumed"]
    assert [h["epoch"] for h in resumed["history"]] == [1, 2, 3]
    assert read_json(out / "results.json")["fairness"]["same_batches"] == 1
    assert "resumed at epoch" in (out / "report.md").read_text()
    assert len(resumed["places"]) == 1  # both processes ran the same code on the same machine
    assert resumed["judged"]["software"] == resumed["software"]


@pytest.mark.slow
def test_ablate_gives_its_rows_in_order_with_cost_and_interval(drawn, tmp_path):
    grid = tmp_path / "grid.yaml"
    rows = [
        {"label": "none", "options": {"sce": False, "dpe": False}},
        {"label": "with SCE", "options": {"dpe": False}},
        {"label": "again", "options": {"sce": False, "dpe": False}},
    ]
    grid.write_text(yaml.safe_dump({"rows": rows}))
    out = tmp_path / "out"
    args = {**TINY, "epochs": 1, "data": str(drawn), "grid": str(grid), "seeds": 2, "out": str(out)}
    assert ablate.main(args) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 4
    report = (out / "report.md").read_text()
    grid_section = report[report.index("## Grid") : report.index("## Differences")]
    table = [line for line in grid_section.splitlines() if line.startswith(("| none", "| with SCE", "| again"))]
    assert [line.split("|")[1].strip() for line in table] == ["none", "with SCE", "again"]
    assert all(f"{results['cost'][a]['gflops']:.3f}" in line for a, line in zip(results["cost"], table, strict=False))


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["yolo11n.yaml", "a/b.pt"], ["yolo11n", "b"]),
        (["runs/e1/weights/best.pt", "runs/e2/weights/best.pt"], ["e1-best", "e2-best"]),
        (["e1\\best.pt", "e2/best.pt", "other.pt"], ["e1-best", "e2-best", "other"]),
        (["yolo11n.yaml", "yolo11n.pt"], ["yolo11n.yaml", "yolo11n.pt"]),
        (["best.pt", "best.pt"], ["best", "best"]),  # refused later
        (["best.pt", "e2/best.pt"], ["best", "best"]),
    ],
)
def test_models_of_one_name_are_called_by_their_folders(models, names):
    assert compare.arm_names(models) == names


@pytest.mark.slow
def test_one_study_at_a_time_in_a_folder(drawn, tmp_path):
    from tscode_yolo.verbs.storage import sole_owner

    args = {**TINY, "model": "yolov8n.yaml", "baseline": "yolo11n.yaml", "data": str(drawn), "seeds": 1}
    write_json(tmp_path / "x.json", {})
    with sole_owner(tmp_path), pytest.raises(BlockingIOError, match="got another one at work"):
        compare.main({**args, "out": str(tmp_path)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpus": 2}, "cpus=: has no effect with engine=local, it is for engine=ray"),
        ({"engine": "ray", "workers": 2}, "workers=: has no effect with engine=ray, it is for engine=local"),
    ],
)
def test_an_argument_of_the_other_engine_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        compare.engine_arguments(given)


def test_devices_are_not_for_ray(drawn, tmp_path):
    arms = [Arm("a", "yolo11n.yaml"), Arm("b", "yolov8n.yaml")]
    with pytest.raises(ValueError, match=r"device=: has no effect with engine=ray, .* gpus=1"):
        make_study("compare", arms, {"data": str(drawn), "engine": "ray", "out": str(tmp_path)}, {"device": 0})


def test_latency_is_measured_on_the_runs_gpu_if_it_is_here(monkeypatch):
    monkeypatch.setattr(
        compare, "as_device", lambda d: torch.device("cuda", int(d)) if str(d).isdigit() else compare.CPU
    )
    assert compare.latency_device({}, {"device": "1,0"}) == torch.device("cuda", 1)
    assert compare.latency_device({}, {"device": "cpu"}) == compare.latency_device({}, {}) == compare.CPU
    assert compare.latency_device({"engine": "ray"}, {"device": 0}) == compare.CPU
