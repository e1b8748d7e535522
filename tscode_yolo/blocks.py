"""The convs and towers that the context encodings and the head are made of, shared over pyramid levels or not.

B batch, C channels, H W size of a map, L levels. Everything here takes and gives tensors.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from tscode_yolo.deform import DeformableConv

GROUPS = 32  # of GroupNorm, as in the detectors the paper starts from


class LevelConv(nn.Module):
    """Conv, norm, activation, where the conv is shared by all levels and the BatchNorm is not.

    A BatchNorm shared by levels normalises each call by its own level in training and all of them by a mixture in
    evaluation. Separate norms close that gap (RTMDet, arXiv:2212.07784, Section 3.3); GroupNorm has none, and is
    shared as in the paper.
    """

    def __init__(
        self, c1: int, c2: int, k: int, s: int, kind: str, act: nn.Module, norm: str, levels: int, bias: bool = False
    ):
        super().__init__()
        conv = DeformableConv if kind == "deformable" else nn.Conv2d
        self.conv: Any = conv(c1, c2, k, s, k // 2, groups=c1 if kind == "depthwise" else 1, bias=bias)
        norms = [_group_norm(c2)] if norm == "gn" else [nn.BatchNorm2d(c2) for _ in range(levels)]
        self.norms: nn.ModuleList | None = nn.ModuleList(norms)
        self.act = act

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """(B, C1, H, W) of pyramid level `level` to (B, C2, H/s, W/s), rounded up."""
        if self.norms is None:
            return self.act(self.conv[level if len(self.conv) > 1 else 0](x))
        return self.act(self.norms[level if len(self.norms) > 1 else 0](self.conv(x)))

    def fuse(self) -> None:
        """Fold each level's BatchNorm into a conv of its own. GroupNorm, and what a deformable conv has, stays."""
        if self.norms is not None and isinstance(self.norms[0], nn.BatchNorm2d) and type(self.conv) is nn.Conv2d:
            self.conv = nn.ModuleList(fuse_conv_and_bn(copy.deepcopy(self.conv), bn) for bn in self.norms)
            self.norms = None


def _group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with at most 32 groups of at least two channels: one value alone, on a 1x1 map, has no variance."""
    groups = next((g for g in (GROUPS, 16, 8, 4, 2) if channels % g == 0 and channels >= 2 * g), 1)
    return nn.GroupNorm(groups, channels)


class LevelScale(nn.Module):
    """A learned factor per pyramid level, one at the start: what a tower shared by all levels cannot tell apart."""

    def __init__(self, levels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(B, C, H, W) of pyramid level `level`, times that level's factor."""
        return x * self.weight[level]


class LevelSequential(nn.Sequential):
    """A Sequential that tells its children which pyramid level they are working on."""

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Apply the children in turn to x, a map of pyramid level `level`."""
        for module in self:
            x = module(x, level) if isinstance(module, (LevelConv, LevelSequential)) else module(x)
        return x


def conv_block(
    c1: int,
    c2: int,
    k: int = 1,
    s: int = 1,
    *,
    kind: str = "dense",
    act: str | None = "silu",
    norm: str = "bn",
    levels: int = 1,
    bias: bool = False,
) -> nn.Module:
    """One conv with norm and activation, or its depthwise-separable form (kxk depthwise, then 1x1).

    A "linear" one has neither norm nor activation between the two: it keeps less for the backward pass, and
    "Xception" (arXiv:1610.02357, Section 4.7) found it to learn better.

    Args:
        c1: input channels.
        c2: output channels.
        k: odd kernel size.
        s: stride.
        kind: "dense", "separable", "linear", "depthwise" (then c1 = c2) or "deformable".
        act: what follows the norm: "silu" (the host's default activation), "relu" or None.
        norm: "bn" or "gn".
        levels: how many pyramid levels share the conv; each gets a BatchNorm of its own.
        bias: give the conv a bias although a norm follows (FCOS has it).
    """
    if kind in ("separable", "linear"):
        linear = nn.Conv2d(c1, c1, k, s, k // 2, groups=c1, bias=bias)
        depthwise = linear if kind == "linear" else _conv(c1, c1, k, s, "depthwise", act, norm, levels, bias)
        return LevelSequential(depthwise, _conv(c1, c2, 1, 1, "dense", act, norm, levels, bias))
    return _conv(c1, c2, k, s, kind, act, norm, levels, bias)


def _conv(
    c1: int, c2: int, k: int, s: int, kind: str, act: str | None, norm: str, levels: int, bias: bool
) -> nn.Module:
    """The host's own Conv where it does (it fuses it itself), LevelConv where levels share."""
    activation = {"silu": Conv.default_act, "relu": nn.ReLU(), None: nn.Identity()}[act]
    if norm == "bn" and levels == 1 and kind != "deformable" and not bias:
        return Conv(c1, c2, k, s, g=c1 if kind == "depthwise" else 1, act=activation)
    return LevelConv(c1, c2, k, s, kind, activation, norm, levels, bias)


class Tower(LevelSequential):
    """`depth` conv blocks and a bare predictor conv, as three children: stem, body, predictor.

    The predictor always is child 2, as in the host's head: the host's INT8 exports keep it in float by that index.
    """

    def __init__(
        self,
        c1: int,
        width: int,
        depth: int,
        out: int,
        *,
        kernel: int = 3,
        kind: str = "dense",
        last_kind: str | None = None,
        act: str = "silu",
        norm: str = "bn",
        levels: int = 1,
        bias: bool = False,
        pred_kernel: int = 1,
        pred_bias: bool = True,
    ):
        kinds = [kind] * (depth - 1) + [last_kind or kind]
        blocks = [
            conv_block(c1 if i == 0 else width, width, kernel, kind=k, act=act, norm=norm, levels=levels, bias=bias)
            for i, k in enumerate(kinds)
        ]
        body = blocks[1:]
        super().__init__(
            blocks[0],
            body[0] if len(body) == 1 else LevelSequential(*body) if body else nn.Identity(),
            nn.Conv2d(width, out, pred_kernel, padding=pred_kernel // 2, bias=pred_bias),
        )


def with_row(predictor: Any, other: Any) -> nn.Conv2d:
    """One conv for two that read the same features: `predictor`, and the single output of `other` as its last row.

    Args:
        predictor: conv (C, K, k, k) with bias; k odd.
        other: 1x1 conv (C, 1) without bias.
    """
    outputs = predictor.out_channels + 1
    conv = nn.Conv2d(predictor.in_channels, outputs, predictor.kernel_size, padding=predictor.padding)
    conv = conv.to(predictor.weight).requires_grad_(predictor.weight.requires_grad)
    centre = nn.functional.pad(other.weight.data, [n for n in predictor.padding for _ in range(2)])
    conv.weight.data.copy_(torch.cat((predictor.weight.data, centre)))
    conv.bias.data.copy_(nn.functional.pad(predictor.bias.data, (0, 1)))  # type: ignore[union-attr]
    return conv.train(predictor.training)


def run_level(module: nn.Module, x: Tensor, level: int) -> Tensor:
    """Call a module, telling it the level if it wants to know."""
    return module(x, level) if isinstance(module, (LevelConv, LevelSequential)) else module(x)
