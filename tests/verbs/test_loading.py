"""What a user names and the host cannot read is one clear error."""

from __future__ import annotations

import pickle

import pytest
import torch

from tscode_yolo.verbs.loading import checkpoint, data_yaml, model_yaml


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    for content in (b"", b"hello", pickle.dumps([1])):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"init=w\.pt: expected a checkpoint that Ultralytics saved"):
            checkpoint(tmp_path / "w.pt", "init")
    torch.save([1], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="fetch or save it again"):
        checkpoint(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError):
        checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("content", ["", "names: [a]\n", "backbone: []\n", "backbone: 3\nhead: 4\n"])
def test_a_yaml_of_something_else_is_no_model(tmp_path, content):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"base=m\.yaml: expected a model YAML with backbone and head, got no"):
        model_yaml(str(tmp_path / "m.yaml"), "base")


def test_a_model_yaml_keeps_its_scale_and_not_its_place():
    content = model_yaml("yolo11s-tscode.yaml")
    assert content["scale"] == "s"
    assert "yaml_file" not in content


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("yolo11n-tscod.yaml", "yolo11n-tscode.yaml"),
        ("yolov11n.yaml", "yolo11n.yaml"),
        ("tscodemm.yaml", "tscodem.yaml"),
        ("folder/yolov8n_tscode.yaml", "yolov8n-tscode.yaml"),
        ("fcos-r50-fpn-tscod.yaml", "fcos-r50-fpn-tscode.yaml"),
    ],
)
def test_a_model_name_that_is_almost_right_is_answered_with_the_right_one(typed, meant):
    with pytest.raises(FileNotFoundError, match=rf"baseline={typed}: .*; did you mean {meant}\?$"):
        model_yaml(typed, "baseline")


def test_a_model_name_like_no_other_gets_no_suggestion():
    with pytest.raises(FileNotFoundError, match=r"among the installed ones$"):
        model_yaml("resnet.yaml")


def test_a_data_yaml_that_is_not_there_comes_with_advice(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^final=nope\.yaml: 'nope\.yaml' does not exist; give the path of a data"
    ):
        data_yaml("nope.yaml", "final")


def test_a_data_yaml_without_a_split_is_refused_by_name(tmp_path):
    (tmp_path / "d.yaml").write_text("path: .\ntrain: images\nnames: [a]\n")
    with pytest.raises(ValueError, match=r"data=d\.yaml: .*'val:' key missing"):
        data_yaml(tmp_path / "d.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: abc", "names"),
        ("names: {0: a, 5: b}", "requires class indices 0-1"),
        ("names: {}", "names"),
        ("names: {x: a}", "invalid literal for int"),
        ("nc: many", "'nc: many' must be an integer"),
        ("task: detect", "either 'names' or 'nc' are required"),
        ("names: [a", "while parsing"),
    ],
)
def test_a_wrong_value_in_a_data_yaml_is_one_line_that_names_the_file(tmp_path, content, message):
    (tmp_path / "images").mkdir()
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\n{content}\n")
    with pytest.raises(ValueError, match=message) as e:
        data_yaml(tmp_path / "d.yaml", "final")
    assert str(e.value).startswith("final=d.yaml: expected a data YAML (train, val, names), got one the host refuses")
    assert "\n" not in str(e.value)


def test_a_file_of_another_kind_is_no_data_yaml(tmp_path):
    (tmp_path / "yolo11n.pt").touch()
    with pytest.raises(ValueError, match=r"data=yolo11n\.pt: "):
        data_yaml(tmp_path / "yolo11n.pt")
    with pytest.raises(FileNotFoundError, match=r"data=none\.yaml: "):
        data_yaml("none.yaml")
