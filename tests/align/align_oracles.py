"""Slow, loop-written oracles for the align room, from the papers' equations; they share no code with the package.

A scene is a list of images; an image is ``{"gts": [...], "dets": [...]}``; a gt has box (xyxy), cls, crowd; a det has
box, cls, score.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np


def iou(a, b):
    """IoU of two xyxy boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = w * h if w > 0 and h > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def random_scene(seed, images=12, classes=3, crowds=True, size=400):
    """Jittered, duplicated, confused and invented detections of random objects; sizes from 12 to 200 pixels."""
    rng = np.random.default_rng(seed)
    scene = []
    for _ in range(images):
        gts, dets = [], []
        for _ in range(int(rng.integers(0, 7))):
            w, h = rng.uniform(12, 200, 2)
            x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
            crowd = bool(crowds and rng.random() < 0.12)
            gts.append({"box": [x, y, x + w, y + h], "cls": int(rng.integers(classes)), "crowd": crowd})
            for _ in range(int(rng.integers(0, 5))):
                spread = rng.choice([0.03, 0.12, 0.3])
                box = np.array(gts[-1]["box"]) + rng.normal(0, 1, 4) * spread * np.array([w, h, w, h])
                box = np.clip(box, 0, size)
                if box[2] - box[0] < 2 or box[3] - box[1] < 2:
                    continue
                cls = gts[-1]["cls"] if rng.random() < 0.8 else int(rng.integers(classes))
                dets.append({"box": box.tolist(), "cls": cls, "score": float(rng.uniform(0.01, 1))})
        for _ in range(int(rng.integers(0, 4))):
            x, y = rng.uniform(0, size - 60, 2)
            box = [x, y, x + rng.uniform(10, 60), y + rng.uniform(10, 60)]
            dets.append({"box": box, "cls": int(rng.integers(classes)), "score": float(rng.uniform(0.01, 0.6))})
        scene.append({"gts": gts, "dets": dets})
    return scene


