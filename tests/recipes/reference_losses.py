"""Loop-written losses of the ten recipes over a batch of ``reference.Image``; no code shared with the package."""

from __future__ import annotations

import math

from .reference import (
    Image,
    atss,
    bce,
    center,
    centerness,
    ddod,
    defcn_aux,
    dfl,
    fcos,
    focal,
    giou,
    iou,
    ota,
    poto,
    qfl,
    sides,
    simota,
    tood,
)


def classify(image: Image, found: dict[int, int], term, score=None, target=None, weight=None) -> float:
    """Sum of a class loss over all points and classes."""
    total = 0.0
    for i in range(len(image.points)):
        for k in range(len(image.logits[i])):
            hit = i in found and image.objects[found[i]][0] == k
            t = (target(i, found[i]) if target else 1.0) if hit else 0.0
            total += term((score or image.p)(i, k), t) * (weight(i) if weight else 1.0)
    return total


def boxes(image: Image, found: dict[int, int], weight=lambda i, g: 1.0) -> float:
    return sum((1 - giou(image.boxes[i], image.objects[g][1])) * weight(i, g) for i, g in found.items())


def centered(images, assign, gain: float) -> dict[str, float]:
    """FCOS and ATSS."""
    cls = box = ctr = total = count = 0.0
    for image in images:
        found = assign(image)
        weights = {i: centerness(image.points[i], image.objects[g][1]) for i, g in found.items()}
        cls += classify(image, found, focal)
        box += boxes(image, found, lambda i, g, weights=weights: weights[i])
        ctr += sum(bce(image.q(i), weights[i]) for i in found)
        total, count = total + sum(weights.values()), count + len(found)
    return {"box_loss": gain * box / total, "cls_loss": cls / count, "ctr_loss": ctr / count}


def loss_fcos(images) -> dict[str, float]:
    return centered(images, fcos, 1.0)


def loss_atss(images) -> dict[str, float]:
    return centered(images, atss, 2.0)


def loss_gfl(images) -> dict[str, float]:
    cls = box = bins = total = count = 0.0
    for image in images:
        found = atss(image)
        weights = {i: max(image.p(i, k) for k in range(len(image.logits[i]))) for i in found}
        cls += classify(image, found, qfl, target=image.overlap)
        box += boxes(image, found, lambda i, g, weights=weights: weights[i])
        for i, g in found.items():
            away = sides(image.points[i], image.objects[g][1])
            bins += weights[i] * sum(dfl(image.bins[i][n], away[n] / image.points[i][2]) for n in range(4)) / 4
        total, count = total + sum(weights.values()), count + len(found)
    return {"box_loss": 2 * box / total, "cls_loss": cls / count, "dfl_loss": 0.25 * bins / total}


def loss_ddod(images) -> dict[str, float]:
    sets = [(ddod(image, 0.8), ddod(image, 0.5)) for image in images]
    levels = 1 + max(point[3] for point in images[0].points)
    counts = [0] * levels
    for image, pair in zip(images, sets, strict=True):
        for found in pair:
            for i in found:
                counts[image.points[i][3]] += 1
    factor = [2 - (c - min(counts)) / (max(counts) - min(counts) + 1e-10) for c in counts]
    cls = box = quality = 0.0
    for image, (for_cls, for_box) in zip(images, sets, strict=True):
        cls += classify(image, for_cls, focal, weight=lambda i, image=image: factor[image.points[i][3]])
        box += boxes(image, for_box, lambda i, g, image=image: factor[image.points[i][3]])
        for i, g in for_box.items():
            quality += factor[image.points[i][3]] * bce(image.q(i), image.overlap(i, g))
    n_cls, n_box = (sum(len(pair[n]) for pair in sets) for n in range(2))
    return {"box_loss": 2 * box / n_box, "cls_loss": cls / n_cls, "iou_loss": quality / n_box}


def loss_ota(images) -> dict[str, float]:
    cls = box = quality = count = 0.0
    for image in images:
        found = ota(image)
        cls += classify(image, found, focal)
        box += boxes(image, found)
        quality += sum(bce(image.q(i), image.overlap(i, g)) for i, g in found.items())
        count += len(found)
    return {"box_loss": 2 * box / count, "cls_loss": cls / count, "iou_loss": 0.5 * quality / count}


def loss_defcn(images) -> dict[str, float]:
    cls = box = aux = count = aux_count = 0.0
    for image in images:
        found, extra = poto(image), defcn_aux(image)
        cls += classify(image, found, focal, score=lambda i, k, image=image: image.p(i, k) * image.q(i))
        box += boxes(image, found)
        aux += classify(image, extra, focal)
        count, aux_count = count + len(found), aux_count + len(extra)
    return {"box_loss": 2 * box / count, "cls_loss": cls / count, "aux_loss": aux / aux_count}


def loss_tood(images) -> dict[str, float]:
    cls = box = total = 0.0
    for image in images:
        found, target = tood(image)
        root = lambda i, k, image=image: math.sqrt(image.p(i, k) * image.q(i))  # noqa: E731
        cls += classify(image, found, qfl, score=root, target=lambda i, g, target=target: target[i])
        box += boxes(image, found, lambda i, g, target=target: target[i])
        total += sum(target.values())
    return {"box_loss": 2 * box / total, "cls_loss": cls / max(total, 1.0)}


