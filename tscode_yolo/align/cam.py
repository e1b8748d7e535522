"""What each branch looks at: gradient maps for the class score and for the box of one object, separately.

At the head's inputs (the predicted pyramid levels, seen through a forward pre-hook) a map is the sum over channels of
activation times gradient: HiResCAM (Draelos and Carin, arXiv:2011.08891), i.e. Grad-CAM (arXiv:1610.02391) without
averaging the gradient over the whole map first, which would smear one anchor point's evidence over the image.

- class: gradient of the class logit of the object's top-scoring box; positive evidence only.
- box: gradient of each side of that same box in turn; absolute values, summed over the sides, since moving a side
  left or right is neither good nor bad.

Two more numbers come with them: the share of each level in the evidence (a stock branch reads one level, a TSCODE
branch several) and, from the gradient at the pixels, how much of the evidence lies inside the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .predict import Detector, Frame, letterbox, to_tensor

BRANCHES = ("class", "box")


@dataclass(frozen=True, slots=True)
class BranchMaps:
    """The evidence of one branch for one object.

    Attributes:
        heat: (H, W) 0 to 1 over the original image, the levels added up.
        levels: share of the evidence by stride of the level, adding up to 1 (empty without any gradient).
        pixels: (H, W) 0 to 1, gradient at the pixels, smoothed.
        inside: share of the pixel gradient inside the object's box.
    """

    heat: np.ndarray
    levels: dict[int, float]
    pixels: np.ndarray
    inside: float


def branch_maps(
    detector: Detector, image: np.ndarray, anchor: int, label: int, truth: np.ndarray
) -> dict[str, BranchMaps]:
    """Compute the maps of both branches for one anchor point.

    Args:
        detector: the model.
        image: (H, W, 3) BGR uint8.
        anchor: index of the anchor point among all levels, as in ``OBJECT_ROW``.
        label: class whose score is explained.
        truth: (4,) xyxy of the object, original pixels, for ``inside``.

    Returns:
        "class" and "box" -> maps.

    Raises:
        RuntimeError: no gradient reaches the head's inputs (Ultralytics 8.4.0 detaches the one-to-one branch).
    """
    padded, frame = letterbox(image, detector.imgsz, detector.stride, detector.rect)
    seen: list[Tensor] = []

    def remember(_: Any, inputs: tuple[Any, ...]) -> None:
        seen[:] = list(inputs[0])

    handle = detector.head.register_forward_pre_hook(remember)
    try:
        with torch.enable_grad():
            pixels = to_tensor([padded], detector.device).requires_grad_(True)
            boxes, scores = detector.decode(detector.net(pixels))
            targets = {"class": [torch.logit(scores[0, anchor, label], eps=1e-6)], "box": list(boxes[0, anchor])}
            return {name: _maps(targets[name], seen, pixels, frame, truth, signed=name == "class") for name in BRANCHES}
    finally:
        handle.remove()


def _maps(
    targets: list[Tensor], feats: list[Tensor], pixels: Tensor, frame: Frame, truth: np.ndarray, signed: bool
) -> BranchMaps:
    """Evidence of several scalars (one logit, or four sides), added up."""
    size, stride = frame.shape, {}
    total = [np.zeros(tuple(f.shape[2:])) for f in feats]
    saliency = np.zeros(size)
    for target in targets:
        grads = torch.autograd.grad(target, [*feats, pixels], retain_graph=True, allow_unused=True)
        if all(g is None for g in grads[:-1]):
            raise RuntimeError(
                "expected gradients at the head's inputs, got none: this Ultralytics version detaches the one-to-one "
                "branch; pass end2end=false, or use a newer ultralytics"
            )
        for i, (feat, grad) in enumerate(zip(feats, grads[:-1], strict=True)):
            if grad is not None:
                evidence = (feat * grad).sum(1)[0]
                total[i] += (evidence.relu() if signed else evidence.abs()).detach().cpu().numpy()
        if grads[-1] is not None:
            saliency += grads[-1].abs().sum(1)[0].cpu().numpy()
    for f in feats:
        stride[round(size[1] / f.shape[3])] = 0.0
    amount = {s: float(t.sum()) for s, t in zip(stride, total, strict=True)}
    whole = sum(amount.values())
    heat = sum((cv2.resize(t, size[::-1], interpolation=cv2.INTER_LINEAR) for t in total), np.zeros(size))
    smooth = cv2.GaussianBlur(saliency, (0, 0), sigmaX=max(size) / 100)
    back = _to_image(saliency, frame)
    x1, y1, x2, y2 = (round(v) for v in truth)
    inside = float(back[y1:y2, x1:x2].sum() / back.sum()) if back.sum() > 0 else float("nan")
    return BranchMaps(
        heat=_unit(_to_image(heat, frame)),
        levels={s: v / whole for s, v in amount.items()} if whole > 0 else {},
        pixels=_unit(_to_image(smooth, frame)),
        inside=inside,
    )


def _to_image(values: np.ndarray, frame: Frame) -> np.ndarray:
    """Cut the padding off a map over the input and bring it to the original size."""
    (h0, w0), (left, top) = frame.size, frame.pad
    h, w = round(h0 * frame.gain[1]), round(w0 * frame.gain[0])
    return cv2.resize(values[top : top + h, left : left + w], (w0, h0), interpolation=cv2.INTER_LINEAR)


def _unit(values: np.ndarray) -> np.ndarray:
    peak = values.max()
    return values / peak if peak > 0 else values


def draw_maps(image: np.ndarray, box: np.ndarray, truth: np.ndarray, maps: dict[str, BranchMaps], title: str) -> Figure:
    """Draw both branches' maps side by side: the head's inputs above, the pixels below.

    Args:
        image: (H, W, 3) BGR uint8.
        box: (4,) xyxy, the explained box.
        truth: (4,) xyxy, the object.
        maps: from :func:`branch_maps`.
        title: over the figure.

    Returns:
        The figure.
    """
    from .figures import GREEN, ORANGE, _box, _crop

    window = _crop(image.shape[:2], np.stack([box, truth]), margin=0.9)
    aspect = min(max((window[3] - window[1]) / (window[2] - window[0]), 0.4), 1.6)
    figure = Figure(figsize=(9, 9 * aspect + 0.9), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(2, 2)
    for column, name in enumerate(BRANCHES):
        found = maps[name]
        levels = ", ".join(f"stride {s}: {100 * v:.0f} %" for s, v in found.levels.items())
        texts = (f"{name} branch at the head's inputs\n{levels}", f"{name} branch at the pixels\n{_inside(found)}")
        for line, (heat, text) in enumerate(zip((found.heat, found.pixels), texts, strict=True)):
            axes = grid[line, column]
            axes.imshow(image[..., ::-1])
            axes.imshow(heat, cmap="inferno", alpha=0.25 + 0.6 * heat)
            _box(axes, truth, GREEN)
            _box(axes, box, ORANGE, dashed=True)
            axes.set(xlim=(window[0], window[2]), ylim=(window[3], window[1]), xticks=[], yticks=[])
            axes.set_title(text, fontsize=9)
    return figure


def _inside(found: BranchMaps) -> str:
    return "no gradient" if np.isnan(found.inside) else f"{100 * found.inside:.0f} % inside the object"
