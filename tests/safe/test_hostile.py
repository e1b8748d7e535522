"""Files whose digest fits, written by somebody who means harm or made a mistake: nothing of theirs reaches the host."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel

from tscode_yolo import cli
from tscode_yolo.safe import blueprint, container
from tscode_yolo.safe.description import check
from tscode_yolo.safe.pack import pack
from tscode_yolo.safe.unpack import load_safe, unpack
from tscode_yolo.study.profile import load


@pytest.fixture(scope="module")
def content(packed):
    """Description as text, and tensors, of the packed file."""
    with safe_open(packed, framework="pt") as f:
        return f.metadata()[container.KEY], {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118


@pytest.fixture
def forge(content, tmp_path):
    """Write x.safetensors: the packed file with its description and tensors changed, and a digest that fits."""

    def write(change):
        description, tensors = json.loads(content[0]), dict(content[1])
        change(description, tensors)
        text = json.dumps(description)
        file = tmp_path / "x.safetensors"
        save_file(tensors, file, {container.KEY: text, container.DIGEST: container.digest(tensors, text)})
        return file

    return write


EVIL = {
    **{"data": "http://127.0.0.1:1/evil.yaml", "model": "evil.pt", "project": "/evil", "name": "evil", "cfg": "evil"},
    **{"pretrained": "evil.pt", "tracker": "evil.yaml", "source": "http://evil", "resume": "evil.pt", "task": "evil"},
    **{
        "save_dir": "/evil",
        "device": "evil",
        "augmentations": ["evil"],
        "cache": "evil",
        "lr0": 0.5,
        "new_key": "evil",
    },
}


def texts(value):
    """All strings in a nest of mappings and lists, keys included."""
    if isinstance(value, dict):
        return [t for k, v in value.items() for t in (k, *texts(v))]
    return [t for v in value for t in texts(v)] if isinstance(value, (list, tuple)) else [value]


def test_no_file_url_or_code_in_the_arguments_reaches_the_host(forge, tmp_path):
    """`data` may be a YAML on the web whose `download:` the host runs as Python on the next val()."""

    def change(description, _):
        description["train_args"] = {**EVIL, "imgsz": 96, "single_cls": False}
        description["train_metrics"] = {"metrics/mAP50(B)": 0.5, "evil": "evil"}
        description["yaml"]["yaml_file"] = "/evil/../evil"

    file = forge(change)
    model = load_safe(file)
    allowed = {"task": "detect", "imgsz": 96, "single_cls": False}
    assert model.overrides == model.model.args == {**allowed, "model": str(file)}
    assert model.ckpt == {"train_args": allowed}
    assert "evil" not in " ".join(map(str, texts(model.model.yaml)))
    checkpoint = torch.load(unpack(file, tmp_path / "x.pt"), weights_only=False)
    assert checkpoint["train_args"] == checkpoint["model"].args == allowed
    assert checkpoint["train_metrics"] == {"metrics/mAP50(B)": 0.5}
    assert b"evil" not in (tmp_path / "x.pt").read_bytes()


def test_weights_that_a_backbone_names_are_not_fetched_by_a_later_training():
    rows = [[-1, 1, "TorchvisionFPN", ["resnet50", {"weights": "evil.pth"}]]]
    yaml = {"backbone": rows, "head": [[[0], 1, "Detect", ["nc"]]], "yaml_file": "a/retina.yaml"}
    kept = blueprint._kept_yaml(yaml, blueprint._buildable(yaml, None))
    assert kept["backbone"] == [[-1, 1, "TorchvisionFPN", ["resnet50", {"weights": None}]]]
    assert kept["yaml_file"] == "retina.yaml"


WRONG_TYPES = {  # key -> values of another type than `describe` writes
    **{key: (5, None, "zz", [1], {"a": 1}) for key in ("task", "names", "end2end")},
    **{key: (5, None, "zz", [1]) for key in ("yaml", "train_args", "train_metrics", "versions")},
    **{"options": (5, "zz", [1]), "schema": ("zz", [1], {"a": 1}), "date": (5, None, [1], {"a": 1})},
    "stride": (5, None, "zz", ["a"], [True], {"a": 1}),
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG_TYPES.items() for v in values], ids=str)
def test_a_field_of_another_type_is_refused(content, key, value):
    description = json.loads(content[0])
    check(description)
    with pytest.raises(ValueError, match=f"has {key}="):
        check({**description, key: value})
    with pytest.raises(ValueError, match=f"lacks {key}"):
        check({k: v for k, v in description.items() if k != key})


def put(**values):
    return lambda description, _: description.update(values)


def yaml(change):
    return lambda description, _: change(description["yaml"])


def cast(dtype):
    return lambda _, tensors: tensors.update({"model.0.bn.weight": tensors["model.0.bn.weight"].to(dtype)})


def segmenting(y):
    y.pop("tscode", None)
    y["head"][-1][2:] = ["Segment", ["nc", 32, 256]]


REFUSED = {
    "format inf": (put(format=float("inf")), "a whole number from 1, got inf"),
    "format true": (put(format=True), "a whole number from 1, got True"),
    "format 0": (put(format=0), "a whole number from 1, got 0"),
    "schema 0": (put(schema=0), "a whole number from 1, or null"),
    "schema true": (put(schema=True), "a whole number from 1, or null"),
    "no schema": (put(schema=None), "schema='None'"),
    "versions": (put(versions=None), "versions='None': expected a mapping"),
    "version": (put(versions={"ultralytics": {}}), "a text for each package"),
    "task": (put(task="segment"), "task='segment': expected detect"),
    "few names": (put(names=[[0, "a"]]), "1 class names: expected 3"),
    "names": (put(names=[[1, "a"], [0, "b"], [2, "c"]]), "in the order of the numbers"),
    "names out": (put(names=[[0, "a"], [1, "../../b"], [2, "c"]]), "texts that are no absolute path"),
    "stride nan": (put(stride=[8, 16, float("nan")]), "numbers above 0"),
    "stride 0": (put(stride=[0, 0, 0]), "numbers above 0"),
    "stride few": (put(stride=[8.0]), r"expected \[8.0, 16.0, 32.0\]"),
    "stride wrong": (put(stride=[1, 2, 4]), r"expected \[8.0, 16.0, 32.0\]"),
    "end2end": (put(end2end=True), "has no end-to-end branch"),
    "imgsz": (put(train_args={"imgsz": "640"}), "train_args.imgsz"),
    "single_cls": (put(train_args={"single_cls": "http://evil"}), "train_args.single_cls"),
    "stock options": (put(options=None, schema=None), "options of a TSCODE head"),
    "repeats": (yaml(lambda y: y["backbone"][2].__setitem__(1, 10**6)), "no more than 2000 layers"),
    "no repeats": (yaml(lambda y: y["backbone"][2].__setitem__(1, "1")), "a number of repeats from 1"),
    "depth": (yaml(lambda y: y.update(scales={"n": [1e6, 0.25, 1024]})), "no more than 2000 layers"),
    "nc": (yaml(lambda y: y.update(nc=10**6)), "far more parameters"),
    "width": (yaml(lambda y: y.update(scales={"n": [0.5, 1e4, 10**9]})), "far more parameters"),
    "segment head": (yaml(segmenting), "one with a Segment head"),
    "float64": (cast(torch.float64), "torch.float64 for torch.float32"),
    "float8": (cast(torch.float8_e4m3fn), "torch.float8_e4m3fn for torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_at_odds_with_itself_is_refused_in_one_line(forge, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_safe(forge(change))
    assert "x.safetensors" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_two_classes_of_one_name_are_the_users_business(forge):
    assert load_safe(forge(put(names=[[0, "a"], [1, "a"], [2, "a"]]))).names == {0: "a", 1: "a", 2: "a"}


@pytest.mark.parametrize("name", ["seg", "pose", "relabelled"])
def test_other_tasks_are_refused_by_pack_and_by_profile(tmp_path, name):
    """Their models and heads are subclasses of the detecting ones."""
    kind = {"seg": SegmentationModel, "pose": PoseModel}.get(name, DetectionModel)
    net = kind(f"yolo11n-{'seg' if name == 'relabelled' else name}.yaml", nc=3, verbose=False)
    torch.save({"model": net, "ema": None, "train_args": {"imgsz": 64}}, tmp_path / "other.pt")
    got = "Segment head" if name == "relabelled" else kind.__name__
    with pytest.raises(ValueError, match=f"expected a detection model.*{got}"):
        pack(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"expected a detection model.*{got}"):
        load(str(tmp_path / "other.pt"))
    assert not (tmp_path / "other.safetensors").exists()


def test_the_verbs_answer_wrong_files_in_one_line(checkpoint, tmp_path, capsys):
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").touch()
    for name in ("bus.jpg", "best.onnx", "tscode.yaml", "other.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "file").touch()
    wrong = "expected a checkpoint whose name ends in .pt"
    for arguments, message in (
        *(([f"model={tmp_path / n}"], wrong) for n in ("bus.jpg", "best.onnx", "tscode.yaml", "other.safetensors")),
        ([f"model={tmp_path / 'list.pt'}"], "expected a checkpoint of"),
        ([f"model={tmp_path / 'empty.pt'}"], "expected a checkpoint of"),
        ([f"model={checkpoint}", "out=5"], "out=5: expected a name that ends in .safetensors"),
        ([f"model={checkpoint}", f"out={tmp_path / 'file/x.safetensors'}"], "file"),
    ):
        assert cli.main(["pack", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert error.splitlines()[-1].startswith("tscode: ")


def test_a_place_that_safetensors_cannot_write_to_is_an_oserror(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "write_whole", lambda path, write: write(tmp_path / "no" / "x"))
    with pytest.raises(OSError, match="expected a place to write to"):
        container.write(tmp_path / "x", {"a": torch.zeros(1)}, {})
