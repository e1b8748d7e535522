"""One body, two heads: the teacher's backbone and neck feed the teacher's own head and a TSCODE head side by side.

While it is fitted, a bridge stands for each predictor of the TSCODE head: it ends in the features that the teacher's
predictor of that level reads, and the teacher's predictor, frozen, makes the scores and boxes of them. So what the
teacher's predictors know of classes that no image shows is kept, and the features can be compared (hints, FitNets,
arXiv:1412.6550). In the end a bridge and the predictor behind it are one linear map: the one conv the head has.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect, v10Detect

from tscode_yolo.head import TSCODEDetect
from tscode_yolo.transfer import Account

TASKS = {"boxes": ("cv2", ()), "scores": ("cv3", ("cls_skip",))}  # teacher's towers; what the student adds up to cv3's
SAME_FAMILY = "Take the same family and scale, e.g. weights=yolo11n.pt model=yolo11n-tscode.yaml"


@dataclass
class Predictions:
    """What two heads say of one task in one branch.

    Attributes:
        teacher: the teacher's raw predictions (B, K, A).
        student: the student's.
        teacher_features: per level, what the teacher's predictor reads: (B, D, H, W).
        student_features: likewise the student's.
    """

    teacher: Tensor
    student: Tensor
    teacher_features: list[Tensor]
    student_features: list[Tensor]


class Pair:
    """A trained stock model and a TSCODE model with the same body.

    Attributes:
        teacher: the stock head; frozen, in evaluation mode.
        student: the TSCODE head, in training mode, with bridges until `merge`.
        body: image (B, 3, H, W) to the maps that reach the TSCODE head, finest first; frozen.
        account: what moved from the teacher.
    """

    def __init__(self, teacher: Any, model: Any):
        """Move what fits, check that the rest can be fitted, and take the two apart.

        Args:
            teacher: the host's DetectionModel with trained weights.
            model: one with a fresh TSCODE head; it gets the teacher's body and names.

        Raises:
            ValueError: other bodies, other outputs, or heads that graft cannot handle.
        """
        self.teacher, self.student = teacher.model[-1], model.model[-1]
        if teacher.is_fused():
            raise ValueError("weights=: the weights are fused for inference; give the checkpoint that training wrote")
        _check(self.teacher, self.student)
        model.names = dict(teacher.names)
        self.account: Account = model.load(teacher, verbose=False)  # the plug-in's, as one head is ours
        if left := self.account.left:
            raise ValueError(
                f"weights= and model= have different backbones or necks: {len(left)} tensors do not fit, first "
                f"{left[0]}. {SAME_FAMILY}"
            )
        self.body = _ending_in_maps(model).eval().requires_grad_(False)
        self.teacher.eval().requires_grad_(False)
        self.student.train().requires_grad_(True)
        self.prefixes = ("", "one2one_") if _twins(self.teacher) else ("",)
        for unit, (tower, predictor, has_bias) in self._towers().items():
            moved = self.account.head[unit].startswith("moved")
            tower[-1] = _bridge(tower[-1], predictor, has_bias, moved)

    def _towers(self) -> dict[str, tuple[Any, nn.Conv2d, bool]]:
        """The student's towers by name, the teacher's predictor each is to reach, and whether its bias counts."""
        found = {}
        for prefix in self.prefixes:
            for towers, others in TASKS.values():
                for name in (towers, *others):
                    for i, tower in enumerate(getattr(self.student, prefix + name, None) or ()):
                        if isinstance(tower, nn.Identity):  # a level without SCE
                            continue
                        found[f"{prefix}{name}.{i}"] = (
                            tower,
                            getattr(self.teacher, prefix + towers)[i][-1],
                            name == towers,
                        )
        return found

    def predict(self, images: Tensor) -> list[dict[str, Predictions]]:
        """What the two heads say of each task: one entry, or one each for the two branches of an end-to-end head.

        Args:
            images: (B, 3, H, W), 0 to 1.
        """
        with torch.no_grad():
            maps = self.body(images)
        return [self._branch(prefix, list(maps)) for prefix in self.prefixes]

    def _branch(self, prefix: str, maps: list[Tensor]) -> dict[str, Predictions]:
        levels = maps[self.student.finer :]
        branches = dict(self.student.one2one if prefix else self.student.one2many)
        branches["lqe"] = None  # starts at zero and stays there: the stock head has no such term
        features = self.student.forward_head(maps, **branches)
        out = {}
        for task, (name, _) in TASKS.items():
            towers = getattr(self.teacher, prefix + name)
            with torch.no_grad():
                theirs = [tower[:-1](p) for tower, p in zip(towers, levels)]
            flat = features[task].split([p.shape[-2] * p.shape[-1] for p in levels], -1)
            ours = [f.unflatten(-1, p.shape[-2:]) for f, p in zip(flat, levels)]
            teacher, student = (
                torch.cat([tower[-1](f).flatten(2) for tower, f in zip(towers, side)], -1) for side in (theirs, ours)
            )
            out[task] = Predictions(teacher, student, theirs, ours)
        return out

    def merge(self) -> None:
        """Make one conv of each bridge and the teacher's predictor behind it; the head is whole again."""
        for tower, predictor, has_bias in self._towers().values():
            tower[-1] = _merged(tower[-1], predictor, has_bias)


