from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import ModelEMA

import tscode_yolo.fpn as fpn_module
from tscode_yolo.deform import DeformableConv
from tscode_yolo.fpn import MEAN, STD, BackboneNorm, TorchvisionFPN
from tscode_yolo.shipped import cfg_dir

NARROW = {"cls_width": 64, "cls_depth": 1, "box_width": 64, "box_depth": 1}
PAPER_YAMLS = sorted(p.name for p in (cfg_dir() / "paper").glob("*.yaml"))


def small(**options: Any) -> dict[str, Any]:
    """A model YAML with the smallest backbone."""
    return {
        "nc": 3,
        "reg_max": 1,
        "tscode": {"preset": "paper", "finer": True, **NARROW},
        "backbone": [[-1, 1, "TorchvisionFPN", ["resnet18", options]]],
        "head": [[-1, 1, "TSCODEDetect", ["nc"]]],
    }


def build(d: dict[str, Any]) -> tasks.DetectionModel:
    return tasks.DetectionModel(d, verbose=False)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 128, 192)


@pytest.mark.parametrize("size", [(128, 256), (100, 150), (97, 65)])
def test_gives_c2_and_p3_to_p7_each_half_the_one_before_rounded_up(size):
    net = TorchvisionFPN("resnet18").eval()
    with torch.no_grad():
        maps = net(torch.rand(1, 3, *size))
    assert [m.shape[1] for m in maps] == net.out_channels == [64, 256, 256, 256, 256, 256]
    expected = [-(-n // 4) for n in size]
    for m in maps:
        assert list(m.shape[-2:]) == expected
        expected = [-(-n // 2) for n in expected]


def test_equals_torchvisions_own_detection_backbone(images):
    net = TorchvisionFPN("resnet18").eval()
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    oracle = BackboneWithFPN(
        torchvision.models.resnet18(), layers, [128, 256, 512], 256, extra_blocks=LastLevelP6P7(256, 256)
    ).eval()
    oracle.body.load_state_dict(net.body.state_dict())
    weights = net.fpn.state_dict()
    oracle.fpn.load_state_dict({**weights, **{f"extra_blocks.{k}": v for k, v in net.coarser.state_dict().items()}})
    normalised = torchvision.transforms.functional.normalize(images, MEAN, STD)
    with torch.no_grad():
        for ours, theirs in zip(net(images)[1:], oracle(normalised).values(), strict=True):
            assert_close(ours, theirs)


def test_caffe_style_has_the_strides_in_the_first_1x1_and_the_same_sizes():
    with torch.device("meta"):
        ours, caffe = TorchvisionFPN("resnet50").eval(), TorchvisionFPN("resnet50", stride_in_1x1=True).eval()
        x = torch.zeros(1, 3, 100, 150)
        assert [m.shape for m in ours(x)] == [m.shape for m in caffe(x)]
    assert [(s[0].conv1.stride, s[0].conv2.stride) for s in (ours.body.layer2, caffe.body.layer2)] == [
        ((1, 1), (2, 2)),
        ((2, 2), (1, 1)),
    ]


def test_pafpn_adds_each_level_halved_to_the_next_and_p6_starts_from_its_result(images):
    net = TorchvisionFPN("resnet18", pafpn=True).eval()
    plain = copy.deepcopy(net)
    plain.bottom_up = None
    with torch.no_grad():
        c2, p3, p4, p5, *_ = plain(images)
        maps = net(images)
        (d4, d5), (o4, o5) = net.bottom_up.down, net.bottom_up.out
        m4 = p4 + F.conv2d(p3, d4.weight, d4.bias, 2, 1)
        m5 = p5 + F.conv2d(m4, d5.weight, d5.bias, 2, 1)
        n4, n5 = F.conv2d(m4, o4.weight, o4.bias, 1, 1), F.conv2d(m5, o5.weight, o5.bias, 1, 1)
        for ours, expected in zip(maps, (c2, p3, n4, n5, net.coarser.p6(n5)), strict=False):
            assert_close(ours, expected)


def test_weights_of_a_file_arrive_and_keep_torchvisions_eps_and_statistics(tmp_path):
    source = torchvision.models.resnet18()
    source.bn1.running_mean.uniform_()
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    model = build(small(weights=str(tmp_path / "r18.pth"), dcn=True))  # only the offsets are not in the file
    net = model.model[0]
    assert net.pretrained
    assert {m.eps for m in net.modules() if isinstance(m, BackboneNorm)} == {1e-5}  # the host sets 1e-3 elsewhere
    model.train()(torch.rand(2, 3, 128, 128))
    assert_close(net.body.bn1.running_mean, source.bn1.running_mean, rtol=0, atol=0)
    assert_close(net.body.layer2[0].conv2.weight, source.layer2[0].conv2.weight, rtol=0, atol=0)


def test_statistics_learn_without_weights_and_where_norm_eval_is_off(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    for options in ({}, {"weights": str(tmp_path / "r18.pth"), "norm_eval": False}):
        net = TorchvisionFPN("resnet18", **options).train()
        before = net.body.bn1.running_mean.clone()
        net(torch.rand(2, 3, 64, 64))
        assert not torch.equal(net.body.bn1.running_mean, before)


def test_unreachable_weights_warn_and_a_checkpoint_still_fills_the_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fpn_module, "ONLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(LOGGER, "propagate", True)
    with caplog.at_level(logging.WARNING):
        net = TorchvisionFPN("resnet18", weights="IMAGENET1K_V1")
    assert "resnet18 starts from RANDOM values" in caplog.text
    assert not net.pretrained
    other = TorchvisionFPN("resnet18")
    other.pretrained.fill_(True)
    net.load_state_dict(other.state_dict())
    assert net.pretrained
    assert not net.train().body.bn1.training


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match="does not fit resnet34: missing"):
        TorchvisionFPN("resnet34", weights=str(tmp_path / "r18.pth"))


def test_resnext101_32x4d_is_the_published_one():
    with torch.device("meta"):
        body = TorchvisionFPN("resnext101_32x4d").body
    # timm lists its resnext101_32x4d with 44.18 M parameters; 2048 * 1000 + 1000 of them are the classifier's.
    assert round((sum(p.numel() for p in body.parameters()) + 2_049_000) / 1e6, 2) == 44.18
    assert body.layer1[0].conv2.groups == 32


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet05"], "unknown backbone 'resnet05'; did you mean 'resnet50'"),
        (["resnet18", {"pafnp": True}], "unknown TorchvisionFPN option 'pafnp'; did you mean 'pafpn'"),
        (["resnet18", {"pafpn": 1}], "pafpn=1: expected true or false"),
        (["resnet18", {"weights": "IMAGENET"}], "did you mean 'IMAGENET1K_V1'"),
        (["resnet18", {"weights": "nowhere/r18.pth"}], "no file nowhere/r18.pth"),
        (["resnext101_32x4d", {"weights": "DEFAULT"}], "torchvision has no weights for resnext101_32x4d"),
        (["resnet18", {"stride_in_1x1": True}], "needs a backbone of bottlenecks"),
        ([18], r"are \[backbone\] or"),
    ],
)
def test_bad_rows_say_what_was_expected_and_in_which_yaml(args, message):
    d = {**small(), "backbone": [[-1, 1, "TorchvisionFPN", args]], "yaml_file": "mine.yaml"}
    with pytest.raises(ValueError, match=message) as e:
        build(d)
    assert str(e.value).startswith("mine.yaml: ")


def test_the_row_must_come_first_and_images_must_be_rgb():
    d = small()
    d["backbone"].insert(0, [-1, 1, "Conv", [16, 3, 2]])
    with pytest.raises(ValueError, match="TorchvisionFPN must be the first row"):
        build(d)
    with pytest.raises(ValueError, match="expected 3 channels, got 1"):
        tasks.DetectionModel(small(), ch=1, verbose=False)


def test_the_head_takes_the_whole_pyramid_as_if_index_rows_named_it(images):
    short = build(small())
    assert short.model[-1].f == [1, 2, 3, 4, 5, 6]
    assert short.stride.tolist() == [8, 16, 32, 64, 128]
    d = small()
    d["head"] = [[0, 1, "Index", [64 if i == 0 else 256, i]] for i in range(6)]
    d["head"].append([[1, 2, 3, 4, 5, 6], 1, "TSCODEDetect", ["nc"]])
    long = build(d)
    long.load_state_dict(short.state_dict())
    with torch.no_grad():
        assert_close(long.eval()(images)[0], short.eval()(images)[0], rtol=0, atol=0)


def test_without_finer_the_head_reads_p3_to_p7():
    d = small()
    d["tscode"] = {"preset": "paper", "dpe": False, **NARROW}
    assert len(build(d).model[-1].f) == 5


def test_the_pyramid_serves_a_stock_head(images):
    d = small()
    d.pop("tscode")  # options of a head that is not there
    d["head"] = [*([0, 1, "Index", [256, i]] for i in (1, 2, 3)), [[1, 2, 3], 1, "Detect", ["nc"]]]
    model = build(d)
    assert model.stride.tolist() == [8, 16, 32]
    assert model.eval()(images)[0].shape == (2, 7, 24 * 16 + 12 * 8 + 6 * 4)


@pytest.mark.parametrize("name", PAPER_YAMLS)
def test_every_paper_yaml_is_found_by_bare_name_and_builds(name):
    d = tasks.yaml_model_load(name)
    assert tasks.guess_model_task(d) == "detect"
    d["backbone"][0][3][1]["weights"] = None
    with torch.device("meta"):
        layers, _ = tasks.parse_model(copy.deepcopy(d), ch=3, verbose=False)
    head, net = layers[-1], layers[0]
    assert (head.nl, head.nc, head.reg_max) == (5, 80, 17 if name.startswith("gfl") else 1)
    parts = {"fpn": "", "r50": "", "sce": "sce", "dpe": "dpe", "dpeneck": "dpe", "tscode": "sce dpe"}
    expected = {p for word in name.removesuffix(".yaml").split("-") for p in parts.get(word, "").split()}
    assert {p for p in ("sce", "dpe") if getattr(head, p) is not None} == expected
    assert (head.quality is not None) == (not name.startswith("gfl"))
    deformable = [n for n, m in head.named_modules() if isinstance(m, DeformableConv)]
    assert bool(deformable) == any(isinstance(m, DeformableConv) for m in net.modules()) == ("-dcn" in name)
    if "-dcn" in name:  # the last conv before each predictor, and no other
        assert deformable == ["cv2.0.1.2.conv", "cv3.0.1.conv"]


def test_the_list_of_paper_yamls_is_the_papers():
    base = {f"{d}-r50-{f}.yaml" for d in ("fcos", "atss", "gfl") for f in ("fpn", "pafpn", "fpn-dpeneck")}
    parts = {f"{d}-r50-fpn-{f}.yaml" for d in ("fcos", "atss", "gfl") for f in ("sce", "dpe", "tscode")}
    large = {f"gfl-{b}{d}-fpn-tscode.yaml" for b in ("r101", "x101-32x4d", "x101-64x4d") for d in ("", "-dcn")}
    assert set(PAPER_YAMLS) == base | parts | large


def test_copies_and_averages_follow_the_model(images):
    model = build(small(pafpn=True)).eval()
    ema = ModelEMA(model)
    ema.update(model)
    with torch.no_grad():
        expected = model(images)[0]
        assert_close(copy.deepcopy(model)(images)[0], expected, rtol=0, atol=0)
        assert_close(ema.ema(images)[0], expected, rtol=1e-4, atol=1e-2)  # boxes in pixels


def test_a_checkpoint_loads_in_a_fresh_interpreter_under_restricted_loading(tmp_path, images):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small(pafpn=True, dcn=True)))
    model = YOLO(tmp_path / "small.yaml", verbose=False)
    model.save(tmp_path / "small.pt")
    torch.save(images, tmp_path / "images.pt")
    with torch.no_grad():
        expected = model.model.eval()(images)[0]
    code = (
        "import sys, torch, tscode_yolo; from ultralytics import YOLO; torch.set_grad_enabled(False)\n"
        "m = YOLO('small.pt').model.float().eval()\n"
        "torch.save(m(torch.load('images.pt'))[0], 'out.pt')"
    )
    root = str(Path(fpn_module.__file__).parents[1])
    env = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1", "PYTHONPATH": root}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=1e-2, atol=0.5)  # saved in half precision


def test_gradients_reach_the_stem_and_every_head_parameter():
    d = small(dcn=True)
    d["tscode"]["dcn"] = True
    model = build(d).train()
    preds = model(torch.rand(1, 3, 128, 128))
    (preds["boxes"].sum() + preds["scores"].sum()).backward()
    assert model.model[0].body.conv1.weight.grad.abs().sum() > 0
    missing = [n for n, p in model.model[-1].named_parameters() if p.grad is None and "dfl" not in n]
    assert not missing
    assert all(not isinstance(m, nn.SiLU) for m in model.modules())


def test_the_log_names_the_layer_and_its_options(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", True)
    with caplog.at_level(logging.INFO):
        tasks.parse_model(small(pafpn=True), ch=3, verbose=True)
    assert "tscode_yolo.fpn.TorchvisionFPN" in caplog.text
    assert "[resnet18, weights=None, pafpn]" in caplog.text
