"""Anchor points, boxes and the counting of pairs: the geometry all recipes share, without loops over points.

Masks over (image, object, point) are built separably, rows and columns of a level apart, and in chunks of images that
hold at most ``PAIR_BUDGET`` pairs, so that 500 objects an image cost time and not memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tscode_yolo.recipes.contract import Grid, Pairs, Targets

PAIR_BUDGET = 2**22  # (image, object, point) entries a chunk may hold: 16 MB a float32 temporary
INSIDE_MARGIN = 0.01  # pixels that ATSS, TOOD and OTA want between a positive and the sides of its box


def make_grid(shapes: Sequence[Sequence[int]], strides: Sequence[float], device: torch.device | str = "cpu") -> Grid:
    """Lay out the cell centres of every level.

    Args:
        shapes: (height, width) of each level in cells, finest first.
        strides: stride of each level in pixels.
        device: where the tensors go.

    Raises:
        ValueError: there is not one stride for each level.
    """
    if len(shapes) != len(strides):
        raise ValueError(f"expected one stride for each of the {len(shapes)} levels, got {len(strides)}: {strides}")
    points, per_point = [], []
    for (height, width), stride in zip(shapes, strides, strict=True):
        ys = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        xs = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), -1).view(-1, 2))
        per_point.append(torch.full((height * width,), float(stride), device=device))
    sizes = tuple((int(height), int(width)) for height, width in shapes)
    return Grid(torch.cat(points), torch.cat(per_point), sizes, tuple(float(stride) for stride in strides))


def axes(grid: Grid) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Yield (stride, (W,) column centres, (H,) row centres) of each level, in pixels."""
    for (height, width), stride, points in zip(
        grid.shapes, grid.level_strides, grid.points.split(grid.sizes), strict=True
    ):
        cells = points.view(height, width, 2)
        yield stride, cells[0, :, 0], cells[:, 0, 1]


