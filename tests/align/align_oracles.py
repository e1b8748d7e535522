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
