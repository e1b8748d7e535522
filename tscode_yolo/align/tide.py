"""TIDE: why each wrong detection is wrong, and what average precision each kind of error costs.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", arXiv:2008.08115, section 2; behaviour
in corner cases read in tidecv 1.0.1 and tidecv-light 1.0.2 (MIT). At IoU 0.5 (found) and 0.1 (background) a false
positive is, in this order: localisation, classification, duplicate, background, both. A ground truth that no
classification or localisation error points at is missed. Each cost is AP50 with that kind repaired minus AP50.
Differs from tidecv: classes without ground truth are left out of the mean, as COCO does; tidecv gives them 0 when they
have predictions. Detections in crowd regions are no errors. By size (tidecv has none): the same repairs, the gain read
on COCO's size range, where objects of other sizes are ignored; a repaired detection counts in the size of its object.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.match import ABOUT_IOU, FOUND_IOU, Matches, pairwise_iou


class Kind(IntEnum):
    """What a detection is to TIDE; MISSED belongs to ground truths."""

    CORRECT = 0
    CLASSIFICATION = 1
    LOCALISATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    IGNORED = 6
    MISSED = 7


ERRORS = (Kind.CLASSIFICATION, Kind.LOCALISATION, Kind.BOTH, Kind.DUPLICATE, Kind.BACKGROUND, Kind.MISSED)


def diagnose(
    boxes: np.ndarray, cls: np.ndarray, matches: Matches, objects: Objects
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give every detection of one image its kind.

    Args:
        boxes: (D, 4) xyxy in original pixels, best score first.
        cls: (D,) class.
        matches: from :func:`match.match`.
        objects: G annotations.

    Returns:
        (D,) kinds; (D,) annotation the detection would find once repaired, -1 if repairing removes it;
        (G,) bool missed; (G,) bool without a true positive at 0.5.
    """
    counted = np.flatnonzero(~objects.ignore)
    tp, ignored = (matches.tp[:, 0] & 1).astype(bool), (matches.ignored[:, 0] & 1).astype(bool)
    kind = np.full(len(boxes), Kind.BACKGROUND)
    kind[tp], kind[ignored] = Kind.CORRECT, Kind.IGNORED
    repaired = np.full(len(boxes), -1)
    used = np.zeros(len(objects), bool)
    used[matches.gt[tp]] = True
    wrong = np.flatnonzero(~tp & ~ignored)
    aimed = np.zeros(len(objects), bool)
    if len(counted) and len(wrong):
        target = _classify(boxes, cls, wrong, counted, used, objects, kind)
        for d, g in zip(wrong, target, strict=True):  # best score first: the first aim at an object wins it
            if g >= 0 and not used[g] and not aimed[g]:
                aimed[g], repaired[d] = True, g
    unfound = ~used & ~objects.ignore
    return kind, repaired, unfound & ~aimed, unfound


def _classify(
    boxes: np.ndarray,
    cls: np.ndarray,
    wrong: np.ndarray,
    counted: np.ndarray,
    used: np.ndarray,
    objects: Objects,
    kind: np.ndarray,
) -> np.ndarray:
    """Write the kinds of the ``wrong`` detections; return the annotation each classification or box error aims at."""
    iou = pairwise_iou(boxes[wrong], objects.boxes[counted])  # [w, g]
    same = cls[wrong][:, None] == objects.labels[counted]
    right, other = np.where(same, iou, 0), np.where(same, 0, iou)
    best_right, best_other = right.max(1), other.max(1)
    loc = (best_right >= ABOUT_IOU) & (best_right <= FOUND_IOU)
    wrong_class = ~loc & (best_other >= FOUND_IOU)
    duplicate = ~loc & ~wrong_class & (np.where(used[counted], right, 0).max(1) >= FOUND_IOU)
    background = ~loc & ~wrong_class & ~duplicate & (iou.max(1) <= ABOUT_IOU)
    conditions = [loc, wrong_class, duplicate, background]
    kinds = [Kind.LOCALISATION, Kind.CLASSIFICATION, Kind.DUPLICATE, Kind.BACKGROUND]
    kind[wrong] = np.select(conditions, kinds, Kind.BOTH)
    return np.select([loc, wrong_class], [counted[right.argmax(1)], counted[other.argmax(1)]], -1)
