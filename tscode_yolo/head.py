"""TSCODEDetect: the host's Detect, with each branch given its own context.

    P3..P5 --+-- SCE --> G^cls --> cv3 (half size, 4 x nc) --> Eq. 4 --+--> scores (B, nc, A)
             +-- cls_skip (full size) ---------------------------------+
                                 +---- lqe ----------------------------+
    C2 ------+-- DPE --> G^loc --> cv2 --------------------------------+--> boxes (B, 4 reg_max, A)

The import path ``tscode_yolo.head.TSCODEDetect`` is public and frozen: checkpoints pickle it. Attribute names that the
host reads (cv2, cv3, one2one_*, nl, nc, stride, ...) are the host's.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from ultralytics.nn.modules.block import DFL
from ultralytics.nn.modules.head import Detect

from tscode_yolo.blocks import LevelConv, LevelScale, run_level, with_row
from tscode_yolo.branches import box_branch, cls_branch
from tscode_yolo.config import SCHEMA, HeadConfig, completed, how_to_install
from tscode_yolo.context import DetailPreservingEncoding, SemanticContextEncoding
from tscode_yolo.down_of_sum import DownOfSum
from tscode_yolo.integral import IN_PLACE, Integral, in_order
from tscode_yolo.priors import PRIOR, box_start, logit, rare
from tscode_yolo.quality import QualityBranch
from tscode_yolo.resample import add, add_quadrants, rearrange_quadrants

# What forward_head gets beside the towers, if it exists.
CONTEXT = ("sce", "dpe", "cls_skip", "quality", "box_scale", "lqe")
SUM_FIRST = ("paddle",)  # exports whose runtime crashes on DPE's small kernel, see docs/exports.md


class TSCODEDetect(Detect):
    """Detection head with Task-Specific COntext DEcoupling (arXiv:2303.01047).

    Attributes:
        options: all options as plain values, see `tscode_yolo.config.HeadConfig`.
        finer: whether the first input is a map below the finest predicted level (C2).
        sce: Semantic Context Encoding, or None when classification reads the plain P_l.
        dpe: Detail-Preserving Encoding, or None when localisation reads the plain P_l.
        cls_skip: per level, full-size logits added to SCE's, or None.
        quality: one logit per anchor point on how good its box is, from the localisation towers, or None.
        box_scale: a factor of each level's box output, or None.
        lqe: per level, one logit from the localisation tower added to those of all classes, or None.
        lqe_in_boxes: `fuse` has made that logit the last row of the box predictor.
        recipe_state: what the recipe it is trained with learns or counts, or None.
        one2one_dpe, one2one_lqe, ...: twins of these in an end-to-end head; of SCE only if asked for.
    """

    cv2: Any
    cv3: Any
    sce: Any
    dpe: Any
    cls_skip: Any
    quality: Any
    box_scale: Any
    lqe: Any
    recipe_state: Any
    lqe_in_boxes = False

    def __init__(
        self,
        nc: int = 80,
        reg_max: int = 16,
        end2end: bool = False,
        ch: Sequence[int] = (),
        options: Mapping[str, Any] | None = None,
    ):
        """Build the head.

        Args:
            nc: number of classes.
            reg_max: DFL bins; 1 regresses distances directly.
            end2end: add the one-to-one twins of an NMS-free head.
            ch: channels of the inputs, finest first: the predicted levels, preceded by the finer map if
                ``options["finer"]``.
            options: see `tscode_yolo.config.HeadConfig`.

        Raises:
            ValueError: fewer than two predicted levels, or options that the channels do not allow.
        """
        config = HeadConfig.from_mapping(options)
        levels = list(ch)[config.finer :]
        if len(levels) < 2:
            raise ValueError(
                f"TSCODEDetect: expected at least 2 predicted levels{' after the finer map' * config.finer}, got "
                f"inputs with channels {list(ch)}. Name more layers in its row, e.g. [[16, 19, 22], 1, TSCODEDetect, "
                f"[nc]]{', or drop `finer: true`' * config.finer}"
            )
        super().__init__(nc, reg_max, end2end=False, ch=tuple(levels))
        self.options = config.as_dict()
        self.finer = config.finer
        self.built = False  # True once the host has seen the inputs' sizes and set the strides
        self.score = config.score
        self.dpe_neck = config.dpe_neck
        if reg_max > 1:
            self.dfl = Integral(reg_max)
        self.sce = self.dpe = self.cls_skip = self.quality = self.box_scale = self.lqe = self.recipe_state = None
        # The stock head's widths, but for its dependence on nc: other classes must not change the towers' shapes.
        box_width, cls_width = self.cv2[0][-1].in_channels, levels[0]
        if config.dpe or config.share_towers or config.dcn:
            finer_ch = next(iter(ch)) if config.finer else None
            self.dpe, self.cv2 = box_branch(config, levels, finer_ch, box_width, 4 * reg_max)
        base = self.dpe.out_channels if config.dpe_neck else levels
        stock_cls = self.cv3
        if config.sce or _rebuilt(self.options):
            self.cls_skip, self.sce, self.cv3 = cls_branch(config, base, cls_width, nc)
        if config.quality != "none":
            self.quality = QualityBranch([t[-1].in_channels for t in self.cv2], config.quality == "filter3d")
        if config.lqe:
            self.lqe = nn.ModuleList(nn.Conv2d(t[-1].in_channels, 1, 1, bias=False) for t in self.cv2)
            for estimate in self.lqe:
                nn.init.zeros_(estimate.weight)
        if config.level_scale:
            self.box_scale = LevelScale(len(levels))
        if end2end:
            for name in self._branch_names():
                setattr(self, f"one2one_{name}", copy.deepcopy(getattr(self, name)))
            if config.sce and not config.one2one_sce:
                plain = dataclasses.replace(config, sce=False)
                self.one2one_cls_skip = self.one2one_sce = None
                self.one2one_cv3 = cls_branch(plain, base, cls_width, nc)[-1] if _rebuilt(self.options) else stock_cls
            if config.quality == "filter3d":
                self.quality = None  # it silences duplicates, which one-to-many labels ask for

    def _branch_names(self) -> list[str]:
        """Names of the modules that an end-to-end head has twice."""
        return [n for n in ("cv2", "cv3", *CONTEXT) if getattr(self, n, None) is not None]

    @property
    def one2many(self) -> dict[str, Any]:
        """The one-to-many branches, as the keyword arguments of `forward_head`."""
        return self._branches("")

    @property
    def one2one(self) -> dict[str, Any]:
        """The one-to-one branches; an AttributeError without them, by which older hosts tell the two apart."""
        return self._branches("one2one_")

    def _branches(self, prefix: str) -> dict[str, Any]:
        modules = {key: getattr(self, prefix + key, None) for key in CONTEXT}
        return {"box_head": getattr(self, f"{prefix}cv2"), "cls_head": getattr(self, f"{prefix}cv3"), **modules}

    def forward_head(
        self,
        x: list[Tensor],
        box_head: nn.Module | None = None,
        cls_head: nn.Module | None = None,
        sce: SemanticContextEncoding | None = None,
        dpe: DetailPreservingEncoding | None = None,
        cls_skip: nn.ModuleList | None = None,
        quality: QualityBranch | None = None,
        box_scale: LevelScale | None = None,
        lqe: nn.ModuleList | None = None,
    ) -> dict[str, Any]:
        """Predict with one set of branches.

        Args:
            x: maps (B, C, H, W), finest first, the finer map (if any) before the predicted levels.
            box_head: towers of localisation; None (dropped by `fuse`) predicts nothing.
            cls_head: towers of classification; likewise.
            sce: context of classification, or None.
            dpe: context of localisation, or None.
            cls_skip: full-size logits per level, or None.
            quality: branch on the localisation towers, or None.
            box_scale: factor of each level's boxes, or None.
            lqe: logit per level from the localisation towers' features, or None.

        Returns:
            boxes (B, 4 reg_max, A) as distances in strides or their DFL logits, scores (B, nc, A) before the sigmoid,
            feats: the predicted levels, which give the host its anchor points and strides; with a quality branch also
            quality (B, 1, A) before the sigmoid.
        """
        if box_head is None or cls_head is None:
            return {}
        levels = list(x[-self.nl :])
        if not self.built:
            self._check_inputs(x)
        if dpe is not None:
            dpe.sum_first = bool(self.export) and self.format in SUM_FIRST
            if self.export:
                dpe.keep_kernels()
        detail = levels if dpe is None else dpe(levels, x[0] if self.finer else None)
        loc = [_features(box_head, g, i) for i, g in enumerate(detail)]
        box_maps = [_for_level(box_head, i)[-1](g) for i, g in enumerate(loc)]
        if box_scale is not None:
            box_maps = [box_scale(b, i) for i, b in enumerate(box_maps)]
        boxes, estimate = _flat(box_maps), None
        if self.lqe_in_boxes:
            boxes, estimate = boxes.split([4 * self.reg_max, 1], 1)
        elif lqe is not None:
            estimate = _flat(_for_level(lqe, i)(g) for i, g in enumerate(loc))
        preds: dict[str, Any] = {"boxes": boxes, "feats": levels}
        if quality is not None:
            preds["quality"] = quality(loc)
        base = detail if self.dpe_neck else levels
        sem = base if sce is None else sce(base)
        scores = [_for_level(cls_head, i)[-1](_features(cls_head, g, i)) for i, g in enumerate(sem)]
        for i in sce.at if sce is not None else ():
            if cls_skip is not None:
                scores[i] = add_quadrants(cls_skip[i](base[i]), scores[i])
            else:
                scores[i] = rearrange_quadrants(scores[i], levels[i])
        flat = _flat(scores)
        return {**preds, "scores": flat if estimate is None else add(flat, estimate)}

    def _inference(self, x: dict[str, Any]) -> Tensor:
        """As the host's, (B, 4 + nc, A) boxes and scores, with the quality folded into the scores."""
        if "quality" in x and self.score != "p":
            # The host takes the sigmoid of these, so they are the logits of p q or of its root.
            log_pq = nn.functional.logsigmoid(x["scores"].float()) + nn.functional.logsigmoid(x["quality"].float())
            log_s = log_pq * (0.5 if self.score == "sqrt_pq" else 1.0)
            x = {**x, "scores": (log_s - torch.log1p(-log_s.exp().clamp(max=1 - 1e-6))).to(x["scores"].dtype)}
        if isinstance(self.dfl, Integral):  # no bins, nothing to sum up
            self.dfl.in_place = bool(self.export) and self.format in IN_PLACE
        return super()._inference(x)

    def _check_inputs(self, x: list[Tensor]) -> None:
        """Raise ValueError unless the inputs are consecutive levels of one pyramid."""
        expected = self.nl + self.finer
        if len(x) != expected:
            raise ValueError(f"TSCODEDetect: expected {expected} input maps, got {len(x)}")
        sizes = [tuple(t.shape[-2:]) for t in x]
        for i, (below, above) in enumerate(itertools.pairwise(sizes)):
            if above != tuple((n + 1) // 2 for n in below):
                raise ValueError(
                    f"TSCODEDetect: inputs must be consecutive levels, each half the size of the one before; input {i} "
                    f"is {below[0]}x{below[1]} and input {i + 1} is {above[0]}x{above[1]}. Check the layer numbers in "
                    "the `from` column of the head's row"
                )

    def bias_init(self) -> None:
        """Set the predictors' biases to the priors: the host's (rare objects) or the options', for all 4 nc outputs.

        Called once by the host, after it has set the strides.
        """
        box_prior = self.options.get("box_prior")
        cls_prior, quality_prior = self.options.get("cls_prior"), self.options.get("quality_prior")
        boxes_start = box_start(box_prior, self.reg_max)
        for branch in [self.one2many] + ([self.one2one] if getattr(self, "one2one_cv2", None) is not None else []):
            for tower in branch["box_head"]:
                tower[-1].bias.data.copy_(boxes_start)
            cls_head = branch["cls_head"]
            for tower, stride in zip(cls_head, self.stride):
                hosts = len(cls_head) == self.nl and cls_prior is None
                start = rare(self.nc, float(stride)) if hosts else logit(cls_prior or PRIOR)
                tower[-1].bias.data.fill_(start)
            for predictor in branch["quality"].predictors if branch["quality"] is not None else ():
                predictor.bias.data.fill_(logit(quality_prior or 0.5))
        self.built = True

    def class_convs(self) -> dict[str, nn.Conv2d]:
        """The convs whose outputs are class logits, by their name in this head.

        Their rows are class-major: class c owns rows [c k, (c + 1) k) with k = out_channels / nc (4 under SCE, else 1).
        """
        found = {}
        for name in ("cv3", "one2one_cv3", "cls_skip", "one2one_cls_skip"):
            for i, branch in enumerate(getattr(self, name, None) or ()):
                if not isinstance(branch, nn.Identity):  # a level without SCE
                    found[f"{name}.{i}.{len(branch) - 1}"] = branch[-1]
        return found

    def refresh_kernels(self) -> None:
        """Make what a fused head keeps beside its weights anew, after others were written into them."""
        for name in ("dpe", "one2one_dpe"):
            if (dpe := getattr(self, name, None)) is not None:
                dpe.refresh_kernels()

    def stock_units(self) -> dict[str, str]:
        """Classification towers in the place of a stock one, by name in this head: the stock head's name of each.

        They take the width of the weights they start from, which depends on those weights' classes. Whether they are
        built as the stock head's is seen when the two are compared. SCE's logits are added to those of cls_skip, so
        there cls_skip is what the stock head has.
        """
        units: dict[str, str] = {}
        for prefix in ("", "one2one_") if not _rebuilt(self.options) else ():
            sce, skip = (getattr(self, f"{prefix}{name}", None) for name in ("sce", "cls_skip"))
            for i in range(len(getattr(self, f"{prefix}cv3", None) or ())):
                if sce is not None and i in sce.at:
                    if skip is not None:
                        units[f"{prefix}cls_skip.{i}"] = f"{prefix}cv3.{i}"
                elif sce is None or self.options["cls_width"] == 1.0:
                    units[f"{prefix}cv3.{i}"] = f"{prefix}cv3.{i}"
        return units

    def fuse(self) -> None:
        """Drop the branches inference does not use, and fold what the host does not fold itself."""
        super().fuse()
        if self.cv2 is None:
            self.sce = self.dpe = self.cls_skip = self.quality = self.box_scale = self.lqe = None
        for prefix in ("", "one2one_"):
            lqe = getattr(self, f"{prefix}lqe", None)
            if lqe is not None and getattr(self, f"{prefix}box_scale", None) is None:  # which is for boxes alone
                for tower, estimate in zip(getattr(self, f"{prefix}cv2"), lqe):
                    tower[-1] = with_row(tower[-1], estimate)
                setattr(self, f"{prefix}lqe", None)
                self.lqe_in_boxes = True
        for module in list(self.modules()):
            if isinstance(module, (LevelConv, DownOfSum)):
                module.fuse()

    def register_forward_pre_hook(self, hook: Callable[..., Any], **kwargs: Any) -> RemovableHandle:
        """As `torch.nn.Module`'s, but the hook sees the predicted levels only.

        The host's hooks (ReID features, ``visualize=True``) index the inputs by anchor point, for which the finer map
        has none.
        """
        if not self.finer:
            return super().register_forward_pre_hook(hook, **kwargs)

        def levels_only(module: nn.Module, args: tuple, *keywords: dict[str, Any]) -> Any:
            levels = list(args[0][-self.nl :])
            result = hook(module, (levels, *args[1:]), *keywords)
            if result is None:
                return None
            if keywords:  # with_kwargs=True: such a hook returns (args, kwargs)
                return ([args[0][0], *result[0][0]], *result[0][1:]), result[1]
            result = result if isinstance(result, tuple) else (result,)
            return ([args[0][0], *result[0]], *result[1:])

        return super().register_forward_pre_hook(levels_only, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "schema": SCHEMA}

    def __setstate__(self, state: dict[str, Any]) -> None:
        schema = state.get("schema", SCHEMA)
        if schema > SCHEMA:
            raise RuntimeError(
                f"this checkpoint's TSCODE head has schema {schema}; the installed tscode_yolo knows up to {SCHEMA}. "
                f"Update it: {how_to_install()}"
            )
        super().__setstate__(state)
        self.options = completed(self.options)
        if type(self.dfl) is DFL:
            self.dfl = in_order(self.dfl)

    def extra_repr(self) -> str:
        """Classes, predicted levels, and the options that differ from the defaults."""
        default = HeadConfig.from_mapping().as_dict()
        return ", ".join(
            [f"nc={self.nc}", f"levels={self.nl}", *(f"{k}={v}" for k, v in self.options.items() if v != default[k])]
        )


def _rebuilt(options: Mapping[str, Any]) -> bool:
    """Whether options other than SCE change the stock head's classification branch."""
    return any(options.get(name) for name in ("share_towers", "dcn", "dpe_neck"))


def _for_level(modules: Any, level: int) -> Any:
    """The level's own module, or the one that all levels share."""
    return modules[level if len(modules) > 1 else 0]


def _features(towers: Any, x: Tensor, level: int) -> Tensor:
    """What the level's tower gives its predictor: (B, C, H, W)."""
    for block in list(_for_level(towers, level))[:-1]:
        x = run_level(block, x, level)
    return x


def _flat(maps: Iterable[Tensor]) -> Tensor:
    """L maps (B, C, H_l, W_l) to (B, C, A), A anchor points of all levels, finest first."""
    return torch.cat([m.flatten(2) for m in maps], -1)
