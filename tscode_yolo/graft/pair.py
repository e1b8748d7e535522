"""One body, two heads: the teacher's backbone and neck feed the teacher's own head and a TSCODE head side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect

from tscode_yolo.head import TSCODEDetect
from tscode_yolo.transfer import Account


class Pair:
    """A trained stock model and a TSCODE model with the same body.

    Attributes:
        teacher: the stock head; frozen, its norms in evaluation mode.
        student: the TSCODE head, in training mode.
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
        self._check_heads()
        model.names = dict(teacher.names)
        self.account: Account = model.load(teacher, verbose=False)  # the plug-in's, as one head is ours
        if left := self.account.left:
            raise ValueError(
                f"weights= and model= have different backbones or necks: {len(left)} tensors do not fit, first "
                f"{left[0]}. Take the same family and scale, e.g. weights=yolo11n.pt model=yolo11n-tscode.yaml"
            )
        self.body = _without_head(model).eval().requires_grad_(False)
        self.teacher.eval().requires_grad_(False)
        self.teacher.training = True  # of the head itself only: it then returns what its predictors say
        self.student.train().requires_grad_(True)

    def _check_heads(self) -> None:
        teacher, student = self.teacher, self.student
        if not isinstance(teacher, Detect) or isinstance(teacher, TSCODEDetect):
            raise ValueError(
                f"weights=: expected a stock detection model, got one with a {type(teacher).__name__} head"
            )
        if not isinstance(student, TSCODEDetect):
            raise ValueError(f"model=: expected a YAML with a TSCODEDetect head, got {type(student).__name__}")
        if student.quality is not None:
            raise ValueError(
                "model=: its head has a quality branch, for which a stock head has no counterpart to fit; "
                "choose a recipe without one"
            )
        for what, mine, theirs in (
            ("levels", student.nl, teacher.nl),
            ("DFL bins (reg_max)", student.reg_max, teacher.reg_max),
        ):
            if mine != theirs:
                raise ValueError(f"model=: expected {theirs} {what} as in weights=, got {mine}")
        if _twins(teacher) != _twins(student):
            raise ValueError(
                "weights= and model= must both be end-to-end or both not: "
                f"weights {_described(teacher)}, model {_described(student)}"
            )

    def predict(self, images: Tensor) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Raw predictions (teacher's, student's) of each branch: one, or two of an end-to-end head.

        Args:
            images: (B, 3, H, W), 0 to 1.

        Returns:
            Dicts with boxes (B, 4 reg_max, A) and scores (B, nc, A) before softmax and sigmoid.
        """
        with torch.no_grad():
            maps = self.body(images)
            told = self.teacher(list(maps[self.student.finer :]))
        said = self.student(list(maps))
        if "boxes" in told:
            return [(told, said)]
        return [(told[branch], said[branch]) for branch in ("one2many", "one2one")]


class _Maps(nn.Module):
    """Stands for the head and returns what reaches it."""

    def __init__(self, head: Any):
        super().__init__()
        # What the host's graph walk reads of a layer; `type` is its name in messages.
        for name in ("f", "i", "type"):
            setattr(self, name, getattr(head, name))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps (B, C, H, W) as they come."""
        return list(maps)


def _without_head(model: Any) -> Any:
    """A view of the model that shares its tensors and ends in what reaches the head."""
    view = copy.copy(model)
    view._modules = {**model._modules, "model": nn.Sequential(*model.model[:-1], _Maps(model.model[-1]))}
    return view


def _twins(head: Any) -> bool:
    return getattr(head, "one2one_cv2", None) is not None


def _described(head: Any) -> str:
    return "end-to-end" if _twins(head) else "not end-to-end"
