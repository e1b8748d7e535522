from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tscode_yolo.deform import DeformableConv


def test_a_deformable_conv_starts_as_the_plain_conv_of_its_weights():
    conv = DeformableConv(8, 6, 3, 2, 1, groups=2, bias=True)
    x = torch.randn(2, 8, 9, 7)
    assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, 2, 1, groups=2), rtol=1e-4, atol=1e-5)


def test_offsets_are_dy_dx_in_pixels():
    # Every tap looks one row lower and two columns to the right: a 1x1 conv of weight 1 shifts its input so.
    conv = DeformableConv(1, 1, 1, bias=False)
    torch.nn.init.ones_(conv.weight)
    conv.offset.bias.data.copy_(torch.tensor([1.0, 2.0]))
    x = torch.arange(30.0).view(1, 1, 5, 6)
    assert_close(conv(x), F.pad(x[..., 1:, 2:], (0, 2, 0, 1)))


def test_offsets_learn():
    conv = DeformableConv(4, 4, 3, 1, 1)
    conv(torch.randn(1, 4, 6, 6)).square().sum().backward()
    assert conv.offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_offsets_that_are_no_numbers_do_not_end_the_process(value):
    """torchvision's operator reads memory at them; the host counts FLOPs on whatever memory holds."""
    conv = DeformableConv(2, 3, 3, 1, 1)
    x = torch.randn(1, 2, 5, 5)
    x[0, 0, 2, 2] = value
    torch.nn.init.ones_(conv.offset.weight)
    assert conv(x).shape == (1, 3, 5, 5)


def test_taps_beyond_the_border_read_zeros_however_far():
    conv = DeformableConv(1, 1, 1, bias=False)
    conv.offset.bias.data.copy_(torch.tensor([1e9, 0.0]))
    assert_close(conv(torch.randn(1, 1, 5, 6)), torch.zeros(1, 1, 5, 6))
