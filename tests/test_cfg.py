"""Every shipped model YAML builds at every scale, over a backbone and neck that are the host's own."""

from __future__ import annotations

import pytest
import torch
import yaml
from ultralytics.nn import tasks

from tscode_yolo.shipped import cfg_dir

FAMILIES = {"yolov8": "yolov8", "yolo11": "yolo11", "yolo12": "yolo12", "yolo26": "yolo26", "tscode": "yolo26"}
MODELS = sorted(p.name for p in cfg_dir().glob("*.yaml"))


def family_of(model: str) -> str:
    return model.removesuffix(".yaml").removesuffix("-stock").removesuffix("-tscode")


def name_at(model: str, scale: str) -> str:
    stem = model.removesuffix(".yaml")
    return f"tscode{scale}.yaml" if stem == "tscode" else f"{stem.replace('-tscode', scale + '-tscode')}.yaml"


def test_every_family_has_its_yaml():
    families = [f for f in FAMILIES if f != "tscode"]
    assert {f"{f}-tscode{kind}.yaml" for f in families for kind in ("", "-stock")} | {"tscode.yaml"} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_layers_and_scales_are_the_hosts(model):
    ours = yaml.safe_load((cfg_dir() / model).read_text())
    stock = tasks.yaml_model_load(FAMILIES[family_of(model)] + "n.yaml")
    assert ours["backbone"] == stock["backbone"]
    assert ours["head"][:-1] == stock["head"][:-1]
    assert ours["head"][-1] == [[2, *stock["head"][-1][0]], 1, "TSCODEDetect", ["nc"]]
    assert ours["scales"] == stock["scales"]
    assert [ours.get(k) for k in ("nc", "end2end", "reg_max")] == [stock.get(k) for k in ("nc", "end2end", "reg_max")]


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        pytest.param(model, scale, marks=[pytest.mark.slow] if scale in "mlx" else [])
        for model in MODELS
        for scale in ("ns" if model.endswith("-stock.yaml") else "nsmlx")  # a preset does not depend on the scale
    ],
)
def test_every_yaml_builds_at_every_scale(model, scale):
    name = name_at(model, scale)
    built = tasks.DetectionModel(name, nc=3, verbose=False)
    head = built.model[-1]
    assert built.yaml["scale"] == scale
    assert type(head).__name__ == "TSCODEDetect"
    assert built.stride.tolist() == [8, 16, 32]
    assert (getattr(head, "one2one_dpe", None) is not None) == bool(built.yaml.get("end2end"))
    family = FAMILIES[family_of(model)]
    stock = tasks.DetectionModel(f"{family}{scale}.yaml", nc=3, verbose=False)
    ours = {k: v.shape for k, v in built.state_dict().items() if not k.startswith(f"model.{head.i}.")}
    assert ours == {k: v.shape for k, v in stock.state_dict().items() if not k.startswith(f"model.{head.i}.")}


@pytest.mark.parametrize("model", [m for m in MODELS if not m.endswith("-stock.yaml")])
def test_the_papers_head_builds_and_runs_in_every_family(model):
    """`preset: paper` in the place of the family's own, at a width of 32 instead of 256 and 512."""
    d = yaml.safe_load((cfg_dir() / model).read_text())
    d["tscode"] |= {"preset": "paper", **dict.fromkeys(("sce_width", "dpe_width", "cls_width", "box_width"), 32)}
    built = tasks.DetectionModel({**d, "scale": "n"}, nc=3, verbose=False)
    head = built.model[-1]
    assert (len(head.cv2), len(head.cv3), head.cls_skip, head.lqe) == (1, 1, None, None)
    assert head.sce.at == head.dpe.at == (0, 1, 2)
    built.eval()(torch.zeros(1, 3, 96, 64))
