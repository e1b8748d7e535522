"""The two context encodings of TSCODE.

"Task-Specific Context Decoupling for Object Detection" (arXiv:2303.01047), Section 3, Eq. 3-5, Figures 3 and 4.

For level l of the pyramid, `finer` is P_{l-1} (half the stride) and `coarser` P_{l+1} (twice the stride):

    SCE   P_l ---- DConv/2 --+                             DPE   P_{l-1} ----------(+)-- DConv/2 --+
                             +-- concat = G_l^cls                P_l -+-- up2 ------^              |
          P_{l+1} -----------+   at half the size of P_l              +---------------------------(+) = G_l^loc
                                                                 P_{l+1} -- up2 -------------------^

B batch, C channels, H W size of a map, L levels. Sizes halve upwards, rounding up (a 3x3 stride-2 pad-1 conv's rule),
so an up-sampled map is at most one row and column too large and is cropped: every input size works.

Everything here takes and gives tensors; it knows nothing of losses or of the host's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv

from tscode_yolo.blocks import LevelConv, LevelSequential, conv_block, run_level
from tscode_yolo.down_of_sum import DownOfSum, of_sums
from tscode_yolo.resample import up


class _Encoding(nn.Module):
    """What both have in common: which levels they encode, and for how many channels.

    Attributes:
        at: levels that are encoded, 0 for the finest; the others are handed on as they are.
        out_channels: channels of each level's output.
    """

    at: tuple[int, ...]
    out_channels: list[int]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled encoding; older ones encode all levels and do not say so."""
        super().__setstate__(state)
        if "at" not in state:
            self.at = tuple(range(len(self.out_channels)))


