from __future__ import annotations

import pytest
import reference
import torch
from torch.testing import assert_close

from tscode_yolo import resample


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (160, 32)])  # of images; the map is odd in the last two
def test_rearrange_is_equation_4_up_to_the_order_of_rows(size):
    k, h, w = 3, size[0] // 32, size[1] // 32
    ours = torch.randn(2, 4 * k, -(-h // 2), -(-w // 2))
    theirs = torch.empty_like(ours)
    for c in range(k):
        for sub in range(4):
            theirs[:, sub * k + c] = ours[:, 4 * c + sub]
    like = torch.empty(2, 1, h, w)
    assert_close(resample.rearrange_quadrants(ours, like), reference.rearrange(theirs, h, w), rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(6, 10), (5, 10), (7, 7), (1, 1)])
def test_sums_in_place_are_the_sums_to_the_last_bit(height, width):
    x = torch.randn(2, 3, height, width)
    quadrants = torch.randn(2, 12, -(-height // 2), -(-width // 2))
    expected = resample.add_quadrants(x, quadrants)
    assert_close(expected, x + resample.rearrange_quadrants(quadrants, x), rtol=0, atol=0)
    with torch.no_grad():
        found = resample.add_quadrants(x, quadrants)
    assert found is x
    assert torch.equal(found, expected)


def test_the_strided_sum_of_cuda_is_the_sum_to_the_last_bit():
    x, quadrants = torch.randn(2, 3, 6, 10), torch.randn(2, 12, 3, 5)
    expected = x + resample.rearrange_quadrants(quadrants, x)
    found = resample._add_at_once(x, quadrants)
    assert found is x
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(6, 10), (5, 10)])
def test_sums_in_place_on_cuda(size):
    x = torch.randn(2, 3, *size, device="cuda")
    quadrants = torch.randn(2, 12, 3, 5, device="cuda")
    expected = x + resample.rearrange_quadrants(quadrants, x)
    with torch.no_grad():
        assert torch.equal(resample.add_quadrants(x, quadrants), expected)


def test_no_trace_and_no_export_sees_a_sum_in_place():
    sums = torch.nn.Module()
    sums.forward = lambda x, q: resample.add_quadrants(x * 1, q)
    args = torch.randn(1, 2, 6, 6), torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        expected = sums(*args)
        traced = torch.jit.trace(sums, args)
        exported = torch.export.export(sums, args)
    assert "pixel_shuffle" in str(traced.inlined_graph)
    assert "pixel_shuffle" in str(exported.graph)
    assert torch.equal(traced(*args), expected)
    assert torch.equal(exported.module()(*args), expected)
