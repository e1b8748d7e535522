"""The arithmetic of parity: raw outputs side by side, and detections paired after NMS. Knows nothing of formats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

MATCH_IOU = 0.99  # what "the same box" means after NMS


class Differences:
    """Largest and median difference of boxes (pixels) and scores over all anchor points of all images seen."""

    def __init__(self) -> None:
        self._boxes: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, reference: Tensor, exported: Tensor) -> None:
        """Take in one pair of raw outputs.

        Args:
            reference: (B, 4 + nc, A), xywh in input pixels and scores.
            exported: the same from the exported model.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != exported.shape:
            raise ValueError(f"expected an output of shape {list(reference.shape)}, got {list(exported.shape)}")
        a, b = (t.detach().float().cpu().transpose(1, 2) for t in (reference, exported))  # [B, A, 4 + nc]
        self._boxes.append((xywh2xyxy(a[..., :4]) - xywh2xyxy(b[..., :4])).abs().flatten())
        self._scores.append((a[..., 4:] - b[..., 4:]).abs().flatten())

    def summary(self) -> dict[str, dict[str, float]] | None:
        """``boxes`` and ``scores``, each with ``max`` and ``median``; None if nothing was added. NaN counts as inf."""
        if not self._boxes:
            return None
        return {"boxes": _describe(self._boxes), "scores": _describe(self._scores)}


def _describe(parts: list[Tensor]) -> dict[str, float]:
    values = torch.cat(parts).nan_to_num(nan=torch.inf)
    return {"max": float(values.max()), "median": float(values.median())}


def suppress(raw: Tensor, conf: float, iou: float) -> list[Tensor]:
    """The host's NMS: raw (B, 4 + nc, A) to B tensors (N, 6) of xyxy, score, class."""
    return non_max_suppression(raw.float().cpu().clone(), conf, iou, max_time_img=60.0)


def confident(final: Tensor, conf: float) -> list[Tensor]:
    """Rows above `conf` of an output that has been through NMS or top-k already: (B, N, 6) to B tensors (n, 6)."""
    return [rows[rows[:, 4] > conf][:, :6] for rows in final.float().cpu()]


class Matches:
    """Detections of both models paired one to one: IoU above `MATCH_IOU` and the same class.

    A detection whose score is within `score` of the threshold may be there in one model and not in the other without
    either being wrong; such ones count as borderline when they find no partner, not as unmatched.

    Attributes:
        conf: the threshold of both.
        score: how far two scores may differ.
    """

    def __init__(self, conf: float, score: float) -> None:
        self.conf, self.score = conf, score
        self.counts = {"reference": 0, "exported": 0, "matched": 0, "borderline": 0, "unmatched": 0}

    def add(self, reference: Tensor, exported: Tensor) -> None:
        """Pair one image's detections, (N, 6) and (M, 6) of xyxy, score, class, best score first."""
        free = torch.ones(len(exported), dtype=torch.bool)
        alone: list[Tensor] = []
        for row in reference:
            iou = box_iou(row[None, :4], exported[:, :4])[0] if len(exported) else torch.zeros(0)
            iou = iou * (free & (exported[:, 5] == row[5]))
            if len(iou) and iou.max() > MATCH_IOU:
                free[iou.argmax()] = False
                self.counts["matched"] += 1
            else:
                alone.append(row)
        alone += list(exported[free])
        borderline = sum(abs(float(row[4]) - self.conf) <= self.score for row in alone)
        self.counts["reference"] += len(reference)
        self.counts["exported"] += len(exported)
        self.counts["borderline"] += borderline
        self.counts["unmatched"] += len(alone) - borderline

    def summary(self) -> dict[str, Any]:
        """The counts."""
        return dict(self.counts)
