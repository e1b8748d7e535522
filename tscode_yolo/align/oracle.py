"""What the average precision would be if one half of the head were perfect: the loss split into its two halves.

Every oracle changes the candidates *before* NMS and then runs the same NMS, limit and evaluation. O = the objects.

- aligned: among the boxes that find an object (IoU 0.5 or more) its own scores are dealt out again in the order of IoU.
  No score is invented and all other boxes stay as they are: only the disagreement of the two branches is removed. This
  is what TSCODE aims at.
- ranking: every score becomes the IoU with the best object of its class; boxes on no object vanish. The score branch
  is perfect (VarifocalNet, arXiv:2008.13367, Table 1, replaces scores by IoUs in the same way).
- localisation: every box that overlaps an object of its class by 0.1 or more becomes that object's box; scores stay.
- both: the two together; what is missing then was never proposed with the right class at all.

The loss 1 - AP is then shared out exactly: each half's part is the mean of its gain taken first and its gain taken
second (Shapley value of two players), and the rest is 1 - AP(both).
An end-to-end head has no NMS; its oracles use NMS, because a perfect score would have silenced the duplicates.
"""

from __future__ import annotations

import numpy as np

from tscode_yolo.align.labels import Objects
from tscode_yolo.align.match import FOUND_IOU, Candidates

ORACLES = ("aligned", "ranking", "localisation", "both")


def rescore(pairs: Candidates, owner: np.ndarray, iou: np.ndarray, objects: Objects) -> dict[str, Candidates]:
    """Build the four oracles' candidates.

    Args:
        pairs: N candidates above the floor.
        owner: (N,) annotation of the same class each is about (IoU 0.1 or more), -1 for none.
        iou: (N,) IoU with it.
        objects: the annotations.

    Returns:
        Oracle name -> candidates, best score first.
    """
    about = owner >= 0
    snapped = pairs.boxes.copy()
    snapped[about] = objects.boxes[owner[about]]
    hits = np.flatnonzero(about)
    return {
        "aligned": Candidates(pairs.anchor, pairs.cls, _deal_again(pairs.score, owner, iou), pairs.boxes).sorted(),
        "ranking": Candidates(pairs.anchor[hits], pairs.cls[hits], iou[hits], pairs.boxes[hits]).sorted(),
        "localisation": Candidates(pairs.anchor, pairs.cls, pairs.score, snapped).sorted(),
        "both": Candidates(pairs.anchor[hits], pairs.cls[hits], np.ones(len(hits)), snapped[hits]).sorted(),
    }


def _deal_again(score: np.ndarray, owner: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Inside each object give its highest score to its best IoU, the second to the second, and so on."""
    dealt, owner = score.copy(), np.where(iou >= FOUND_IOU, owner, -1)
    by_score = np.lexsort((-score, owner))  # groups of one owner, best score first
    by_iou = np.lexsort((-score, -iou, owner))  # the same groups, best IoU first; equal IoUs keep their order
    about = owner[by_score] >= 0
    dealt[by_iou[about]] = score[by_score[about]]
    return dealt


def split_loss(ap: float, ranking: float, localisation: float, both: float) -> dict[str, float]:
    """Share 1 - AP between scores, boxes and what was never proposed.

    Args:
        ap: average precision as it is, 0 to 1.
        ranking: with perfect scores.
        localisation: with perfect boxes.
        both: with both.

    Returns:
        ``scores``, ``boxes`` and ``unseen``, which add up to 1 - ap.

    Example:
        >>> {k: round(v, 3) for k, v in split_loss(0.4, 0.6, 0.5, 0.9).items()}
        {'scores': 0.3, 'boxes': 0.2, 'unseen': 0.1}
    """
    return {
        "scores": ((ranking - ap) + (both - localisation)) / 2,
        "boxes": ((localisation - ap) + (both - ranking)) / 2,
        "unseen": 1 - both,
    }
