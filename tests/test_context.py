from __future__ import annotations

import re

import pytest
import reference
import torch
from conftest import wake
from torch import nn
from torch.testing import assert_close

from tscode_yolo import blocks, context, resample
from tscode_yolo.context import DetailPreservingEncoding, SemanticContextEncoding
from tscode_yolo.down_of_sum import DownOfSum

SIZES = [(64, 96), (96, 160), (160, 32)]  # image sizes; the coarsest map is odd in the last two


def maps(height: int, width: int, channels: list[int], strides: list[int]) -> list[torch.Tensor]:
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(channels, strides)]


@pytest.mark.parametrize("size", SIZES)
def test_sce_is_equation_3(size):
    ch = [8, 12, 16]
    p = maps(*size, ch, [8, 16, 32])
    sce = wake(SemanticContextEncoding(ch)).eval()
    for level, (g, down) in enumerate(zip(sce(p), sce.down)):
        coarser = p[level + 1] if level < 2 else None
        assert_close(g, reference.sce(p[level], coarser, down))
    assert [g.shape[1] for g in sce(p)] == sce.out_channels == [8 + 12, 12 + 16, 16]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "up"), [("nearest", reference.upsample), ("bilinear", reference.blend)])
@pytest.mark.parametrize("kind", ["dense", "linear"])
def test_dpe_is_equation_5(size, mode, up, kind):
    c2, p3, p4, p5 = maps(*size, [8] * 4, [4, 8, 16, 32])
    dpe = wake(DetailPreservingEncoding([8] * 3, 8, up_mode=mode, kind=kind)).eval()
    out = dpe([p3, p4, p5], c2)
    for level, (finer, p, coarser) in enumerate([(c2, p3, p4), (p3, p4, p5), (p4, p5, None)]):
        assert_close(out[level], reference.dpe(finer, p, coarser, dpe.detail[level], up), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "separable", "linear"])
@pytest.mark.parametrize("size", SIZES[:2])
def test_projecting_small_maps_equals_projecting_what_was_up_sampled(size, kind):
    """Eq. 5 with every map projected at the size it is added at; the encoding projects before it up-samples."""
    c2, p3, p4, p5 = maps(*size, [4, 8, 12, 16], [4, 8, 16, 32])
    dpe = wake(DetailPreservingEncoding([8, 12, 16], 4, width=20, kind=kind)).eval()
    out = dpe([p3, p4, p5], c2)
    for level, (finer, p, coarser) in enumerate([(c2, p3, p4), (p3, p4, p5), (p4, p5, None)]):
        below = dpe.finer_lateral[level](finer)
        expected = dpe.same[level](p) + dpe.detail[level](
            dpe.same_up[level](reference.upsample(p, *finer.shape[-2:])) + below
        )
        if coarser is not None:
            expected = expected + dpe.above[level](reference.upsample(coarser, *p.shape[-2:]))
        assert_close(out[level], expected, rtol=1e-4, atol=1e-4)


def test_encodings_with_a_width_project_what_differs_and_nothing_else():
    sce = SemanticContextEncoding([8, 12, 16], width=12)
    assert [type(m) for m in sce.coarse] == [nn.Identity, context.Conv]
    assert sce.out_channels == [24, 24, 12]
    dpe = DetailPreservingEncoding([8, 12, 16], 4, width=8)
    assert [type(m) for m in dpe.same] == [nn.Identity, context.Conv, context.Conv]
    assert all(isinstance(m, nn.Identity) for m in dpe.finer_lateral)  # the large maps are read raw
    assert dpe.out_channels == [8, 8, 8]


