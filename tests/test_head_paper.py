"""The head's options for the paper's own detectors; the rest of the head is in test_head.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tscode_yolo.blocks import LevelConv, LevelScale
from tscode_yolo.config import HeadConfig
from tscode_yolo.deform import DeformableConv
from tscode_yolo.head import TSCODEDetect

CH = (32, 32, 32, 32)  # C2, P3, P4, P5: GroupNorm wants multiples of 32
PAPER = {"preset": "paper", "finer": True, "sce_width": 32, "dpe_width": 32, "cls_width": 64, "box_width": 32}


def make(**options: Any) -> TSCODEDetect:
    return TSCODEDetect(3, 1, False, CH, {**PAPER, **options}).train()


@pytest.fixture
def maps() -> list[torch.Tensor]:
    return [torch.randn(2, c, 40 // 2**i, 24 // 2**i) for i, c in enumerate(CH)]


def test_the_paper_form_has_relu_group_norm_and_one_tower_for_all_levels():
    head = make()
    kinds = {type(m) for m in head.modules()}
    assert nn.ReLU in kinds
    assert not {nn.SiLU, nn.BatchNorm2d} & kinds
    assert len(head.cv2) == len(head.cv3) == 1
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_groups for m in norms if m.num_channels >= 64} == {32}  # the paper's 256 and 512 channels
    assert {m.num_groups for m in norms if m.num_channels == 32} <= {16}  # this test's narrow ones


def test_tower_bias_is_in_the_towers_and_not_in_the_encoders():
    with_bias = {
        n for n, m in make(tower_bias=True).named_modules() if isinstance(m, LevelConv) and m.conv.bias is not None
    }
    assert {n.split(".")[0] for n in with_bias} == {"cv2", "cv3"}
    assert len(with_bias) == 4 + 2
    assert all(m.conv.bias is None for m in make().modules() if isinstance(m, LevelConv))


def test_level_scale_multiplies_each_levels_boxes(maps):
    head = make()
    plain = head(maps)["boxes"]
    assert isinstance(head.box_scale, LevelScale)
    head.box_scale.weight.data.copy_(torch.tensor([2.0, 3.0, 0.5]))
    factors = torch.cat([torch.full((m.shape[2] * m.shape[3],), f) for m, f in zip(maps[1:], (2.0, 3.0, 0.5))])
    assert_close(head(maps)["boxes"], plain * factors)


def test_dpe_as_a_neck_gives_both_branches_its_output(maps):
    head = make(dpe_neck=True, sce=False)
    plain = make(dpe=False, sce=False)
    assert not plain.load_state_dict(head.state_dict(), strict=False).missing_keys
    neck = head.dpe(maps[1:], maps[0])
    ours, expected = head(maps), plain([maps[0], *neck])
    assert_close(ours["scores"], expected["scores"])
    assert_close(ours["boxes"], expected["boxes"])
    assert all(a is b for a, b in zip(ours["feats"], maps[1:]))


def test_dpe_neck_without_dpe_is_refused():
    with pytest.raises(ValueError, match="dpe_neck=True needs the encoding"):
        HeadConfig(dpe=False, dpe_neck=True)


def test_dcn_makes_only_the_last_conv_of_each_tower_deformable(maps):
    head, plain = make(dcn=True), make()
    assert [n for n, m in head.named_modules() if isinstance(m, DeformableConv)] == ["cv2.0.1.2.conv", "cv3.0.1.conv"]
    missing, _ = head.load_state_dict(plain.state_dict(), strict=False)
    assert all(".offset." in k for k in missing)
    for key in ("boxes", "scores"):  # offsets are zero at the start
        assert_close(head(maps)[key], plain(maps)[key], rtol=1e-4, atol=1e-4)


def test_dcn_and_relu_also_work_in_unshared_towers_with_batch_norm(maps):
    head = TSCODEDetect(3, 1, False, CH[1:], {"sce": False, "dpe": False, "dcn": True, "act": "relu"}).eval()
    head.training = True
    before = head(maps[1:])
    for module in list(head.modules()):
        if isinstance(module, LevelConv):
            module.fuse()
    after = head(maps[1:])
    assert_close(after["boxes"], before["boxes"], rtol=1e-4, atol=1e-4)
    assert sum(isinstance(m, DeformableConv) for m in head.modules()) == 6


def test_an_end_to_end_head_has_scales_of_its_own():
    head = TSCODEDetect(3, 1, True, CH, PAPER)
    assert head.one2one_box_scale is not head.box_scale
    assert set(head.one2one) == set(head.one2many)
