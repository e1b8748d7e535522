"""From options to the modules of the two branches: encodings, towers, the full-size path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from ultralytics.utils.ops import make_divisible

from tscode_yolo.blocks import Tower
from tscode_yolo.config import HeadConfig
from tscode_yolo.context import DetailPreservingEncoding, SemanticContextEncoding


def box_branch(
    config: HeadConfig, ch: list[int], finer_ch: int | None, stock: int, out: int
) -> tuple[DetailPreservingEncoding | None, nn.ModuleList]:
    """The localisation branch: DPE if it is on, and its towers.

    Args:
        config: options.
        ch: channels of the predicted levels, finest first.
        finer_ch: channels of the finer map, or None.
        stock: width of the stock head's towers.
        out: outputs of a point, 4 reg_max.

    Raises:
        ValueError: modules are to be shared over levels of different channels.
    """
    dpe = None
    if config.dpe:
        width = _channels(config.dpe_width, stock)
        dpe = DetailPreservingEncoding(
            ch,
            finer_ch,
            offsets=config.dpe_levels,
            width=width,
            up_mode=config.dpe_up,
            kind=config.down_conv,
            shared=_can_share(config.share_down, ch, width, "dpe_width"),
            norm=config.norm,
            act=config.act,
            at=config.dpe_at,
        )
        ch = dpe.out_channels
    return dpe, _towers(config, "box", ch, stock, [out] * len(ch))


def cls_branch(
    config: HeadConfig, ch: list[int], stock: int, nc: int
) -> tuple[nn.ModuleList | None, SemanticContextEncoding | None, nn.ModuleList]:
    """The classification branch: the full-size path and SCE if SCE is on, and its towers.

    Args:
        config: options.
        ch: channels of the predicted levels, finest first.
        stock: width that a width option of 1.0 means.
        nc: number of classes.

    Raises:
        ValueError: modules are to be shared over levels of different channels.
    """
    skip = sce = None
    towers: Any
    if config.sce:
        width = _channels(config.sce_width, stock)
        if config.sce_skip != "none":
            at = range(len(ch)) if config.sce_at is None else config.sce_at
            skip = nn.ModuleList(
                _full_size(config, c, stock, nc) if i in at else nn.Identity() for i, c in enumerate(ch)
            )
        sce = SemanticContextEncoding(
            ch,
            down=config.sce_down,
            kernel=config.sce_kernel,
            coarser=config.sce_coarser,
            width=width,
            kind=config.down_conv,
            shared=_can_share(config.share_down, ch, width, "sce_width"),
            norm=config.norm,
            act=config.act,
            even_channels=config.share_towers,
            at=config.sce_at,
        )
        ch = sce.out_channels
    encoded = sce.at if sce is not None else ()
    towers = _towers(config, "cls", ch, stock, [nc * (4 if i in encoded else 1) for i in range(len(ch))])
    if skip is not None:
        for level in encoded if len(towers) > 1 else (0,):  # SCE adds to full-size logits: it starts as nothing added
            nn.init.zeros_(towers[level][-1].weight)
    return skip, sce, towers


def _full_size(config: HeadConfig, c: int, stock: int, nc: int) -> nn.Module:
    """The path of one level that adds full-size logits to SCE's; no bias, for SCE's predictor has one."""
    light = config.sce_skip == "light"
    return Tower(
        c,
        c if light else stock,
        1 if light else 2,
        nc,
        kernel=3 if light else config.cls_kernel,
        kind="depthwise" if light else "dense" if config.sce_skip == "dense" else "separable",
        act=config.act,
        norm=config.norm,
        pred_bias=False,
    )


def _towers(config: HeadConfig, branch: str, ch: list[int], stock: int, out: list[int]) -> nn.ModuleList:
    """One tower per level of `ch` channels and `out` outputs, or one for all."""
    options = config.as_dict()
    width = _channels(options[f"{branch}_width"], stock) or stock
    shared = _can_share(config.share_towers, ch, None, "share_towers with equal channels, i.e. a width")
    return nn.ModuleList(
        Tower(
            c,
            width,
            options[f"{branch}_depth"],
            outputs,
            kernel=options.get(f"{branch}_kernel", 3),
            kind=options[f"{branch}_conv"],
            last_kind="deformable" if config.dcn else None,
            act=config.act,
            norm=config.norm,
            levels=len(ch) if shared else 1,
            bias=config.tower_bias,
            pred_kernel=config.pred_kernel,
        )
        for c, outputs in list(zip(ch, out))[: 1 if shared else None]
    )


def _channels(width: int | float | None, stock: int) -> int | None:
    """Channels a width option means: an int as it is, a float as a multiple of the stock width rounded up to 8."""
    return make_divisible(width * stock, 8) if isinstance(width, float) else width


def _can_share(wanted: bool, ch: Sequence[int], width: int | None, option: str) -> bool:
    """Whether to share a module over levels; ValueError if their channels differ and nothing makes them equal."""
    if wanted and width is None and len(set(ch)) > 1:
        raise ValueError(
            f"tscode options: sharing over levels needs the same channels on all of them, got {list(ch)}; set {option}"
        )
    return wanted