def test_a_level_that_is_not_encoded_is_handed_on_and_has_no_weights():
    ch = [8, 12, 16]
    c2, *p = maps(64, 96, [4, *ch], [4, 8, 16, 32])
    sce = SemanticContextEncoding(ch, width=8, at=[1]).eval()
    dpe = DetailPreservingEncoding(ch, 4, width=8, at=[0, 2]).eval()
    for encoding, out in ((sce, sce(p)), (dpe, dpe(p, c2))):
        assert [g.shape[1] for g in out] == encoding.out_channels
        assert {i for i, g in enumerate(out) if g is p[i]} == {0, 1, 2} - set(encoding.at)
    whole = SemanticContextEncoding(ch, width=8).eval()
    own = {k: v for k, v in whole.state_dict().items() if re.match(r"(down|coarse)\.1\.", k)}
    assert set(own) == set(sce.state_dict())
    sce.load_state_dict(own)
    assert_close(sce(p)[1], whole(p)[1], rtol=0, atol=0)
    assert not any(re.match(r"(same|above|same_up|detail)\.1\.", k) for k in dpe.state_dict())


@pytest.mark.parametrize("levels", [(0,), (0, 1), (-1, 0), (-1,), (-1, 1), (-1, 0, 1), (-1, 0, 1, 2)])
@pytest.mark.parametrize("finer_ch", [4, None])
def test_dpe_reads_exactly_its_levels(levels, finer_ch):
    c2, *p = maps(64, 96, [4, 8, 12, 16], [4, 8, 16, 32])
    for t in (c2, *p):
        t.requires_grad_()
    dpe = DetailPreservingEncoding([8, 12, 16], finer_ch, offsets=levels, width=8)
    dpe(p, c2 if finer_ch else None)[1].sum().backward()  # P4, which has neighbours on both sides but no P_{l+2}
    read = {offset for offset, t in ((-1, p[0]), (0, p[1]), (1, p[2])) if t.grad is not None}
    assert read == set(levels) - {2}
    assert c2.grad is None
    for t in p:
        t.grad = None
    dpe(p, c2 if finer_ch else None)[0].sum().backward()
    read = {offset for offset, t in ((-1, c2), (0, p[0]), (1, p[1]), (2, p[2])) if t.grad is not None}
    without_finer = (set(levels) - {-1}) | ({0} if 0 not in levels else set())  # nothing else left: P_l itself
    assert read == (set(levels) if finer_ch else without_finer)


@pytest.mark.parametrize("down", ["avg", "max"])
def test_sce_pools_like_torch(down):
    p = maps(64, 96, [8, 8], [8, 16])
    sce = SemanticContextEncoding([8, 8], down=down, coarser=False)
    pool = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[down](3, 2, 1)
    assert_close(sce(p), [pool(t) for t in p])


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("kind", ["dense", "separable", "linear"])
def test_sce_halves_and_rounds_up_with_every_kernel(kernel, kind):
    sce = SemanticContextEncoding([8, 8], kernel=kernel, kind=kind, coarser=False)
    assert [tuple(g.shape[-2:]) for g in sce(maps(120, 56, [8, 8], [8, 16]))] == [(8, 4), (4, 2)]


def test_a_shared_conv_keeps_batch_norm_statistics_of_levels_apart():
    sce = SemanticContextEncoding([8, 8], shared=True, coarser=False)
    p3, p4 = maps(128, 128, [8, 8], [8, 16])
    for _ in range(200):
        sce([p3, 5 + 3 * p4])  # two levels with very different statistics
    trained = sce([p3, 5 + 3 * p4])
    sce.eval()
    assert_close(sce([p3, 5 + 3 * p4]), trained, rtol=0, atol=0.1)  # no gap between training and evaluation
    assert sum(isinstance(m, nn.Conv2d) for m in sce.modules()) == 1
    assert sum(isinstance(m, nn.BatchNorm2d) for m in sce.modules()) == 2