def coco_precision(scene, classes, backend="pycocotools"):
    """AP by pycocotools or faster-coco-eval: (4 sizes, classes, 10 thresholds), NaN without objects."""
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    content = {
        "info": {},
        "images": [{"id": i + 1, "width": 400, "height": 400} for i in range(len(scene))],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(classes)],
        "annotations": [],
    }
    rows = []
    for i, image in enumerate(scene):
        for g in image["gts"]:
            x1, y1, x2, y2 = g["box"]
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": i + 1, "category_id": g["cls"] + 1,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(g["crowd"])}
            )  # fmt: skip
        for d in image["dets"]:
            x1, y1, x2, y2 = d["box"]
            row = {"image_id": i + 1, "category_id": d["cls"] + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            rows.append({**row, "score": d["score"]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(rows), "bbox")
        run.params.maxDets = [1, 10, 1000]
        run.evaluate()
        run.accumulate()
    precision = np.asarray(run.eval["precision"])  # [T, R, K, A, M]
    precision = precision.reshape(10, 101, classes, 4, 3)[..., 2]
    values = np.where(precision[:, 0] < 0, np.nan, precision.mean(1))  # [T, K, A]
    return values.transpose(2, 1, 0)


def lrp_of_class(scene, cls, tau=0.5):
    """oLRP of one class by trying every score as the threshold: (oLRP, loc, fp, fn, threshold). No crowds."""
    scores = sorted({d["score"] for image in scene for d in image["dets"] if d["cls"] == cls})
    best = (1.0, None, None, 1.0, None)
    for s in scores:
        tp = fp = fn = 0
        loc = 0.0
        for image in scene:
            gts = [g["box"] for g in image["gts"] if g["cls"] == cls]
            dets = [d for d in image["dets"] if d["cls"] == cls and d["score"] >= s]
            used = set()
            for d in sorted(dets, key=lambda d: -d["score"]):
                pairs = [(iou(d["box"], g), j) for j, g in enumerate(gts) if j not in used]
                value, j = max(pairs, default=(0, -1))
                if value >= tau:
                    used.add(j)
                    tp, loc = tp + 1, loc + 1 - value
                else:
                    fp += 1
            fn += len(gts) - len(used)
        if tp:
            value = (loc / (1 - tau) + fp + fn) / (tp + fp + fn)
            if value < best[0]:
                best = (value, loc / tp, fp / (tp + fp), fn / (tp + fn), s)
    return best


def tide_kinds(image):
    """TIDE's verdict on one image without crowds: kinds of the detections in score order, and missed objects."""
    gts = image["gts"]
    dets = sorted(image["dets"], key=lambda d: -d["score"])
    used, matched = set(), {}
    for i, d in enumerate(dets):
        pairs = [(iou(d["box"], g["box"]), j) for j, g in enumerate(gts) if g["cls"] == d["cls"] and j not in used]
        value, j = max(pairs, default=(0, -1))
        if value >= 0.5:
            used.add(j)
            matched[i] = j
    kinds, pointed = [], set()
    for i, d in enumerate(dets):
        if i in matched:
            kinds.append("correct")
            continue
        same = [(iou(d["box"], g["box"]), j) for j, g in enumerate(gts) if g["cls"] == d["cls"]]
        other = [(iou(d["box"], g["box"]), j) for j, g in enumerate(gts) if g["cls"] != d["cls"]]
        (si, sj), (oi, oj) = max(same, default=(0, -1)), max(other, default=(0, -1))
        if 0.1 <= si <= 0.5:
            kinds.append("localisation")
            pointed.add(sj)
        elif oi >= 0.5:
            kinds.append("classification")
            pointed.add(oj)
        elif any(v >= 0.5 and j in used for v, j in same):
            kinds.append("duplicate")
        elif max(si, oi) <= 0.1:
            kinds.append("background")
        else:
            kinds.append("both")
    missed = [j for j in range(len(gts)) if j not in used and j not in pointed]
    return kinds, missed


def calibration_error(pairs, bins):
    """Sum over bins of |sum(target) - sum(score)| over the number of pairs (score, target); bins as (low, high]."""
    total = 0.0
    for b in range(bins):
        inside = [(s, t) for s, t in pairs if b / bins < s <= (b + 1) / bins]
        total += abs(sum(t for _, t in inside) - sum(s for s, _ in inside))
    return total / len(pairs)


LIMITS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def _in(box, size):
    return size is None or LIMITS[size][0] <= _area(box) <= LIMITS[size][1]


def match_image(image, size=None, threshold=0.5):
    """COCO's matching of one image: per detection in score order (gt index or -1, ignored). No crowds."""
    out, taken = {}, set()
    dets = sorted(range(len(image["dets"])), key=lambda i: -image["dets"][i]["score"])
    for i in dets:
        d, best = image["dets"][i], (-1.0, -1)
        for counts in (True, False):  # an object of the size goes before any other
            for j, g in enumerate(image["gts"]):
                if g["cls"] == d["cls"] and j not in taken and _in(g["box"], size) == counts:
                    value = iou(d["box"], g["box"])
                    if value >= threshold:
                        best = max(best, (value, j))
            if best[1] >= 0:
                break
        j = best[1]
        if j >= 0:
            taken.add(j)
            out[i] = (j, not _in(image["gts"][j]["box"], size))
        else:
            out[i] = (-1, not _in(d["box"], size))
    return out


def keep_size(scene, size, pairs=False):
    """What counts at IoU 0.5 in a size range: a scene without the ignored, or (score, hit, IoU, class) a detection."""
    kept, told = [], []
    for image in scene:
        verdict = match_image(image, size)
        dets = [(image["dets"][i], j) for i, (j, ignored) in verdict.items() if not ignored]
        kept.append({"gts": [g for g in image["gts"] if _in(g["box"], size)], "dets": [d for d, _ in dets]})
        for d, j in dets:
            overlap = iou(d["box"], image["gts"][j]["box"]) if j >= 0 else 0.0
            told.append((d["score"], float(j >= 0), overlap, d["cls"]))
    return told if pairs else kept


def best_overlaps(image):
    """Per detection: score, IoU with the object of its class it overlaps most, class, that object's size."""
    rows = []
    for d in image["dets"]:
        mine = [g for g in image["gts"] if g["cls"] == d["cls"]]
        value, g = max(((iou(d["box"], g["box"]), i) for i, g in enumerate(mine)), default=(0.0, -1))
        size = next((s for s, (low, high) in LIMITS.items() if g >= 0 and low <= _area(mine[g]["box"]) <= high), None)
        rows.append((d["score"], value, d["cls"], size))
    return rows


def tide_costs(scene, classes):
    """AP50 gained by repairing each kind of error: overall, each class, small, medium, large; AP by pycocotools.

    A repaired detection is put exactly on its object; a removed or missed one is taken out of the scene. A class all of
    whose objects are missed keeps its AP of 0.
    """

    def strata(ap):  # [size, class]
        return np.concatenate([[np.nanmean(ap[0])], ap[0], [np.nanmean(ap[s]) for s in (1, 2, 3)]])

    base, out = coco_precision(scene, classes)[..., 0], {}
    verdicts = [tide_kinds(image) for image in scene]
    for kind in ("classification", "localisation", "both", "duplicate", "background", "missed"):
        repaired = [_repair(image, kinds, missed, kind) for image, (kinds, missed) in zip(scene, verdicts, strict=True)]
        ap = coco_precision(repaired, classes)[..., 0]
        ap[np.isnan(ap) & ~np.isnan(base)] = 0
        out[kind] = np.maximum(strata(ap) - strata(base), 0)
    return out


def _repair(image, kinds, missed, kind):
    gts = image["gts"]
    if kind == "missed":
        return {"gts": [g for j, g in enumerate(gts) if j not in missed], "dets": image["dets"]}
    dets = sorted(image["dets"], key=lambda d: -d["score"])
    used = {j for j, _ in match_image({"gts": gts, "dets": dets}).values() if j >= 0}
    kept, aimed = [], set()
    for d, verdict in zip(dets, kinds, strict=True):
        target = -1
        if verdict in ("classification", "localisation"):
            same = verdict == "localisation"
            pairs = [(iou(d["box"], g["box"]), j) for j, g in enumerate(gts) if (g["cls"] == d["cls"]) == same]
            target = max(pairs)[1]
            if target in used or target in aimed:
                target = -1
            else:
                aimed.add(target)
        if verdict != kind:
            kept.append(d)
        elif target >= 0:
            kept.append({"box": gts[target]["box"], "cls": gts[target]["cls"], "score": d["score"]})
    return {"gts": gts, "dets": kept}
