from __future__ import annotations

import pickle

import pytest
import torch
from torch.testing import assert_close
from ultralytics.nn.modules.block import DFL

from tscode_yolo.integral import IN_PLACE, Integral


def in_place(bins: int) -> Integral:
    module = Integral(bins)
    module.in_place = True
    return module


@pytest.mark.parametrize("bins", [2, 16, 32])
@pytest.mark.parametrize(("batch", "points"), [(1, 1), (1, 84), (3, 85)])
def test_the_mean_of_the_bins_is_the_hosts(bins, batch, points):
    x = 4 * torch.randn(batch, 4 * bins, points)
    assert torch.equal(Integral(bins)(x), DFL(bins)(x))
    assert_close(in_place(bins)(x), DFL(bins)(x), rtol=1e-6, atol=1e-5)


def test_it_is_the_mean_of_a_known_distribution():
    x = torch.full((1, 4 * 4, 2), -50.0)
    x[0, [0, 5, 10, 15]] = 50.0  # all of side s in bin s
    assert_close(in_place(4)(x), torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 4, 1).expand(1, 4, 2))


@pytest.mark.parametrize(("dtype", "off"), [(torch.float16, 0.03), (torch.bfloat16, 0.2)])
def test_half_precision_stays_near(dtype, off):
    x = (20 * torch.randn(2, 64, 33)).to(dtype)
    found = in_place(16).to(dtype)(x)
    assert found.dtype == dtype
    assert_close(found.float(), DFL(16)(x.float()), rtol=0, atol=off)


@pytest.mark.parametrize(("format", "in_place"), [(None, False), *((f, True) for f in IN_PLACE), ("ncnn", False)])
def test_only_exports_that_gain_get_the_bins_in_place(make_head, pyramid, format, in_place):
    head = make_head().eval()
    maps = pyramid(64, 96)
    expected = head(list(maps))[0]
    head.export, head.format = format is not None, format
    found = head(list(maps))
    assert_close(found if head.export else found[0], expected)
    assert head.dfl.in_place == in_place
    traced = torch.jit.trace(head.dfl, torch.randn(1, 16, 84), check_trace=False)
    convs = [n for n in traced.inlined_graph.nodes() if n.kind() == "aten::_convolution"]
    assert bool(convs) != in_place


def test_weights_are_named_as_the_hosts_and_the_head_without_bins_has_none(make_head):
    assert Integral(16).state_dict().keys() == DFL(16).state_dict().keys()
    assert isinstance(make_head().dfl, Integral)
    assert isinstance(make_head(reg_max=1).dfl, torch.nn.Identity)


def test_a_checkpoint_from_before_gets_it_too(make_head, pyramid):
    head = make_head().eval()
    head.dfl = DFL(4)
    loaded = pickle.loads(pickle.dumps(head))
    assert isinstance(loaded.dfl, Integral)
    maps = pyramid()
    assert torch.equal(loaded(list(maps))[0], head(list(maps))[0])
