"""Loop-written oracles of the ten recipes, straight from the papers' equations; they share no code with the package.

One image at a time, Python floats only. A point is (x, y, stride, level); an object is (label, box); an assignment is a
dict from point to object. ``Image`` is what a recipe sees of one image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass
class Image:
    points: list[tuple[float, float, float, int]]
    logits: list[list[float]]
    boxes: list[list[float]]
    quality: list[float]
    bins: list[list[list[float]]]
    objects: list[tuple[int, list[float]]]

    def p(self, i: int, k: int) -> float:
        return sigmoid(self.logits[i][k])

    def q(self, i: int) -> float:
        return sigmoid(self.quality[i])

    def overlap(self, i: int, g: int) -> float:
        return iou(self.boxes[i], self.objects[g][1])


def images_of(scene) -> list[Image]:
    """Read a test scene into plain numbers."""
    grid, targets, preds = scene.grid, scene.targets, scene.preds()
    columns = (grid.points.tolist(), grid.strides.tolist(), grid.levels.tolist())
    points = [(*xy, s, level) for xy, s, level in zip(*columns, strict=True)]
    out = []
    for b in range(len(preds.logits)):
        columns = (targets.labels[b].tolist(), targets.bboxes[b].tolist(), targets.mask[b].tolist())
        objects = [(label, box) for label, box, real in zip(*columns, strict=True) if real]
        fields = (preds.logits, preds.bboxes, preds.quality, preds.bins)
        out.append(Image(points, *(field[b].tolist() for field in fields), objects))
    return out


# --- geometry ---------------------------------------------------------------------------------------------------------


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def area(box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a, b) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a, b) -> float:
    inter = intersection(a, b)
    return inter / (area(a) + area(b) - inter)


def giou(a, b) -> float:
    inter = intersection(a, b)
    union = area(a) + area(b) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def sides(point, box) -> tuple[float, float, float, float]:
    return point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]


def center(box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def in_square(point, box, radius: float) -> bool:
    cx, cy = center(box)
    return abs(point[0] - cx) < radius * point[2] and abs(point[1] - cy) < radius * point[2]


def centerness(point, box) -> float:
    left, top, right, bottom = sides(point, box)
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


# --- assignment -------------------------------------------------------------------------------------------------------


def fcos(image: Image) -> dict[int, int]:
    last = max(point[3] for point in image.points)
    found = {}
    for i, point in enumerate(image.points):
        level, stride = point[3], point[2]
        low = -1 if level == 0 else 8 * stride / 2
        high = math.inf if level == last else 8 * stride
        fits = [
            (area(box), g)
            for g, (_, box) in enumerate(image.objects)
            if min(sides(point, box)) > 0 and in_square(point, box, 1.5) and low <= max(sides(point, box)) <= high
        ]
        if fits:
            found[i] = min(fits)[1]
    return found


def adaptive(image: Image, merit, rank, topk: int = 9, margin: float = 0.01) -> dict[int, int]:
    """ATSS with any merit; ``rank(i, g)`` orders the candidates of a level, smallest first."""
    claims: dict[int, list[tuple[float, int]]] = {}
    for g, (_, box) in enumerate(image.objects):
        candidates = []
        for level in sorted({point[3] for point in image.points}):
            members = [i for i, point in enumerate(image.points) if point[3] == level]
            candidates += sorted(members, key=lambda i: (rank(i, g), i))[:topk]
        values = [merit(i, g) for i in candidates]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        threshold = min(mean + deviation, max(values))
        for i, value in zip(candidates, values, strict=True):
            if value >= threshold and min(sides(image.points[i], box)) > margin:
                claims.setdefault(i, []).append((value, -g))
    return {i: -max(claim)[1] for i, claim in claims.items()}


def center_distance(image: Image):
    def distance(i: int, g: int) -> float:
        (x, y), point = center(image.objects[g][1]), image.points[i]
        return (point[0] - x) ** 2 + (point[1] - y) ** 2

    return distance


def atss(image: Image) -> dict[int, int]:
    def anchor_iou(i: int, g: int) -> float:
        x, y, s, _ = image.points[i]
        return iou([x - 4 * s, y - 4 * s, x + 4 * s, y + 4 * s], image.objects[g][1])

    return adaptive(image, anchor_iou, center_distance(image))


def predicted_quality(image: Image, alpha: float, score=None):
    def merit(i: int, g: int) -> float:
        p = (score or image.p)(i, image.objects[g][0])
        return p ** (1 - alpha) * image.overlap(i, g) ** alpha

    return merit


def ddod(image: Image, alpha: float) -> dict[int, int]:
    return adaptive(image, predicted_quality(image, alpha), center_distance(image))


def poto(image: Image) -> dict[int, int]:
    """The best of all one-to-one matchings, tried one by one; objects without a usable point are left out."""
    quality = predicted_quality(image, 0.8, lambda i, k: image.p(i, k) * image.q(i))
    usable = []
    for _, box in image.objects:
        usable.append([i for i, pt in enumerate(image.points) if min(sides(pt, box)) > 0 and in_square(pt, box, 1.5)])
    best, best_value = (), -math.inf
    for choice in itertools.product(*usable):
        if len(set(choice)) == len(choice):
            value = sum(quality(i, g) for g, i in enumerate(choice))
            if value > best_value:
                best, best_value = choice, value
    return {i: g for g, i in enumerate(best)}


def defcn_aux(image: Image) -> dict[int, int]:
    merit = predicted_quality(image, 0.8)
    return adaptive(image, merit, lambda i, g: -merit(i, g), margin=0.0)


def tood(image: Image) -> tuple[dict[int, int], dict[int, float]]:
    """Assignment and normalised alignment of its points."""

    def alignment(i: int, g: int) -> float:
        return math.sqrt(image.p(i, image.objects[g][0]) * image.q(i)) * image.overlap(i, g) ** 6

    claims: dict[int, list[tuple[float, int]]] = {}
    for g, (_, box) in enumerate(image.objects):
        order = sorted(range(len(image.points)), key=lambda i: (-alignment(i, g), i))
        for i in order[:13]:
            if alignment(i, g) > 0 and min(sides(image.points[i], box)) > 0.01:
                claims.setdefault(i, []).append((image.overlap(i, g), -g))
    found = {i: -max(claim)[1] for i, claim in claims.items()}
    target = {}
    for i, g in found.items():
        mine = [j for j, other in found.items() if other == g]
        top = max(alignment(j, g) for j in mine)
        target[i] = alignment(i, g) / (top + 1e-7) * max(image.overlap(j, g) for j in mine)
    return found, target


def simota(image: Image) -> dict[int, int]:
    def inside(i: int, g: int) -> bool:
        return min(sides(image.points[i], image.objects[g][1])) > 0

    def central(i: int, g: int) -> bool:
        return in_square(image.points[i], image.objects[g][1], 2.5)

    everyone = range(len(image.objects))
    usable = [i for i in range(len(image.points)) if any(inside(i, g) or central(i, g) for g in everyone)]

    def cost(i: int, g: int) -> float:
        total = 0.0
        for k in range(len(image.logits[i])):
            s = math.sqrt(image.p(i, k) * image.q(i))
            total -= math.log(s) if k == image.objects[g][0] else math.log(1 - s)
        total -= 3 * math.log(image.overlap(i, g) + 1e-8)
        return total + (0 if inside(i, g) and central(i, g) else 1e5)

    claims: dict[int, list[int]] = {}
    for g in everyone:
        k = max(1, int(sum(sorted((image.overlap(i, g) for i in usable), reverse=True)[:10])))
        for i in sorted(usable, key=lambda i: (cost(i, g), i))[:k]:
            claims.setdefault(i, []).append(g)
    return {i: c[0] if len(c) == 1 else min(everyone, key=lambda g: cost(i, g)) for i, c in claims.items()}


def ota(image: Image, epsilon: float = 0.1, iterations: int = 50) -> dict[int, int]:
    """Optimal transport over all points, none left out."""
    n, m = len(image.objects), len(image.points)
    if n == 0:
        return {}

    def class_cost(i: int, label: int | None) -> float:
        return sum(focal(image.p(i, k), float(k == label)) for k in range(len(image.logits[i])))

    def valid(i: int, g: int) -> bool:
        box = image.objects[g][1]
        return min(sides(image.points[i], box)) > 0.01 and in_square(image.points[i], box, 2.5)

    cost = []
    for g, (label, _) in enumerate(image.objects):
        row = []
        for i in range(m):
            away = 0 if valid(i, g) else 1e6
            row.append(class_cost(i, label) - 1.5 * math.log(max(image.overlap(i, g), 2.0**-23)) + away)
        cost.append(row)
    cost.append([class_cost(i, None) for i in range(m)])
    supply = []
    for g in range(n):
        best = sorted((image.overlap(i, g) for i in range(m) if valid(i, g)), reverse=True)[:20]
        supply.append(max(1, int(sum(best))))
    supply.append(m - sum(supply))

    def log_sum(values: list[float]) -> float:
        top = max(values)
        return top + math.log(sum(math.exp(v - top) for v in values))

    kernel = [[-c / epsilon for c in row] for row in cost]
    u, v = [1 / epsilon] * (n + 1), [1 / epsilon] * m
    for _ in range(iterations):
        v = [math.log(1 + 1e-8) - log_sum([kernel[r][i] + u[r] for r in range(n + 1)]) for i in range(m)]
        u = [math.log(supply[r] + 1e-8) - log_sum([kernel[r][i] + v[i] for i in range(m)]) for r in range(n + 1)]
    plan = [[kernel[r][i] + u[r] + v[i] for i in range(m)] for r in range(n + 1)]
    scaled = [[entry - max(row) for entry in row] for row in plan]
    winner = [max(range(n + 1), key=lambda r: scaled[r][i]) for i in range(m)]
    return {i: r for i, r in enumerate(winner) if r < n}


# --- loss terms -------------------------------------------------------------------------------------------------------


def focal(p: float, t: float) -> float:
    return -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)


def bce(p: float, t: float) -> float:
    return -(t * math.log(p) + (1 - t) * math.log(1 - p))


def qfl(s: float, q: float) -> float:
    return abs(q - s) ** 2 * bce(s, q)


def dfl(logits: list[float], y: float) -> float:
    y = min(max(y, 0), len(logits) - 1.1)
    n = int(y)
    total = sum(math.exp(z) for z in logits)
    return -((n + 1 - y) * math.log(math.exp(logits[n]) / total) + (y - n) * math.log(math.exp(logits[n + 1]) / total))