def loss_tood_warm_up(images) -> dict[str, float]:
    cls = box = total = count = 0.0
    for image in images:
        found = atss(image)
        weights = {i: centerness(image.points[i], image.objects[g][1]) for i, g in found.items()}
        root = lambda i, k, image=image: math.sqrt(image.p(i, k) * image.q(i))  # noqa: E731
        cls += classify(image, found, focal, score=root)
        box += boxes(image, found, lambda i, g, weights=weights: weights[i])
        total, count = total + sum(weights.values()), count + len(found)
    return {"box_loss": 2 * box / total, "cls_loss": cls / count}


def loss_simota(images) -> dict[str, float]:
    cls = box = obj = l1 = count = 0.0
    for image in images:
        found = simota(image)
        for i, g in found.items():
            label, truth = image.objects[g]
            for k in range(len(image.logits[i])):
                cls += bce(image.p(i, k), image.overlap(i, g) if k == label else 0.0)
            box += 1 - image.overlap(i, g) ** 2
            l1 += sum(abs(a - b) for a, b in zip(image.boxes[i], truth, strict=True)) / image.points[i][2]
        obj += sum(bce(image.q(i), float(i in found)) for i in range(len(image.points)))
        count += len(found)
    return {"box_loss": 5 * box / count, "cls_loss": cls / count, "obj_loss": obj / count, "l1_loss": l1 / count}


def inside(image: Image, g: int) -> list[int]:
    return [i for i, point in enumerate(image.points) if min(sides(point, image.objects[g][1])) > 0]


def prior(image: Image, i: int, g: int, mean=(0.0, 0.0), sigma=(1.0, 1.0)) -> float:
    cx, cy = center(image.objects[g][1])
    x, y, s, _ = image.points[i]
    parts = (((x - cx) / s - mean[0]) / sigma[0], ((y - cy) / s - mean[1]) / sigma[1])
    return math.exp(-sum(part**2 for part in parts) / 2)


def confidence(image: Image, i: int, g: int) -> float:
    label, box = image.objects[g]
    return image.p(i, label) * image.q(i) * math.exp(-5 * (1 - giou(image.boxes[i], box)))


def loss_autoassign(images, mean=None, sigma=None) -> dict[str, float]:
    """``mean`` and ``sigma``: per class, xy."""
    positive = negative = total_prior = 0.0
    centers = []
    objects = sum(len(image.objects) for image in images)
    for image in images:
        weights: dict[tuple[int, int], float] = {}
        image_prior = 0.0
        for g, (label, _) in enumerate(image.objects):
            mine = inside(image, g)
            if not mine:
                continue
            args = (mean[label], sigma[label]) if mean else ()
            gauss = {i: prior(image, i, g, *args) for i in mine}
            raw = {i: math.exp(3 * confidence(image, i, g)) * gauss[i] for i in mine}
            positive -= math.log(sum(raw[i] * confidence(image, i, g) for i in mine) / sum(raw.values()))
            best = {i: max(iou(image.boxes[i], box) for _, box in image.objects) for i in mine}
            sharp = {i: 1 / (1 - best[i]) for i in mine}
            low, high = min(sharp.values()), max(sharp.values())
            for i in mine:
                f = (sharp[i] - low + 1e-12) / (high - low + 1e-12)
                weights[i, label] = min(weights.get((i, label), 1.0), 1 - f)
            image_prior += sum(gauss.values())
        for i in range(len(image.points)):
            for k in range(len(image.logits[i])):
                c = image.p(i, k) * image.q(i) * weights.get((i, k), 1.0)
                negative -= c**2 * math.log(1 - c)
        total_prior += image_prior
        centers.append(len(image.objects) / image_prior if image_prior else 0.0)
    return {
        "pos_loss": 0.25 * positive / objects,
        "neg_loss": 0.75 * negative / max(total_prior, 1.0),
        "ctr_loss": 0.75 * sum(centers) / len(centers),
    }


def loss_dw(images) -> dict[str, float]:
    box = positive = negative = removed = 0.0
    objects = sum(len(image.objects) for image in images)
    for image in images:
        weights: dict[tuple[int, int], float] = {}
        for g, (label, truth) in enumerate(image.objects):
            mine = inside(image, g)
            if not mine:
                continue
            conf = {i: confidence(image, i, g) for i in mine}
            gauss = {i: prior(image, i, g, sigma=(1.11, 1.11)) for i in mine}
            below = sum(math.exp(3 * conf[i]) * conf[i] * gauss[i] for i in mine)
            t = {i: (image.overlap(i, g) ** 2 - 1) / (0.5**2 - 1) for i in mine}
            low, high = min(t.values()), min(1.0, max(t.values()))
            for i in mine:
                w = math.exp(5 * conf[i]) * conf[i] * gauss[i] / below
                positive -= w * math.log(image.p(i, label) * image.q(i))
                box += w * 5 * (1 - giou(image.boxes[i], truth))
                share = (t[i] - low + 1e-12) / (high - low + 1e-12) if image.overlap(i, g) >= 0.5 else 1.0
                weights[i, label] = min(weights.get((i, label), 1.0), share)
        for i in range(len(image.points)):
            for k in range(len(image.logits[i])):
                c = image.p(i, k) * image.q(i)
                negative -= weights.get((i, k), 1.0) * c**2 * math.log(1 - c)
        removed += sum(1 - w for w in weights.values())
    return {
        "box_loss": 0.25 * box / objects,
        "pos_loss": 0.25 * positive / objects,
        "neg_loss": negative / max(removed, 1.0),
    }


LOSSES = {
    "fcos": loss_fcos,
    "atss": loss_atss,
    "gfl": loss_gfl,
    "autoassign": loss_autoassign,
    "ddod": loss_ddod,
    "defcn": loss_defcn,
    "ota": loss_ota,
    "dw": loss_dw,
    "tood": loss_tood,
    "simota": loss_simota,
}
