"""The example of a study over families and data sets, in its smallest form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.inventory import read_dataset
from tscode_yolo.verbs.storage import read_json, write_json

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


def test_studies_are_pooled_by_data_set(tmp_path):
    """On `one` seeds 0, 1, 2 of two families: (1+3)/2, (2+4)/2 and 3 alone; on `two` one seed without small objects."""

    def study(name, *comparisons):
        rows = [
            {"arm": f"{name}-x", "baseline": name, "dataset": d, "seeds": list(range(len(ap)))}
            | {"metrics": {"AP": {"values": ap}} | ({"APs": {"values": ap}} if d == "one" else {})}
            for d, ap in comparisons
        ]
        write_json(tmp_path / f"{name}.json", {"comparisons": rows})
        return tmp_path / f"{name}.json"

    files = [study("v8", ("one", [1.0, 2.0, 3.0]), ("two", [5.5])), study("v11", ("one", [3.0, 4.0]))]
    example = load("pool_studies")
    assert example.main({"results": ",".join(map(str, files)), "out": str(tmp_path / "pooled.json")}) == 0
    found = read_json(tmp_path / "pooled.json")
    assert found["contrasts"] == {"one": ["v8-x - v8", "v11-x - v11"], "two": ["v8-x - v8"]}
    assert list(found["metrics"]) == ["AP"]
    assert found["metrics"]["AP"]["means"] == {"one": pytest.approx(8 / 3), "two": 5.5}
    assert found["remarks"] == []
    assert found["provenance"]["packages"]["torch"]
    newer = {**read_json(files[1]), "runs": [{"settings": {"val_rect": True}}]}
    write_json(tmp_path / "rect.json", newer)
    older = {**read_json(files[0]), "runs": [{"settings": {}}]}
    write_json(tmp_path / "square.json", older)
    (remark,) = example.pool([tmp_path / "rect.json", tmp_path / "square.json"])["remarks"]
    assert "pads them in 1 of the studies, and to a square in 1" in remark
    with pytest.raises(ValueError, match="v8-x - v8 on one is in an earlier file already"):
        example.pool([files[0], files[0]])
    with pytest.raises(ValueError, match=r"expected a results.json of `tscode compare`"):
        example.pool([tmp_path / "pooled.json"])
    two = {"comparisons": [c for f in files for c in read_json(f)["comparisons"]]}
    write_json(tmp_path / "both.json", two)
    with pytest.raises(ValueError, match="expected one arm and its baseline, got v11-x, v8-x"):
        example.pool([tmp_path / "both.json"])
    chosen = example.pool([tmp_path / "both.json"], ["v11-x"])
    assert chosen["contrasts"] == {"one": ["v11-x - v11"]}
    assert chosen["metrics"]["AP"]["means"] == {"one": 3.5}
    with pytest.raises(ValueError, match="arms=v12-x: no study has an arm of that name"):
        example.pool([files[1]], ["v12-x"])


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
    assert read_json(tmp_path / "out/pooled.json")["metrics"]["AP"]["datasets"] == 2
    results = read_json(tmp_path / "out/yolo11n/results.json")
    assert results["init"] == "yolo11n-restored.pt"
    assert results["fairness"]["same_start"] == results["fairness"]["pairs"] == 2


@pytest.mark.slow
def test_inference_gap_judges_every_form_of_the_same_weights(draw, tmp_path):
    pytest.importorskip("onnxruntime")
    data = draw(tmp_path / "data", train=16)
    args = {"model": "yolo11n-tscode.yaml", "data": str(data), "json": str(tmp_path / "gap.json")}
    assert load("inference_gap").main({**args, "epochs": 12, "imgsz": 64, "batch": 4, "lr0": 0.002}) == 0
    assert str(tmp_path) not in (tmp_path / "gap.json").read_text()
    forms = read_json(tmp_path / "gap.json")["AP"]["yolo11n-tscode"]
    assert set(forms) >= {"trained", "average", "fused", "stored", "onnx", "onnx half"}
    assert forms["fused"]["AP"] == pytest.approx(forms["average"]["AP"], abs=0.1)
    assert forms["onnx"]["AP"] == pytest.approx(forms["average"]["AP"], abs=0.1)


def test_labels_stay_on_their_objects_in_a_border(tmp_path):
    """A white 30 x 10 block at (20, 8) of an 80 x 40 image, doubled, in a border of 16: 60 x 20 at (56, 72) of 192."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    image = np.zeros((40, 80, 3), np.uint8)
    image[8:18, 20:50] = 255
    cv2.imwrite(str(tmp_path / "images/val/a.png"), image)
    (tmp_path / "labels/val/a.txt").write_text(f"0 {35 / 80} {13 / 40} {30 / 80} {10 / 40}")
    file = tmp_path / "data.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: images/val\nval: images/val\nnames: {{0: block}}")
    data = load("border_effect").framed(read_dataset(file), 5, 160, 16, tmp_path / "out")
    framed = cv2.imread(str(data.parent / "images/val/a.png"))
    assert framed.shape == (192, 192, 3)
    assert (framed[:, :16] == 114).all()
    ys, xs = np.nonzero(framed[..., 0] > 128)
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (56, 116, 72, 92)
    _, x, y, w, h = map(float, (data.parent / "labels/val/a.txt").read_text().split())
    assert [v * 192 for v in (x, y, w, h)] == pytest.approx([86, 82, 60, 20], abs=0.01)
