"""The arithmetic of parity: raw outputs side by side, and detections paired after NMS. Knows nothing of formats."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

MATCH_IOU = 0.99  # what "the same box" means after NMS
SCORE_IN_PIXELS = (
    100.0  # when pairing: a score off by 1e-3 weighs as much as a side off by 0.1 px, as the tolerances do
)
MOST = 300  # detections an image, by NMS and by the top-k of an end-to-end head alike (the host's max_det)
NO_PAIR = 1e9  # above what all true pairs of an image may differ by together


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

    As many pairs as possible, those that differ least, for an end-to-end head may find an object twice. How much the
    pairs differ is kept: IoU above 0.99 lets a large box move by pixels, and says nothing of scores.

    A detection whose score is within `score` of the threshold may be there in one model and not in the other without
    either being wrong, and so may one that is not above the least of the other model's by more, where that found
    `MOST` and had no room; such ones count as borderline when they find no partner, not as unmatched.

    Attributes:
        conf: the threshold of both.
        score: how far two scores may differ.
    """

    def __init__(self, conf: float, score: float) -> None:
        self.conf, self.score = conf, score
        self.counts = {"reference": 0, "exported": 0, "matched": 0, "borderline": 0, "unmatched": 0}
        self._boxes: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, reference: Tensor, exported: Tensor) -> None:
        """Pair one image's detections, (N, 6) and (M, 6) of xyxy, score, class."""
        sides = (reference[:, None, :4] - exported[None, :, :4]).abs()  # [N, M, 4]
        scores = (reference[:, None, 4] - exported[None, :, 4]).abs()  # [N, M]
        same = (box_iou(reference[:, :4], exported[:, :4]) > MATCH_IOU) & (
            reference[:, None, 5] == exported[None, :, 5]
        )
        cost = torch.where(same, sides.amax(2) + SCORE_IN_PIXELS * scores, NO_PAIR)
        rows, columns = (torch.from_numpy(i) for i in linear_sum_assignment(cost.numpy()))
        paired = same[rows, columns]
        rows, columns = rows[paired], columns[paired]
        self._boxes.append(sides[rows, columns].flatten())
        self._scores.append(scores[rows, columns])
        alone = _without(reference, rows)[:, 4], _without(exported, columns)[:, 4]
        borderline = sum(
            int((mine <= self._least(others) + self.score).sum())
            for mine, others in zip(alone, (exported, reference), strict=True)
        )
        self.counts["reference"] += len(reference)
        self.counts["exported"] += len(exported)
        self.counts["matched"] += len(rows)
        self.counts["borderline"] += borderline
        self.counts["unmatched"] += sum(map(len, alone)) - borderline

    def _least(self, detections: Tensor) -> float:
        """Score that a detection needed to be among these (N, 6): the threshold, or more where there was no room."""
        return self.conf if len(detections) < MOST else float(detections[:, 4].min())

    def summary(self) -> dict[str, Any]:
        """The counts."""
        return dict(self.counts)

    def differences(self) -> dict[str, dict[str, float]] | None:
        """``boxes`` (sides, pixels) and ``scores`` of the pairs, as `Differences.summary`; None without pairs."""
        if not self.counts["matched"]:
            return None
        return {"boxes": _describe(self._boxes), "scores": _describe(self._scores)}


def _without(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows but for those at `indices`."""
    keep = torch.ones(len(rows), dtype=torch.bool)
    keep[indices] = False
    return rows[keep]
