"""The example of a study over families and data sets, in its smallest form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.inventory import read_dataset
from tscode_yolo.study.storage import read_json, write_json

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))  # as when it is run: examples import each other
    spec.loader.exec_module(module)
    sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("first_study")


def test_images_are_taken_evenly_and_validation_stays_whole(example, draw, tmp_path):
    draw(tmp_path / "cells", train=10)
    whole = read_dataset(tmp_path / "cells" / "data.yaml")
    part = read_dataset(example.evenly_spaced(tmp_path / "cells" / "data.yaml", 4, tmp_path / "out"))
    assert part.name == "cells"
    assert part.images["train"] == tuple(whole.images["train"][i] for i in (0, 2, 5, 7))
    assert part.images["val"] == whole.images["val"]
    assert part.names == whole.names
    same = example.evenly_spaced(tmp_path / "cells" / "data.yaml", 10, tmp_path / "out")
    assert same == tmp_path / "cells" / "data.yaml"
    with pytest.raises(ValueError, match="images=0: expected a whole number"):
        example.evenly_spaced(same, 0, tmp_path / "out")


def test_studies_are_pooled_with_every_comparison_weighing_the_same(tmp_path):
    def study(dataset, values, small):
        metrics = {"AP": {"values": values}, "APs": small and {"values": small}}
        content = {"comparisons": [{"arm": "ours", "dataset": dataset, "metrics": metrics}]}
        write_json(tmp_path / dataset / "results.json", content)
        return tmp_path / dataset / "results.json"

    files = [study("one", [1.0, 2.0, 3.0], None), study("two", [5.0], [1.0])]
    example = load("pool_studies")
    assert example.main({"results": ",".join(map(str, files)), "out": str(tmp_path / "pooled.json")}) == 0
    found = read_json(tmp_path / "pooled.json")
    assert list(found) == ["AP"]  # one comparison has no small objects
    assert found["AP"]["means"] == {"ours, one": 2.0, "ours, two": 5.0}
    assert found["AP"]["mean"] == 3.5
    with pytest.raises(ValueError, match="ours, one is in an earlier file already"):
        example.pool([files[0], files[0]])
    with pytest.raises(ValueError, match=r"expected a results.json of `tscode compare`"):
        example.pool([tmp_path / "pooled.json"])


@pytest.mark.slow
def test_first_study_runs_and_pools(example, draw, tmp_path):
    for seed, name in enumerate(("one", "two")):
        draw(tmp_path / "data" / name, seed=10 * seed)
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "yolo11n-restored.pt"
    torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, weights)
    args = {"data": str(tmp_path / "data"), "weights": str(tmp_path / "weights"), "out": str(tmp_path / "out")}
    args |= {
        "families": "yolo11n",
        "datasets": "one,two",
        "images": 4,
        "epochs": 1,
        "seeds": 1,
        "imgsz": 64,
        "batch": 4,
    }
    assert example.main({**args, "latency": False, "threads": 1}) == 0
    assert read_json(tmp_path / "out/pooled.json")["AP"]["datasets"] == 2
    results = read_json(tmp_path / "out/yolo11n/results.json")
    assert results["init"] == "yolo11n-restored.pt"
    assert results["fairness"]["same_start"] == results["fairness"]["pairs"] == 2


@pytest.mark.slow
def test_inference_gap_judges_every_form_of_the_same_weights(draw, tmp_path):
    pytest.importorskip("onnxruntime")
    data = draw(tmp_path / "data", train=16)
    args = {"model": "yolo11n-tscode.yaml", "data": str(data), "json": str(tmp_path / "gap.json")}
    assert load("inference_gap").main({**args, "epochs": 12, "imgsz": 64, "batch": 4, "lr0": 0.002}) == 0
    forms = read_json(tmp_path / "gap.json")["AP"]["yolo11n-tscode"]
    assert set(forms) >= {"trained", "average", "fused", "stored", "onnx", "onnx half"}
    assert forms["fused"]["AP"] == pytest.approx(forms["average"]["AP"], abs=0.1)
    assert forms["onnx"]["AP"] == pytest.approx(forms["average"]["AP"], abs=0.1)