def _check(teacher: Any, student: Any) -> None:
    """Raise ValueError unless the two heads can be fitted to each other."""
    if type(teacher) not in (Detect, v10Detect):  # Segment and its like are Detects too
        raise ValueError(f"weights=: expected a stock detection model, got one with a {type(teacher).__name__} head")
    if not isinstance(student, TSCODEDetect):
        raise ValueError(f"model=: expected a YAML with a TSCODEDetect head, got {type(student).__name__}")
    unfitted = [f"{prefix}{name}" for prefix in ("", "one2one_") for name in ("quality", "box_scale")]
    if any(getattr(student, name, None) is not None for name in unfitted):
        raise ValueError(
            "model=: its head has a quality branch or a scale per level, for which a stock head has no counterpart to "
            "fit; leave out the recipe or preset that asks for it"
        )
    if len(student.cv2) != student.nl or len(student.cv3) != student.nl:
        raise ValueError("model=: expected a tower per level as in the stock head, got share_towers; leave it out")
    for what, mine, theirs in (
        ("levels", student.nl, teacher.nl),
        ("DFL bins (reg_max)", student.reg_max, teacher.reg_max),
    ):
        if mine != theirs:
            raise ValueError(f"model=: expected {theirs} {what} as in weights=, got {mine}. {SAME_FAMILY}")
    if _twins(teacher) != _twins(student):
        raise ValueError(
            "weights= and model= must both be end-to-end or both not: "
            f"weights {_described(teacher)}, model {_described(student)}. {SAME_FAMILY}"
        )


def _bridge(own: nn.Conv2d, predictor: nn.Conv2d, has_bias: bool, moved: bool) -> nn.Conv2d:
    """The conv from the student's features to the teacher's: what the student's own does if it moved, or else fresh.

    The student's predictor has k rows for each of the teacher's (4 under SCE), so k bridges lie side by side, in the
    order in which Eq. 4 hands them out: channel d, place j is row d k + j.
    """
    k = own.out_channels // predictor.out_channels
    bridge = _conv_like(own, k * predictor.in_channels, has_bias)
    if moved:
        back = torch.linalg.pinv(predictor.weight.detach().flatten(1))  # (D, K)
        rows = own.weight.detach().unflatten(0, (-1, k))  # (K, k, C, h, w)
        bridge.weight.data.copy_(torch.einsum("do,okchw->dkchw", back, rows).flatten(0, 1))
    elif not own.weight.any():
        bridge.weight.data.zero_()  # SCE starts as nothing added
    if bridge.bias is not None:
        bridge.bias.data.zero_()  # the predictor behind has a bias of its own
    return bridge


def _merged(bridge: nn.Conv2d, predictor: nn.Conv2d, has_bias: bool) -> nn.Conv2d:
    """The conv that is `bridge` and then `predictor`."""
    k = bridge.out_channels // predictor.in_channels
    weight = predictor.weight.detach().flatten(1)  # (K, D)
    rows = bridge.weight.detach().unflatten(0, (-1, k))
    conv = _conv_like(bridge, k * len(weight), has_bias)
    conv.weight.data.copy_(torch.einsum("od,dkchw->okchw", weight, rows).flatten(0, 1))
    if conv.bias is not None:
        own, behind = (cast(Tensor, c.bias).detach() for c in (bridge, predictor))
        conv.bias.data.copy_((weight @ own.unflatten(0, (-1, k)) + behind[:, None]).flatten())
    return conv


def _conv_like(conv: Any, out_channels: int, bias: bool) -> nn.Conv2d:
    """A conv with another number of outputs."""
    new = nn.Conv2d(conv.in_channels, out_channels, conv.kernel_size, padding=conv.padding, bias=bias)
    return new.to(conv.weight)


class _Maps(nn.Module):
    """Stands for the head and returns what reaches it."""

    def __init__(self, head: Any):
        super().__init__()
        for name in ("f", "i", "type"):  # what the host's graph walk reads of a layer
            setattr(self, name, getattr(head, name))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps (B, C, H, W) as they come."""
        return list(maps)


def _ending_in_maps(model: Any) -> Any:
    """A view of the model that shares its tensors and ends in what reaches the head."""
    view = copy.copy(model)
    view._modules = {**model._modules, "model": nn.Sequential(*model.model[:-1], _Maps(model.model[-1]))}
    return view


def _twins(head: Any) -> bool:
    return getattr(head, "one2one_cv2", None) is not None


def _described(head: Any) -> str:
    return "end-to-end" if _twins(head) else "not end-to-end"
