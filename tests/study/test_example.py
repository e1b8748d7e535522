"""The example of a study over families and data sets, in its smallest form."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.storage import read_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_study.py"


@pytest.mark.slow
def test_first_study_runs_and_pools(draw, tmp_path):
    spec = importlib.util.spec_from_file_location("first_study", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for seed, name in enumerate(("one", "two")):
        draw(tmp_path / "data" / name, seed=10 * seed)
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "yolo11n-restored.pt"
    torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, weights)
    args = {"data": str(tmp_path / "data"), "weights": str(tmp_path / "weights"), "out": str(tmp_path / "out")}
    args |= {"families": "yolo11n", "datasets": "one,two", "epochs": 1, "seeds": 1, "imgsz": 64, "batch": 4}
    assert example.main({**args, "latency": False, "threads": 1}) == 0
    assert read_json(tmp_path / "out/pooled.json")["AP"]["datasets"] == 2
    results = read_json(tmp_path / "out/yolo11n/results.json")
    assert results["init"] == "yolo11n-restored.pt"
    assert results["fairness"]["same_start"] == results["fairness"]["pairs"] == 2