@pytest.mark.parametrize("kind", ["dense", "separable", "linear"])
def test_fusing_a_shared_conv_changes_no_output(kind):
    block = context.conv_block(8, 16, 3, 2, kind=kind, levels=3)
    for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
        nn.init.normal_(bn.weight)
    block.eval()
    x = torch.randn(2, 8, 9, 7)
    before = [block(x, level) for level in range(3)]
    for m in block.modules():
        if isinstance(m, context.LevelConv):
            m.fuse()
    assert_close([block(x, level) for level in range(3)], before, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    assert not torch.equal(before[0], before[1])


def test_a_linear_block_is_one_linear_map_before_its_norm():
    depthwise, pointwise = context.conv_block(6, 4, 3, 2, kind="linear")
    assert depthwise.groups == 6
    assert depthwise.bias is None
    x, y = torch.randn(2, 2, 6, 9, 7)
    both = [pointwise.conv(depthwise(m)) for m in (x, y, 2 * x - 3 * y)]
    assert_close(both[2], 2 * both[0] - 3 * both[1], rtol=1e-4, atol=1e-5)


def test_towers_keep_their_predictor_at_index_2():
    for depth in (1, 2, 4):
        tower = blocks.Tower(8, 16, depth, 5)
        assert tower[2].out_channels == 5
        assert sum(isinstance(m, context.Conv) for m in tower.modules()) == depth


@pytest.mark.parametrize("kind", ["separable", "linear"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (2, 5)])
@pytest.mark.parametrize("grad", [False, True])
def test_down_of_sum_is_the_block_on_the_sum(size, fused, kind, grad):
    """With gradients the small map is padded, without, as in use, more is computed and cropped."""
    block = wake(DownOfSum(*context.conv_block(6, 4, 3, 2, kind=kind))).train(not fused)
    small, below = torch.randn(2, 6, *size), torch.randn(2, 6, 2 * size[0], 2 * size[1])
    expected = block(below + resample.up(small, below))
    if fused:
        block.fuse()
        assert block.kernel.shape == (6, 1, 2, 2)
        assert "kernel" not in block.state_dict()
        assert_close(block(below + resample.up(small, below)), expected, rtol=1e-4, atol=1e-5)
    with torch.set_grad_enabled(grad):
        assert_close(block.of_sum(below, small), expected, rtol=1e-4, atol=1e-5)


def test_down_of_sum_is_found_where_older_checkpoints_look_for_it():
    """Under restricted loading too, which goes by the module that a class says it is of."""
    assert context.DownOfSum is DownOfSum
    assert DownOfSum.__module__ == context.__name__


@pytest.mark.parametrize("kind", ["separable", "linear"])
def test_dpe_takes_the_short_way_where_sizes_double_and_the_long_one_elsewhere(monkeypatch, kind):
    """At strides up to 32 every size the host makes doubles exactly; a 3x5 map below a 2x3 one does not."""
    dpe = wake(DetailPreservingEncoding([8] * 2, 8, kind=kind)).eval()
    calls = []
    of_sum = DownOfSum.of_sum
    monkeypatch.setattr(DownOfSum, "of_sum", lambda *a: calls.append(1) or of_sum(*a))
    for sizes, short in (([(8, 12), (4, 6), (2, 3)], 2), ([(6, 10), (3, 5), (2, 3)], 1)):
        c2, p3, p4 = (torch.randn(1, 8, *s) for s in sizes)
        calls.clear()
        out = dpe([p3, p4], c2)
        assert len(calls) == short
        assert_close(out[0], reference.dpe(c2, p3, p4, dpe.detail[0]), rtol=1e-4, atol=1e-5)
        assert_close(out[1], reference.dpe(p3, p4, None, dpe.detail[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["separable", "linear"])
def test_a_fused_block_takes_other_weights_with_its_small_kernel(kind):
    blocks_ = [wake(DownOfSum(*blocks.conv_block(8, 6, 3, 2, kind=kind))).eval() for _ in range(2)]
    for block in blocks_:
        block.fuse()
    fused, other = blocks_
    fused.load_state_dict(other.state_dict())
    below, small = torch.randn(1, 8, 6, 6), torch.randn(1, 8, 3, 3)
    assert_close(fused.of_sum(below, small), other.of_sum(below, small), rtol=0, atol=0)