class SemanticContextEncoding(_Encoding):
    """SCE: G_l^cls = Concat(DConv(P_l), P_{l+1}) for every level, Eq. 3.

    The coarsest level has no P_{l+1}: its G is DConv(P_l) alone, or that twice where `even_channels` asks for the
    same channels everywhere (towers shared over levels). The paper does not say; see docs/search.md.
    """

    def __init__(
        self,
        ch: Sequence[int],
        *,
        down: str = "conv",
        kernel: int = 3,
        coarser: bool = True,
        width: int | None = None,
        kind: str = "dense",
        shared: bool = False,
        norm: str = "bn",
        act: str = "silu",
        even_channels: bool = False,
        at: Sequence[int] | None = None,
    ):
        """Build the encoder.

        Args:
            ch: channels of P_l, finest level first; at least two levels.
            down: "conv", "avg" or "max", all of stride 2.
            kernel: odd kernel size of that step.
            coarser: concatenate P_{l+1}.
            width: channels of both maps that are concatenated; None keeps each level's own.
            kind: "dense", "separable" or "linear" stride-2 conv, see `conv_block`.
            shared: one stride-2 conv for all levels.
            norm: "bn" or "gn".
            act: of the stride-2 conv, "silu" or "relu".
            even_channels: repeat DConv(P_L) at the coarsest level, for towers shared over levels.
            at: levels to encode, 0 for the finest; the others are handed on as they are. None: all.
        """
        super().__init__()
        n = len(ch)
        self.at = _levels("sce_at", at, n)
        widths = [width or c for c in ch]
        self.coarser, self.even_channels = coarser, even_channels
        # One conv for all levels needs one input width; without sharing the stride-2 conv changes the width itself.
        self.laterals = nn.ModuleList(_project(c, w, norm) if shared else nn.Identity() for c, w in zip(ch, widths))
        down_ch = widths if shared else list(ch)
        pairs = list(zip(down_ch, widths))
        if down == "conv":
            pairs = pairs[:1] if shared else pairs
            self.down = nn.ModuleList(
                conv_block(c, w, kernel, 2, kind=kind, act=act, norm=norm, levels=n if shared else 1)
                if i in self.at
                else nn.Identity()
                for i, (c, w) in enumerate(pairs)
            )
        else:
            pool = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[down]
            self.down = nn.ModuleList(
                LevelSequential(pool(kernel, 2, kernel // 2), _project(c, w, norm)) if i in self.at else nn.Identity()
                for i, (c, w) in enumerate(pairs)
            )
        coarse = [(c, width or c) for c in down_ch[1:]] if coarser else []
        self.coarse = nn.ModuleList(
            _project(c, w, norm) if i in self.at else nn.Identity() for i, (c, w) in enumerate(coarse)
        )
        added = [w for _, w in coarse] or [0] * (n - 1)  # channels of P_{l+1}
        added.append(widths[-1] if coarser and even_channels else 0)  # P_L has none
        self.out_channels = [w + a if i in self.at else ch[i] for i, (w, a) in enumerate(zip(widths, added))]

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """L maps (B, C_l, H_l, W_l), finest first, to L maps (B, out_channels[l], ceil(H_l/2), ceil(W_l/2)).

        A level that is not encoded comes out as it went in.
        """
        pyramid = [lateral(p) for lateral, p in zip(self.laterals, pyramid)]
        out = []
        for level, p in enumerate(pyramid):
            if level not in self.at:
                out.append(p)
                continue
            halved = _apply_at(self.down, level, p)
            if self.coarser and level + 1 < len(pyramid):
                halved = torch.cat((halved, self.coarse[level](pyramid[level + 1])), 1)
            elif self.coarser and self.even_channels:
                halved = torch.cat((halved, halved), 1)
            out.append(halved)
        return out


class DetailPreservingEncoding(_Encoding):
    """DPE: G_l^loc = P_l + up(P_{l+1}) + DConv(up(P_l) + P_{l-1}) for every level, Eq. 5.

    A term whose level does not exist is left out: P_{l+1} at the coarsest level, and the whole DConv at the finest
    one when there is no finer map below it.

    Attributes:
        sum_first: make the sum at the finer size and then halve it, as Eq. 5 is written, rather than by `DownOfSum`.
        up_mode: how maps are made larger, "nearest" or "bilinear".
    """

    sum_first = False
    up_mode = "nearest"  # of heads pickled before there was another

    def __init__(
        self,
        ch: Sequence[int],
        finer_ch: int | None = None,
        *,
        offsets: Sequence[int] = (-1, 0, 1),
        width: int | None = None,
        up_mode: str = "nearest",
        kind: str = "dense",
        shared: bool = False,
        norm: str = "bn",
        act: str = "silu",
        at: Sequence[int] | None = None,
    ):
        """Build the encoder.

        Args:
            ch: channels of P_l, finest level first; at least two levels.
            finer_ch: channels of the map below the finest level (C2 for P3), or None without one.
            offsets: of the levels that take part, among -1, 0, 1, 2 (Table 3); -1 or 0 among them.
            width: channels of the sum; None keeps each level's own.
            up_mode: "nearest", or "bilinear" (with pixel centres aligned, not corners).
            kind: "dense", "separable" or "linear" stride-2 conv, see `conv_block`.
            shared: one stride-2 conv for all levels.
            norm: "bn" or "gn".
            act: of the stride-2 conv, "silu" or "relu".
            at: levels to encode, 0 for the finest; the others are handed on as they are. None: all.
        """
        super().__init__()
        n = len(ch)
        self.up_mode = up_mode
        self.at = _levels("dpe_at", at, n)
        widths = [width or c for c in ch]
        self.out_channels = [w if i in self.at else c for i, (w, c) in enumerate(zip(widths, ch))]

        def project(level: int, offset: int, width: int) -> nn.Module:
            """P_{level + offset} to the channels asked for, if the level is encoded."""
            return _project(ch[level + offset], width, norm) if level in self.at else nn.Identity()

        self.same = nn.ModuleList(project(i, 0, widths[i]) for i in range(n)) if 0 in offsets else None
        self.above = nn.ModuleList(project(i, 1, widths[i]) for i in range(n - 1)) if 1 in offsets else None
        self.above2 = nn.ModuleList(project(i, 2, widths[i]) for i in range(n - 2)) if 2 in offsets else None
        # What is added at the size of P_{l-1} has the channels of P_{l-1}: the small map is projected, not the large.
        below = [c if i in self.at else 0 for i, c in enumerate((finer_ch or 0, *ch[:-1]))]
        self.first = 0 if finer_ch else 1  # the first level that has a finer one
        self.detail: Any = None
        self.finer_lateral: Any = None
        self.same_up: Any = None
        lonely = 0 not in offsets and self.first == 1  # the finest level has nothing to add up but itself
        self.alone = project(0, 0, widths[0]) if lonely else None
        if -1 in offsets:
            added = [width if c and width and shared else c for c in below]
            self.finer_lateral = nn.ModuleList(
                _project(c, a, norm) if c else nn.Identity() for c, a in zip(below, added)
            )
            if 0 in offsets:
                self.same_up = nn.ModuleList(project(i, 0, added[i]) if added[i] else nn.Identity() for i in range(n))
            pairs = [(a, w) for a, w in zip(added, widths) if a]
            if shared:
                self.detail = nn.ModuleList([conv_block(*pairs[0], 3, 2, kind=kind, act=act, norm=norm, levels=n)])
            else:
                self.detail = nn.ModuleList(
                    conv_block(a, w, 3, 2, kind=kind, act=act, norm=norm) if a else nn.Identity()
                    for a, w in zip(added, widths)
                )
                if up_mode == "nearest":
                    self.detail = nn.ModuleList(map(of_sums, self.detail))
        if 0 in offsets and act == "silu":
            for module in (*(self.above or ()), *(self.above2 or ()), *(self.detail or ())):
                _start_at_zero(module)

    def forward(self, pyramid: Sequence[Tensor], finer: Tensor | None = None) -> list[Tensor]:
        """Encode the pyramid.

        Args:
            pyramid: L maps (B, C_l, H_l, W_l), finest first.
            finer: (B, finer_ch, 2 H_1, 2 W_1) map below the finest level, or None as at construction.

        Returns:
            L maps (B, out_channels[l], H_l, W_l); a level that is not encoded as it came.
        """
        out = []
        for level, p in enumerate(pyramid):
            if level not in self.at:
                out.append(p)
                continue
            terms = []
            if self.same is not None:
                terms.append(self.same[level](p))
            if self.above is not None and level + 1 < len(pyramid):
                terms.append(up(self.above[level](pyramid[level + 1]), p, mode=self.up_mode))
            if self.above2 is not None and level + 2 < len(pyramid):
                terms.append(up(self.above2[level](pyramid[level + 2]), p, 4, self.up_mode))
            if self.detail is not None and level >= self.first:
                terms.append(self._detail(pyramid, finer, level))
            if level == 0 and self.alone is not None:
                terms.append(self.alone(p))
            out.append(sum(terms[1:], start=terms[0]))
        return out

    def keep_kernels(self) -> None:
        """Make constants of the kernels that `DownOfSum` computes, if the norms are folded: old hosts do no more."""
        for block in self.detail or ():
            if isinstance(block, DownOfSum) and block.kernel is None and not hasattr(block[0], "bn"):
                block.fuse()

    def refresh_kernels(self) -> None:
        """Make the kernels that were kept anew, of the weights there are now."""
        for block in self.detail or ():
            if isinstance(block, DownOfSum) and block.kernel is not None:
                block.fuse()

    def _detail(self, pyramid: Sequence[Tensor], finer: Tensor | None, level: int) -> Tensor:
        """DConv(up(P_l) + P_{l-1}), the size of P_l."""
        below = self.finer_lateral[level](pyramid[level - 1] if level else finer)
        if self.same_up is None:
            return _apply_at(self.detail, level, below)
        small, block = self.same_up[level](pyramid[level]), self.detail[level if len(self.detail) > 1 else 0]
        if (
            isinstance(block, DownOfSum)
            and not self.sum_first
            and below.shape[-2:] == (2 * small.shape[-2], 2 * small.shape[-1])
        ):
            return block.of_sum(below, small)
        return run_level(block, below + up(small, below, mode=self.up_mode), level)


def _start_at_zero(module: nn.Module) -> None:
    """Zero the scales of the last norm, so that what is added to P_l starts as nothing (not before a ReLU: it dies)."""
    for conv in [m for m in module.modules() if isinstance(m, (Conv, LevelConv))][-1:]:
        for norm in conv.modules():
            if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.zeros_(norm.weight)


def _levels(option: str, at: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """The levels to encode; ValueError if the pyramid does not have them."""
    levels = tuple(range(n)) if at is None else tuple(at)
    if not set(levels) <= set(range(n)):
        raise ValueError(
            f"{option}={list(levels)}: expected numbers from 0 (the finest) to {n - 1}, for {n} levels are "
            f"predicted; set {option}: [0], or null for all"
        )
    return levels


def _project(c1: int, c2: int, norm: str) -> nn.Module:
    """A linear 1x1 conv with norm that changes the channels, or nothing where they agree already."""
    return nn.Identity() if c1 == c2 else conv_block(c1, c2, 1, act=None, norm=norm)


def _apply_at(modules: nn.ModuleList, level: int, x: Tensor) -> Tensor:
    """Apply the level's own module, or the one that all levels share."""
    return run_level(modules[level if len(modules) > 1 else 0], x, level)
