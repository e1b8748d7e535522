"""What the numbers say in words: is it the head or the data? Plain rules, so that anybody can disagree with them.

The shares come from the split of the loss (:func:`oracle.split_loss`):

- head, agreement: what re-dealing each object's own scores would give (oracle "aligned" minus AP).
- boxes: the localisation half; loose boxes are the head's, or the labels are loose.
- data or classes: the rest of the score half (confusion, background, too low scores) and what was never proposed.
"""

from __future__ import annotations

from typing import Any

CLEAR = 1.25  # one cause is named alone only if it is this much larger than the other
FEW_OBJECTS = 50
FEW_IMAGES = 20


def shares(overall: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """Share of 1 - AP by cause, adding up to 1 - AP.

    Args:
        overall: of one model's report.

    Returns:
        ``agreement``, ``boxes``, ``classes``, ``unseen``.
    """

    def get(name: str) -> float:
        return float(overall[name]["value"] or 0.0)

    agreement = min(max(get("loss_alignment"), 0.0), max(get("loss_scores"), 0.0))  # as in Measurer's "loss_classes"
    return {
        "agreement": agreement,
        "boxes": get("loss_boxes"),
        "classes": get("loss_scores") - agreement,
        "unseen": get("loss_unseen"),
    }


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, a dash if there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def headline(report: dict[str, Any]) -> str:
    """One sentence: head, data or both, for the first model."""
    overall = report["models"][0]["overall"]
    if overall["ap"]["value"] is None:
        return "There are no labelled objects to measure against."
    if report["models"][0]["counts"].get("detections") == 0:
        return f"The model detects nothing: no box scores above conf={report['settings']['conf']}."
    part = shares(overall)
    head, rest = part["agreement"] + part["boxes"], part["classes"] + part["unseen"]
    if head + rest <= 0:
        return "There is no loss to explain: AP is 100 %."
    if head > CLEAR * rest and part["agreement"] > part["boxes"]:
        return "Mostly the head: it has good boxes, but its scores pick worse ones."
    if head > CLEAR * rest:
        return (
            "Mostly the boxes: the objects are seen, but the boxes are not tight enough for their labels; "
            "that is the head, or labels drawn loosely."
        )
    if rest > CLEAR * head:
        return "Mostly the data or the classes: better agreement of score and box would not close the larger part."
    return "Both: the head's boxes and scores, and the data or classes, cost about as much."


def findings(report: dict[str, Any]) -> list[str]:
    """The sentences under the headline, most telling first."""
    model = report["models"][0]
    overall, data = model["overall"], report["data"]
    value = {name: cell["value"] for name, cell in overall.items()}
    if value["ap"] is None:
        return _data_findings(model, data)
    part = shares(overall)
    out = [
        f"AP is {percent(value['ap'])}. Of the missing {percent(1 - value['ap'])}, {percent(part['agreement'])} would "
        f"come back if each object's own scores followed its IoUs, {percent(part['boxes'])} with perfect boxes; "
        f"{percent(part['classes'])} is confusion, background or low scores, {percent(part['unseen'])} was never "
        "proposed with the right class.",
        f"Before NMS the best box of an object ranks {value['rank'] or 0:.0f} by score (median) and first in "
        f"{percent(value['best_first'])} of the objects; the top-scoring box gives away {value['gap'] or 0:.3f} IoU.",
    ]
    if value["nms_removed"] is not None:
        out.append(
            f"NMS removed the best box of {percent(value['nms_removed'])} of the objects for a worse one, however "
            f"little worse; that of {percent(value['below_floor'])} scored too low to come before NMS."
        )
    return out + _data_findings(model, data) + _comparison(report)


def _data_findings(model: dict[str, Any], data: dict[str, Any]) -> list[str]:
    out = []
    sure = model["plots"]["confident"]
    if sure["background"]:
        share = sure["background"] / sure["detections"]
        out.append(
            f"{sure['background']} of {sure['detections']} detections above their class's threshold ({percent(share)}) "
            "lie on no label: false alarms, or objects nobody labelled. Look at the pictures."
        )
    doubts = [
        (data["repeated_labels"], "pairs of labels of one class on one object"),
        (data["contradicting_labels"], "pairs of labels of different classes on one object"),
        (data["tiny_objects"], "objects under 8 x 8 input pixels"),
        (data["corrupt_images"] + data["corrupt_labels"], "images left out because they or their labels are corrupt"),
    ]
    told = [f"{n} {what}" for n, what in doubts if n]
    if told:
        out.append("In the labels: " + ", ".join(told) + ".")
    if data["images_read"] < FEW_IMAGES:
        images = "1 image was" if data["images_read"] == 1 else f"{data['images_read']} images were"
        out.append(f"Only {images} read: too little to tell, whatever the numbers and their intervals say.")
    few = [name for name, n in data["objects_per_class"].items() if n < FEW_OBJECTS]
    if few or data["classes_without_objects"]:
        out.append(
            f"{len(few)} of {data['classes']} classes have fewer than {FEW_OBJECTS} objects here and "
            f"{len(data['classes_without_objects'])} have none: read their rows with care."
        )
    return out


def _comparison(report: dict[str, Any]) -> list[str]:
    if not report["difference"]:
        return []
    told = []
    for name, label, digits in (
        ("ap", "AP", 1),
        ("loss_alignment", "loss from disagreement", 1),
        ("gap", "IoU given away by the top-scoring box", 1),
    ):
        cell = report["difference"][name]
        if cell["value"] is None:
            continue
        low, high = cell["low"], cell["high"]
        if low is None or high is None:
            sure = "no interval"
        else:
            sure = "the interval excludes zero" if low > 0 or high < 0 else "the interval includes zero"
        told.append(f"{label} {100 * cell['value']:+.{digits}f} points ({sure})")
    return ["Against the baseline: " + "; ".join(told) + "."] if told else []