def image_chunks(batch: int, objects: int, points: int) -> Iterator[slice]:
    """Split a batch so that no slice holds more than ``PAIR_BUDGET`` pairs, but at least one image."""
    step = max(1, PAIR_BUDGET // max(1, objects * points))
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def center_mask(grid: Grid, bboxes: Tensor, radius: float) -> Tensor:
    """Mark the points closer to each box's centre than ``radius`` strides along both axes: (B, G, A) bool.

    Unlike ``inside_mask`` with a radius, the centre square is not cut at the box.
    """
    x1, y1, x2, y2 = bboxes.unsqueeze(-1).unbind(-2)  # each (B, G, 1)
    masks = []
    for stride, xs, ys in axes(grid):
        columns = (xs - (x1 + x2) / 2).abs() < radius * stride  # (B, G, W)
        rows = (ys - (y1 + y2) / 2).abs() < radius * stride  # (B, G, H)
        masks.append((rows[..., :, None] & columns[..., None, :]).flatten(2))  # (B, G, H * W)
    return torch.cat(masks, -1)


def inside_mask(grid: Grid, bboxes: Tensor, margin: float = 0.0, radius: float | None = None) -> Tensor:
    """Mark the points inside each box, optionally only near its centre.

    Args:
        grid: anchor points.
        bboxes: (B, G, 4) xyxy in pixels.
        margin: a point counts if its distance to every side exceeds this, in pixels.
        radius: keep points closer to the centre than ``radius`` strides along both axes (the centre square of FCOS
            and OTA, cut at the box).

    Returns:
        (B, G, A) bool. Nothing is inside a padded box of zeros.
    """
    x1, y1, x2, y2 = bboxes.unsqueeze(-1).unbind(-2)  # each (B, G, 1)
    masks = []
    for stride, xs, ys in axes(grid):
        columns = torch.minimum(xs - x1, x2 - xs) > margin  # (B, G, W)
        rows = torch.minimum(ys - y1, y2 - ys) > margin  # (B, G, H)
        if radius is not None:
            columns &= (xs - (x1 + x2) / 2).abs() < radius * stride
            rows &= (ys - (y1 + y2) / 2).abs() < radius * stride
        masks.append((rows[..., :, None] & columns[..., None, :]).flatten(2))  # (B, G, H * W)
    return torch.cat(masks, -1)


def mask_pairs(mask: Tensor, first_image: int = 0) -> Pairs:
    """Turn a (B, G, A) mask of images ``first_image`` onwards into pairs."""
    image, gt, point = mask.nonzero(as_tuple=True)
    return Pairs(image + first_image, gt, point)


def inside_pairs(grid: Grid, targets: Targets, margin: float = 0.0, radius: float | None = None) -> Pairs:
    """List the pairs with the point inside the object; see ``inside_mask`` for the arguments."""
    batch, objects = targets.mask.shape
    chunks = []
    for images in image_chunks(batch, objects, len(grid.points)):
        mask = inside_mask(grid, targets.bboxes[images], margin, radius) & targets.mask[images, :, None]
        chunks.append(mask_pairs(mask, images.start))
    return Pairs(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def nearest_points(grid: Grid, targets: Targets, topk: int) -> Tensor:
    """Choose, on each level, the ``topk`` points nearest to each object's centre (ATSS, Algorithm 1, lines 3-6).

    Args:
        grid: anchor points.
        targets: padded ground truth; padded rows get points too, mask them.
        topk: points on each level; clipped to the level's size.

    Returns:
        (B, G, C) index into the A points. Equal distances go to the lower index on every device, so that a box centred
        on a cell corner is treated alike everywhere (in double precision; Apple's MPS has none and may differ).
    """
    batch, objects = targets.mask.shape
    exact = torch.float32 if targets.bboxes.device.type == "mps" else torch.float64
    centers = ((targets.bboxes[..., :2].to(exact) + targets.bboxes[..., 2:].to(exact)) / 2).unsqueeze(-1)
    out = []
    for images in image_chunks(batch, objects, len(grid.points)):
        x, y = centers[images].unbind(-2)  # each (b, G, 1)
        first, chosen = 0, []
        for (_, xs, ys), size in zip(axes(grid), grid.sizes, strict=True):
            distance = ((y - ys).square()[..., :, None] + (x - xs).square()[..., None, :]).flatten(2)
            # a relative push of 2^-50 an index parts exact ties and nothing else
            distance *= 1 + torch.arange(size, device=distance.device, dtype=exact) * 2.0**-50
            chosen.append(distance.topk(min(topk, size), largest=False).indices + first)
            first += size
        out.append(torch.cat(chosen, -1))
    return torch.cat(out)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other; for assigners, without gradient.

    Args:
        first: (..., 4) xyxy.
        second: (..., 4) xyxy in the same unit.

    Returns:
        (...) in [0, 1]; exactly 1 for equal boxes, 0 where a box is empty or inverted.
    """
    ax1, ay1, ax2, ay2 = first.detach().unbind(-1)
    bx1, by1, bx2, by2 = second.detach().unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    inter = width.mul_(height)
    area_a = (ax2 - ax1).clamp(min=0) * (ay2 - ay1).clamp(min=0)
    area_b = (bx2 - bx1).clamp(min=0) * (by2 - by1).clamp(min=0)
    return inter / (area_a + area_b).sub_(inter).clamp_(min=1e-9)


def pair_iou(bboxes: Tensor, targets: Targets, pairs: Pairs) -> Tensor:
    """(N,) IoU of each pair's predicted box, from (B, A, 4), with its object."""
    return iou(bboxes[pairs.image, pairs.point], targets.bboxes[pairs.image, pairs.gt])


def object_iou(bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
    """(B, G, A) IoU of every object, (B, G, 4), with every predicted box, (B, A, 4)."""
    return iou(gt_bboxes[:, :, None], bboxes[:, None])


def centerness(points: Tensor, bboxes: Tensor) -> Tensor:
    """Centre-ness of points in their boxes (FCOS, arXiv:1904.01355, Eq. 3).

    Args:
        points: (..., 2) xy.
        bboxes: (..., 4) xyxy in the same unit.

    Returns:
        (...) in [0, 1]: 1 at the centre, 0 on a side and outside.
    """
    near = torch.minimum(points - bboxes[..., :2], bboxes[..., 2:] - points).clamp(min=0)
    far = torch.maximum(points - bboxes[..., :2], bboxes[..., 2:] - points).clamp(min=1e-9)
    return (near / far).prod(-1).sqrt()


def resolve(pairs: Pairs, merit: Tensor, batch: int, points: int) -> tuple[Tensor, Tensor]:
    """Give every contested point to the object of largest merit; equal merit goes to the lower object index.

    Args:
        pairs: positive pairs; a point may stand in several.
        merit: (N,) finite.
        batch: number of images B.
        points: number of anchor points A.

    Returns:
        (B, A) bool foreground and (B, A) object index, 0 in the background.
    """
    key = pairs.image * points + pairs.point
    best = merit.new_full((batch * points,), -torch.inf).scatter_reduce_(0, key, merit, "amax")
    wins = merit == best[key]
    nobody = torch.iinfo(torch.int64).max
    gt = torch.full((batch * points,), nobody, device=key.device).scatter_reduce_(0, key[wins], pairs.gt[wins], "amin")
    fg = gt != nobody
    return fg.view(batch, points), gt.where(fg, 0).view(batch, points)


def assigned(values: Tensor, gt: Tensor) -> Tensor:
    """Look up each point's object in (B, G) or (B, G, D) values: (B, A) or (B, A, D)."""
    if values.shape[1] == 0:  # no object in the whole batch
        return values.new_zeros((*gt.shape, *values.shape[2:]))
    rows = torch.arange(len(gt), device=gt.device)[:, None]
    return values[rows, gt]


def group_sum(values: Tensor, pairs: Pairs, targets: Targets) -> Tensor:
    """(B, G) sum of (N,) pair values over the points of each object; differentiable."""
    batch, objects = targets.mask.shape
    zeros = values.new_zeros(batch * objects)
    return zeros.index_add(0, pairs.image * objects + pairs.gt, values).view(batch, objects)


def group_extreme(values: Tensor, pairs: Pairs, targets: Targets, largest: bool) -> Tensor:
    """(B, G) maximum or minimum of (N,) pair values over the points of each object; 0 where it has none."""
    batch, objects = targets.mask.shape
    out = values.new_zeros(batch * objects)
    key = pairs.image * objects + pairs.gt
    return out.scatter_reduce(0, key, values, "amax" if largest else "amin", include_self=False).view(batch, objects)
