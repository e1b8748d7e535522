from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from ultralytics import YOLO
from ultralytics.nn import tasks

import tscode_yolo
from tscode_yolo import cli
from tscode_yolo.safe import blueprint, container
from tscode_yolo.safe.pack import pack
from tscode_yolo.safe.unpack import load_safe, unpack

from .conftest import NAMES


def state_of(path):
    return torch.load(path, weights_only=False)["model"].state_dict()


def assert_bitwise_equal(state, other):
    assert list(state) == list(other)
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


def rewrite(source, target, change):
    """Copy a packed file with changed header texts and tensors, its digest made to fit: an attacker would do so."""
    with safe_open(source, framework="pt") as f:
        description = json.loads(f.metadata()[container.KEY])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    change(description, tensors)
    text = json.dumps(description)
    save_file(tensors, target, {container.KEY: text, container.DIGEST: container.digest(tensors, text)})
    return target


@pytest.mark.parametrize(
    ("name", "weights", "towers"),
    [
        ("tscode.yaml", "tscode.yaml", "one2one_cv3"),
        ("yolo11n.yaml", "yolo11n.yaml", "cv3"),
        ("yolo11n-tscode.yaml", "yolo11n.yaml", "cls_skip"),
        ("yolov8n-tscode.yaml", "yolov8n.yaml", "cls_skip"),
    ],
)
def test_own_data_trained_from_coco_weights_are_packed(tmp_path, name, weights, towers):
    """Their class towers are as wide as COCO's (80), not as three classes make them (64)."""
    net, coco = (tasks.DetectionModel(n, nc=nc, verbose=False) for n, nc in ((name, 3), (weights, 80)))
    net.load(coco, verbose=False)
    wide = getattr(net.model[-1], towers)[0][-1].in_channels == 80
    assert wide or name == "yolo11n.yaml"  # the oldest hosts do not keep the width of stock models
    net.names, net.args = dict(NAMES), {"imgsz": 96}
    torch.save({"model": net.half(), "ema": None, "train_args": net.args}, tmp_path / "best.pt")
    back = unpack(pack(tmp_path / "best.pt"), tmp_path / "back.pt")
    assert_bitwise_equal(state_of(tmp_path / "best.pt"), state_of(back))
    images = torch.rand(1, 3, 96, 96)
    before, after = (YOLO(p).model.float().eval()(images)[0] for p in (tmp_path / "best.pt", back))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "dtype", "changes"),
    [
        ("yolo11n-tscode.yaml", torch.half, {"tscode": {"finer": True, "recipe": {"name": "atss", "topk": 7}}}),
        ("yolo26n-tscode.yaml", torch.half, {}),
        ("tscode.yaml", torch.half, {}),
        ("yolo11n.yaml", torch.float32, {}),
    ],
    ids=["recipe", "end2end", "no scale named", "stock"],
)
def test_the_round_trip_is_bitwise(make_checkpoint, tmp_path, name, dtype, changes):
    checkpoint = make_checkpoint(tmp_path / "best.pt", name, dtype, **changes)
    back = unpack(pack(checkpoint), tmp_path / "back.pt")
    assert_bitwise_equal(state_of(checkpoint), state_of(back))
    before, after = (torch.load(p, weights_only=False) for p in (checkpoint, back))
    assert {k: v for k, v in after["model"].yaml.items() if k != "yaml_file"} == {
        k: v for k, v in before["model"].yaml.items() if k != "yaml_file"
    }
    assert after["model"].names == NAMES
    assert after["model"].stride.tolist() == [8, 16, 32]
    assert after["train_args"] == {"task": "detect", "imgsz": 96}  # paths and all the host does not need stay behind
    assert (after["date"], after["train_metrics"]) == (before["date"], before["train_metrics"])


