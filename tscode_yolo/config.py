"""The switches of the head: one frozen dataclass, read from the model YAML.

Options come from the mapping at the end of the head's row, ``[nc, {sce_kernel: 5}]``, and from a top-level mapping
``tscode: {...}`` of the model YAML; the row wins. `preset` chooses the values that are not named.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_TIMES = 16.0  # largest multiple of the stock width
NAME, FPN = "TSCODEDetect", "TorchvisionFPN"  # in the model YAMLs
SCHEMA = 1  # raised when a checkpoint's head can no longer be rebuilt by an older package

CHOICES: dict[str, tuple[Any, ...]] = {
    "sce_down": ("conv", "avg", "max"),
    "sce_kernel": (3, 5, 7),
    "cls_kernel": (3, 5, 7),
    "sce_skip": ("none", "light", "tower", "dense"),
    "dpe_up": ("nearest", "bilinear"),
    "down_conv": ("dense", "separable", "linear"),
    "cls_conv": ("dense", "separable"),
    "box_conv": ("dense", "separable"),
    "norm": ("bn", "gn"),
    "act": ("silu", "relu"),
    "pred_kernel": (1, 3),
    "quality": ("none", "centerness", "iou", "objectness", "filter3d", "tprob"),
    "score": ("p", "pq", "sqrt_pq"),
}

PRESETS: dict[str, dict[str, Any]] = {
    "yolo": {},
    # What the shipped YAMLs of two families have besides, so that another preset named in its place leaves none of it.
    "yolov8": {"sce_skip": "dense"},  # its own classification tower is of dense convs
    # Its one-to-one branch learns better without SCE; C2 took it above the stock model's latency for no measurable AP.
    "yolo26": {"sce": False, "dpe_levels": (0, 1)},
    # The stock head and DPE's terms, which start as nothing: all stock weights move, and it starts as the stock model.
    "stock": {"sce": False, "sce_at": None, "dpe_at": None, "dpe_width": None, "box_depth": 2},
    # Section 3, Tables 1-3: 256-channel pyramid, everything shared over levels, GroupNorm, towers 2 x 512 and 4 x 256.
    "paper": {
        "sce_at": None,
        "dpe_at": None,
        "lqe": False,
        "one2one_sce": True,
        "sce_skip": "none",
        "sce_width": 256,
        "dpe_width": 256,
        "down_conv": "dense",
        "cls_conv": "dense",
        "cls_width": 512,
        "cls_depth": 2,
        "box_width": 256,
        "box_depth": 4,
        "box_conv": "dense",
        "share_down": True,
        "share_towers": True,
        "norm": "gn",
        "act": "relu",
        "level_scale": True,
        "pred_kernel": 3,
    },
}

# A switch, the options of its context, those of its tower, and what has that tower built without the context too.
IDLE_WITHOUT = (
    (
        "sce",
        ("sce_at", "sce_down", "sce_kernel", "sce_coarser", "sce_width", "sce_skip", "one2one_sce"),
        ("cls_conv", "cls_width", "cls_depth", "cls_kernel"),
        ("share_towers", "dcn", "dpe_neck"),
    ),
    (
        "dpe",
        ("dpe_at", "dpe_levels", "dpe_up"),
        ("box_conv", "box_width", "box_depth", "dpe_width"),
        ("share_towers", "dcn"),
    ),
)
IDLE_WITHOUT_BOTH = ("norm", "act", "pred_kernel", "tower_bias", "share_down", "down_conv")


@dataclass(frozen=True)
class HeadConfig:
    """Options of `tscode_yolo.head.TSCODEDetect`.

    The fields' defaults are those before any preset; `from_mapping`, which reads YAMLs, starts from preset ``yolo``.

    A width is an int (channels), a float (a multiple of the stock head's width of that branch; for classification of
    the finest level's channels, since the stock width depends on the number of classes) or None (the level's own
    channels; the stock width for towers).

    Attributes:
        finer: the first input is a finer map (C2, half the stride of the first level), read by DPE only.
        sce: give classification the Semantic Context Encoding, Eq. 3 and 4; off: the plain P_l.
        dpe: give localisation the Detail-Preserving Encoding, Eq. 5; off: the plain P_l.
        sce_at: predicted levels that get SCE, 0 for the finest; None: all. At the others the tower reads the plain P_l.
        dpe_at: likewise for DPE.
        sce_down: how SCE halves P_l, Table 2.
        sce_kernel: kernel of that step, Table 2.
        sce_coarser: concatenate P_{l+1}, Table 2.
        sce_width: channels of each map that SCE concatenates.
        sce_skip: add logits from P_l itself to those rearranged from half size: none, of a light path (depthwise 3x3,
            1x1), or of a tower like the stock head's, as wide as `cls_width: 1.0` says: of two separable convs (tower,
            as in YOLO11 and later) or of two dense ones (dense, as in YOLOv8). Not in the paper.
        lqe: localisation quality estimate: add to all class logits of an anchor point one number that a 1x1 conv reads
            from its localisation tower. Not in the paper (D-FINE, arXiv:2410.13842, adds such an estimate to its logits
            too); docs/search.md has what it brought. None: with SCE and the host's own loss.
        one2one_sce: in an end-to-end head, give SCE to the one-to-one classification too; off: the plain P_l, as the
            stock head's. One of four neighbours that share a feature is to stay alone, which SCE learns badly:
            docs/search.md has the numbers.
        dpe_levels: offsets of the levels DPE adds up, among -1 (P_{l-1}), 0, 1 and 2, Table 3.
        dpe_width: channels of the sum.
        dpe_up: how DPE makes a map larger; with bilinear the sum with P_{l-1} is made at that map's size.
        dpe_neck: both branches start from DPE's output, Table 6: a feature fusion, no decoupling.
        down_conv: the stride-2 convs: dense, depthwise-separable, or linear, i.e. separable with neither norm nor
            activation between the two convs.
        cls_conv: dense or depthwise-separable convs in the classification tower.
        cls_width: channels of the classification tower.
        cls_depth: convs of the classification tower before its predictor.
        cls_kernel: kernel of these convs, and of sce_skip's tower; large ones are cheap where they are separable.
        box_conv: as cls_conv, for localisation.
        box_width: as cls_width, for localisation.
        box_depth: as cls_depth, for localisation.
        share_down: one stride-2 conv for all levels (each branch its own), with one norm per level.
        share_towers: one tower for all levels, with one norm per level.
        tower_bias: give the towers' convs a bias although a norm follows, as FCOS does.
        norm: BatchNorm, or GroupNorm with 32 groups as in the paper.
        act: activation after each norm: the host's SiLU, or ReLU as in the paper.
        dcn: make the last conv of each tower, before its predictor, deformable, Table 5.
        level_scale: multiply each level's box output by a learned number of its own, as FCOS, ATSS and GFL do.
        pred_kernel: kernel of the two predictors.
        quality: add a one-channel prediction of the box's quality to the localisation tower.
        score: how class probability p and quality q make the score: p, p q or sqrt(p q).
        cls_prior: probability of a class at the start; None: the host's rare objects (0.01 with share_towers).
        quality_prior: the same of the quality branch; None: one half.
        box_prior: distance to each side at the start in strides; infinity: the host's start (with DFL uniform, half its
            range, which no value exceeds); None: what the recipe publishes, else 2.
        recipe: how to train: "ultralytics" (the host's own loss), the name of a recipe, or {name: atss, topk: 11, ...}
            with other hyper-parameters. A recipe sets quality, score and the priors.
    """

    finer: bool = False
    sce: bool = True
    dpe: bool = True
    # Where objects are smallest: on the coarser levels too contexts cost time, for less than seeds tell apart.
    sce_at: tuple[int, ...] | None = (0,)
    dpe_at: tuple[int, ...] | None = (0,)
    sce_down: str = "conv"
    sce_kernel: int = 3
    sce_coarser: bool = True
    sce_width: int | float | None = 0.5
    sce_skip: str = "tower"
    lqe: bool | None = None
    one2one_sce: bool = False
    dpe_levels: tuple[int, ...] = (-1, 0, 1)
    dpe_width: int | float | None = 1.0
    dpe_up: str = "nearest"
    dpe_neck: bool = False
    down_conv: str = "linear"
    cls_conv: str = "separable"
    cls_width: int | float | None = 1.0
    cls_depth: int = 1
    cls_kernel: int = 3
    box_conv: str = "dense"
    box_width: int | float | None = None
    box_depth: int = 1
    share_down: bool = False
    share_towers: bool = False
    tower_bias: bool = False
    norm: str = "bn"
    act: str = "silu"
    dcn: bool = False
    level_scale: bool = False
    pred_kernel: int = 1
    quality: str = "none"
    score: str = "p"
    cls_prior: float | None = None
    quality_prior: float | None = None
    box_prior: float | None = None
    recipe: str | dict[str, Any] = "ultralytics"

    def __post_init__(self) -> None:
        """Validate values.

        Raises:
            ValueError: a value of the wrong type or outside its choices.
        """
        for field in dataclasses.fields(self):
            _check_type(field.name, str(field.type), getattr(self, field.name))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"tscode option {name}={getattr(self, name)!r}: expected one of {list(allowed)}")
        for name in ("dpe_levels", "sce_at", "dpe_at"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        for name in ("sce_at", "dpe_at"):
            self._check_at(name)
        if isinstance(self.recipe, dict) and set(self.recipe) == {"name"}:
            object.__setattr__(self, "recipe", self.recipe["name"])
        if self.lqe is None:  # settled here, so that a checkpoint says what it was built with
            object.__setattr__(self, "lqe", self.sce and self.recipe == "ultralytics")
        if not {*self.dpe_levels} <= {-1, 0, 1, 2} or not {*self.dpe_levels} & {-1, 0}:
            raise ValueError(
                f"tscode option dpe_levels={list(self.dpe_levels)}: expected offsets among [-1, 0, 1, 2], with -1 or 0 "
                "among them (the coarsest level has no others)"
            )
        if self.dpe_neck and not self.dpe:
            raise ValueError("tscode option dpe_neck=True needs the encoding it hands on; set dpe: true")
        for name in ("cls_prior", "quality_prior"):
            if (getattr(self, name) or 0) >= 1:
                raise ValueError(f"tscode option {name}={getattr(self, name)}: expected a probability below 1")
        if self.score != "p" and self.quality == "none":
            raise ValueError(f"tscode option score={self.score!r} needs a quality branch; set quality, e.g. centerness")

    def _check_at(self, name: str) -> None:
        """Raise ValueError unless the levels of `sce_at` or `dpe_at` can be told apart from the others."""
        at = getattr(self, name)
        if at is None:
            return
        if not at or min(at) < 0:
            switch = name.removesuffix("_at")
            raise ValueError(
                f"tscode option {name}={list(at)}: expected numbers of predicted levels, 0 for the finest, e.g. [0]; "
                f"for none of them set {switch}: false"
            )
        if self.share_down or self.share_towers:
            raise ValueError(
                f"tscode option {name}={list(at)}: what is shared over levels (share_down, share_towers) is on all of "
                f"them; set {name}: null"
            )

    @classmethod
    def from_mapping(cls, *mappings: Mapping[str, Any] | None) -> HeadConfig:
        """Merge option mappings, the last one winning, over the preset they name (default ``yolo``).

        Raises:
            ValueError: something that is no mapping; an unknown option (the closest valid one is named), preset or
                value.
        """
        given: dict[str, Any] = {}
        for mapping in mappings:
            if mapping is not None and not isinstance(mapping, Mapping):
                raise ValueError(f"tscode options: expected a mapping like {{sce: true}}, got {mapping!r}")
            given.update(mapping or {})
        preset = given.pop("preset", "yolo")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"tscode option preset={preset!r}: expected one of {list(PRESETS)}")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(unknown_name("tscode option", str(name), [*known, "preset"]))
        values = {**PRESETS[preset], **given}
        if given.get("share_down") or given.get("share_towers"):  # over all levels
            values = {"sce_at": None, "dpe_at": None, **values}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)

    def idle(self, given: Mapping[str, Any], end2end: bool = True) -> str:
        """What somebody should know whose options do nothing here, or nothing (an empty text).

        Args:
            given: options as they were written. With all of them, as a checkpoint keeps them, none was asked for.
            end2end: whether the model's head is end-to-end, with a one-to-one branch.
        """
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        if set(fields) <= set(given):
            return ""
        off = []
        for switch, its_own, of_its_tower, rebuilt_by in IDLE_WITHOUT:
            if not getattr(self, switch):
                rebuilt = any(getattr(self, name) for name in rebuilt_by)
                idle = [n for n in (*its_own, *(() if rebuilt else of_its_tower)) if n in given]
                idle = [n for n in idle if getattr(self, n) != fields[n]]
                off += [f"{', '.join(idle)} (of a head with {switch}: true)"] if idle else []
        if not (self.sce or self.dpe or self.share_towers or self.dcn or self.dpe_neck):
            idle = [n for n in IDLE_WITHOUT_BOTH if n in given and getattr(self, n) != fields[n]]
            off += [f"{', '.join(idle)} (of a head with sce: true or dpe: true)"] if idle else []
        elif not (self.sce and self.sce_down == "conv") and not (self.dpe and self._reads_finer()):
            given_idly = "down_conv" in given and self.down_conv != fields["down_conv"]
            off += ["down_conv (of a head that halves a map by a conv)"] if given_idly else []
        if self.dpe and self.dpe_up != fields["dpe_up"] and "dpe_up" in given and not self._makes_larger():
            off += ["dpe_up (of a head that adds a map to a larger one)"]
        if self.sce and self.one2one_sce and "one2one_sce" in given and not end2end:
            off += ["one2one_sce (of a model with end2end: true)"]
        return f"tscode options without effect: {'; '.join(off)}" if off else ""

    def _reads_finer(self) -> bool:
        """Whether a level that DPE encodes has a P_{l-1} that it reads."""
        has_finer = self.finer or self.dpe_at is None or max(self.dpe_at) > 0
        return -1 in self.dpe_levels and has_finer

    def _makes_larger(self) -> bool:
        """Whether DPE adds up maps of two sizes: P_{l+1} or P_{l+2} to others, or P_l to P_{l-1}."""
        return len(self.dpe_levels) > 1 and (max(self.dpe_levels) > 0 or self._reads_finer())

    def as_dict(self) -> dict[str, Any]:
        """All options as plain Python values: what a checkpoint keeps, and what `from_mapping` takes back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def _check_type(name: str, annotation: str, value: object) -> None:
    """Raise ValueError unless `value` is what the dataclass field says."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    ok, expected = {
        "bool": (isinstance(value, bool), "true or false"),
        "bool | None": (value is None or isinstance(value, bool), "true, false or null"),
        "str": (isinstance(value, str), "a name"),
        "int": (isinstance(value, int) and not isinstance(value, bool) and value >= 1, "a whole number >= 1"),
        "int | float | None": (
            value is None or (is_number and _is_width(value)),  # type: ignore[arg-type]
            f"channels (int >= 8), a multiple of the stock width (float, e.g. 1.0, at most {MOST_TIMES:g}) or null",
        ),
        "float | None": (value is None or (is_number and value > 0), "a number > 0 or null"),  # type: ignore[operator]
        "str | dict[str, Any]": (
            isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("name"), str)),
            "a name, or a mapping like {name: atss, topk: 11}",
        ),
        "tuple[int, ...]": (_is_whole_numbers(value), "a list of whole numbers"),
        "tuple[int, ...] | None": (value is None or _is_whole_numbers(value), "a list of whole numbers or null"),
    }[annotation]
    if not ok:
        came = list(value) if isinstance(value, tuple) else value  # as it was written
        raise ValueError(f"tscode option {name}={came!r}: expected {expected}")


def _is_width(value: int | float) -> bool:
    """Channels as an int, or a multiple: 256.0 was meant as channels."""
    return value >= 8 if isinstance(value, int) else 0 < value <= MOST_TIMES


def _is_whole_numbers(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Message for a name nobody knows: the closest valid one, then all of them."""
    spelt = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(spelt), n=1, cutoff=0.5)
    hint = f"; did you mean '{spelt[close[0]]}'?" if close else "."
    return f"unknown {kind} '{name}'{hint} Valid: {', '.join(known)}"


def how_to_install(extra: str = "") -> str:
    """Sentence's end: what to run to install or update this package, which is not on PyPI, with one of its extras."""
    what = f"'.[{extra}]'" if extra else "."
    return f"in a clone of tscode-yolo, pip install {what}"


def completed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a checkpoint keeps them, with those that it is too old to have: such heads encode all levels."""
    return {"sce_at": None, "dpe_at": None, **options}
