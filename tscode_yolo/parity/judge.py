"""Pass or fail: float32 by its numbers, coarser arithmetic by the AP it costs next to the stock head's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PASS, FAIL, UNJUDGED, NOT_RUN = "PASS", "FAIL", "not judged", "not run"


@dataclass(frozen=True)
class Tolerances:
    """What a pass means.

    Attributes:
        boxes: largest difference of a box's side, pixels, in float32: before NMS, or of the paired detections where
            NMS or top-k is in the file.
        scores: largest difference of a score, likewise.
        ap: AP points that a model may lose in coarser arithmetic beyond what the stock head loses there.
    """

    boxes: float = 0.1
    scores: float = 1e-3
    ap: float = 0.5

    def as_dict(self) -> dict[str, float]:
        """For the report."""
        return asdict(self)


def judge(row: Mapping[str, Any], tolerances: Tolerances) -> tuple[str, str]:
    """The verdict on a row of `tscode_yolo.parity.measure.measure`, and its reason.

    Returns:
        ``PASS``; ``FAIL``; ``not run`` where the format cannot be made or run here, or where the stock head fails in
        the same way, so that the fault is not the head's; ``not judged`` where what judges it was not given.
    """
    if row["skipped"]:
        return NOT_RUN, row["skipped"]
    model, baseline = row["model"], row["baseline"]
    if model["error"]:
        if baseline and baseline["error"]:
            return NOT_RUN, f"the stock head fails too: {model['error']}"
        return FAIL, model["error"]
    if model["unrunnable"]:
        return NOT_RUN, model["unrunnable"]
    if row["precision"] == "float32":
        return _by_numbers(model, tolerances)
    return _by_ap(model, baseline, tolerances)


def _by_numbers(side: Mapping[str, Any], tolerances: Tolerances) -> tuple[str, str]:
    """Raw outputs, or pairs of final rows, within the tolerances, and every detection found again."""
    faults = []
    for what, limit, unit in (("boxes", tolerances.boxes, " px"), ("scores", tolerances.scores, "")):
        if side[what] and not side[what]["max"] <= limit:
            faults.append(f"{what} differ by {side[what]['max']:.2g}{unit}, more than {limit:g}{unit}")
    counts = side["detections"]
    if counts["unmatched"]:
        faults.append(f"{counts['unmatched']} detections without a partner")
    if not faults and counts["matched"] == 0:
        return UNJUDGED, "PyTorch detects nothing in these images, so parity after NMS shows nothing; give others"
    return (FAIL, "; ".join(faults)) if faults else (PASS, "")


def _by_ap(side: Mapping[str, Any], baseline: Mapping[str, Any] | None, tolerances: Tolerances) -> tuple[str, str]:
    """No more AP lost than by the stock head in the same format, but for the tolerance."""
    if not side["ap"]:
        return UNJUDGED, "coarser arithmetic is judged by AP: give data="
    lost = loss(side)
    if not baseline:
        return UNJUDGED, f"loses {lost:.2f} AP; give baseline= to compare with the stock head's loss"
    if baseline["error"] or not baseline["ap"]:
        return UNJUDGED, f"loses {lost:.2f} AP; no AP of the stock head ({baseline['error'] or 'not measured'})"
    theirs = loss(baseline)
    text = f"loses {lost:.2f} AP, the stock head {theirs:.2f}"
    return (PASS if lost <= max(theirs, 0.0) + tolerances.ap else FAIL), text


def loss(side: Mapping[str, Any]) -> float:
    """AP points lost by the export."""
    return float(side["ap"]["pytorch"] - side["ap"]["exported"])