def test_load_safe_gives_the_model_that_yolo_gives(checkpoint, packed):
    ours, hosts = tscode_yolo.load_safe(packed), YOLO(checkpoint)
    assert_bitwise_equal(hosts.model.state_dict(), ours.model.state_dict())
    assert ours.names == NAMES
    assert (ours.task, ours.overrides["imgsz"]) == ("detect", 96)
    image = torch.rand(1, 3, 96, 64).mul(255).byte()[0].permute(1, 2, 0).numpy()
    results = [m.predict(image, conf=0.0, imgsz=96, verbose=False)[0].boxes.data for m in (ours, hosts)]
    assert len(results[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_loading_unpickles_nothing(packed, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    assert load_safe(packed).names == NAMES


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    if not hasattr(tasks, "_SafeLoad"):
        pytest.skip("this Ultralytics has no restricted loading; pack warns")

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"model": Trap()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="trust=true"):
        pack(tmp_path / "bad.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0, 7, 200, 0.5, -1], ids=str)
def test_a_truncated_file_is_refused(packed, tmp_path, keep):
    data = packed.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cut.safetensors: expected a whole .* damaged or truncated"):
        load_safe(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("where", ["tensor", "description"])
def test_one_changed_bit_is_refused(packed, tmp_path, where):
    data = bytearray(packed.read_bytes())
    at = len(data) - 5 if where == "tensor" else data.index(b"two words") + 2
    data[at] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="its SHA-256 does not match"):
        load_safe(tmp_path / "bent.safetensors")


def test_safetensors_without_our_description_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="made by `tscode pack`, got tensors without"):
        load_safe(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "has format 2; the installed tscode_yolo reads up to 1. Update it"),
        ("schema", 99, "schema 99; the installed tscode_yolo knows up to 1. Update it"),
        ("yaml", {"backbone": []}, "no backbone and head"),
        ("options", {"sce_kernal": 3}, "unknown tscode option 'sce_kernal'; did you mean 'sce_kernel'"),
    ],
    ids=["format", "schema", "yaml", "options"],
)
def test_a_description_this_package_cannot_follow_is_refused(packed, tmp_path, key, value, message):
    file = rewrite(packed, tmp_path / "x.safetensors", lambda d, _: d.update({key: value}))
    with pytest.raises(ValueError, match=r"x\.safetensors") as error:
        load_safe(file)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(extra=torch.zeros(2)), "unknown tensors: extra"),
        (lambda t: t.pop("model.0.conv.weight"), "no tensors: model.0.conv.weight"),
        (lambda t: t.update({"model.0.bn.weight": torch.zeros(3)}), r"model.0.bn.weight \[3\] for \[16\]"),
        (
            lambda t: t.update({"model.0.bn.weight": torch.zeros(16, dtype=torch.int8)}),
            "another form: model.0.bn.weight",
        ),
    ],
    ids=["unknown", "missing", "shape", "dtype"],
)
def test_tensors_that_are_not_the_models_are_refused(packed, tmp_path, change, message):
    file = rewrite(packed, tmp_path / "x.safetensors", lambda _, tensors: change(tensors))
    with pytest.raises(ValueError, match=message):
        load_safe(file)


@pytest.mark.parametrize(
    "layer", ["load_checkpoint", "TorchVision", "nn.Module.__init__", "nn.functional", "os.system", "torch.load", 3]
)
def test_a_row_that_names_no_known_layer_never_reaches_the_host(layer):
    yaml = {"backbone": [[-1, 1, layer, ["x.pt"]]], "head": []}
    with pytest.raises(ValueError, match="Nothing was built"):
        blueprint.check_yaml(yaml)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("nn.SiLU()", True),
        ("torch.nn.LeakyReLU(0.1, inplace=True)", True),
        ("__import__('os').system('true')", False),
        ("nn.SiLU(__import__('os'))", False),
        ("nn.functional.silu()", False),
        ("nn.Module", False),
        ("nn.SiLU() or 1", False),
    ],
)
def test_only_a_plain_activation_reaches_the_hosts_eval(text, fine):
    yaml = {"backbone": [], "head": [], "activation": text}
    if fine:
        blueprint.check_yaml(yaml)
        return
    with pytest.raises(ValueError, match="activation"):
        blueprint.check_yaml(yaml)


def test_no_path_of_the_machine_is_packed(packed, checkpoint):
    assert str(checkpoint.parent).encode() not in packed.read_bytes()


def test_a_fused_model_is_refused_with_the_remedy(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content["model"].float().fuse(verbose=False)
    torch.save(content, tmp_path / "fused.pt")
    with pytest.raises(ValueError, match="use the checkpoint as training saved it"):
        pack(tmp_path / "fused.pt")


def test_the_verbs(checkpoint, tmp_path, capsys):
    shutil.copy(checkpoint, tmp_path / "best.pt")
    assert cli.main(["pack", f"model={tmp_path / 'best.pt'}"]) == 0
    packed = tmp_path / "best.safetensors"
    assert capsys.readouterr().out.strip() == f"packed {packed}"
    assert cli.main(["unpack", f"model={packed}"]) == 2
    assert "exists already; give another out=" in capsys.readouterr().err
    assert cli.main(["unpack", f"model={packed}", f"out={tmp_path / 'new.pt'}"]) == 0
    assert_bitwise_equal(state_of(checkpoint), state_of(tmp_path / "new.pt"))
    assert cli.main(["pack", "modle=x"]) == 2
    assert "did you mean model=?" in capsys.readouterr().err


def test_a_file_of_before_levels_could_be_chosen_is_built_as_it_was(tmp_path):
    levels = {"sce_at": None, "dpe_at": None}
    net = tasks.DetectionModel(
        {**tasks.yaml_model_load("yolo11n-tscode.yaml"), "tscode": {"finer": True, **levels}}, nc=3
    )
    net.names, net.args = dict(NAMES), {"imgsz": 96}
    torch.save({"model": net, "ema": None, "train_args": net.args}, tmp_path / "all.pt")

    def older(description, _tensors):
        for name in levels:
            del description["options"][name], description["yaml"]["tscode"][name]

    old = rewrite(pack(tmp_path / "all.pt"), tmp_path / "old.safetensors", older)
    model = load_safe(old).model
    assert_bitwise_equal(state_of(tmp_path / "all.pt"), model.state_dict())
    assert model.yaml["tscode"].items() >= levels.items()
