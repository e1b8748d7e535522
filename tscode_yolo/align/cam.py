"""What each branch looks at: gradient maps for the class score and for the box of one object, separately.

At the head's inputs (the pyramid levels, a finer extra input included) a map is the sum over channels of
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
from torch import Tensor, nn

from tscode_yolo.align.figures import GREEN, ORANGE, crop_window, draw_box
from tscode_yolo.align.predict import Detector, Frame, letterbox, to_tensor

BRANCHES = ("class", "box")


class NoGradient(RuntimeError):
    """The branch cannot be differentiated: Ultralytics 8.4.0 detaches the one-to-one branch even in inference."""


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
        NoGradient: no gradient reaches the head's inputs.
    """
    padded, frame = letterbox(image, detector.imgsz, detector.stride, detector.rect)
    inputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut(_: Any, args: tuple[Any, ...]) -> tuple[list[Tensor]]:
        # Leaves of their own: else the gradient at P3 would hold the neck's paths from P3 to P4 and P5 as well.
        inputs[:] = args[0]
        leaves[:] = [f.detach().requires_grad_(True) for f in args[0]]
        return (list(leaves),)

    # The plain Module method, so that a head that hides its extra finer input from hooks shows all its inputs here.
    handle = nn.Module.register_forward_pre_hook(detector.head, cut)
    try:
        with torch.enable_grad():
            pixels = to_tensor([padded], detector.device).requires_grad_(True)
            boxes, scores = detector.decode(detector.net(pixels))
            targets = {"class": [_logit(scores[0, anchor, label])], "box": list(boxes[0, anchor])}
            return {
                name: _maps([_gradients(t, leaves, inputs, pixels) for t in targets[name]], leaves, frame, truth, name)
                for name in BRANCHES
            }
    finally:
        handle.remove()


def _logit(score: Tensor) -> Tensor:
    """Undo the sigmoid; unlike ``torch.logit`` with an epsilon it keeps the gradient of very small scores."""
    return score.log() - (1 - score).clamp_min(1e-7).log()


def _gradients(
    target: Tensor, leaves: list[Tensor], inputs: list[Tensor], pixels: Tensor
) -> tuple[list[Tensor | None], Tensor]:
    """Gradient of one scalar at each of the head's inputs (None where it does not depend on it) and at the pixels."""
    if not target.requires_grad:
        raise NoGradient(
            "expected gradients at the head's inputs, got none: this Ultralytics version detaches the one-to-one "
            "branch; use a newer ultralytics"
        )
    grads: list[Tensor | None] = list(torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True))
    used = [(f, g) for f, g in zip(inputs, grads, strict=True) if g is not None]
    feats, outer = zip(*used, strict=True)
    return grads, torch.autograd.grad(feats, pixels, outer, retain_graph=True)[0]


def _maps(
    gradients: list[tuple[list[Tensor | None], Tensor]],
    feats: list[Tensor],
    frame: Frame,
    truth: np.ndarray,
    branch: str,
) -> BranchMaps:
    """Evidence of several scalars (one logit, or four sides), added up."""
    size = frame.shape
    total = [np.zeros(tuple(f.shape[2:])) for f in feats]
    saliency = np.zeros(size)
    for grads, at_pixels in gradients:
        saliency += at_pixels.abs().sum(1)[0].cpu().numpy()
        for i, (feat, grad) in enumerate(zip(feats, grads, strict=True)):
            if grad is not None:
                evidence = (feat * grad).sum(1)[0].detach()
                total[i] += (evidence.relu() if branch == "class" else evidence.abs()).cpu().numpy()
    amount = {round(size[1] / f.shape[3]): float(t.sum()) for f, t in zip(feats, total, strict=True)}
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
    window = crop_window(image.shape[:2], np.stack([box, truth]), margin=0.9)
    aspect = min(max((window[3] - window[1]) / (window[2] - window[0]), 0.4), 1.6)
    figure = Figure(figsize=(9, 9 * aspect + 0.9), dpi=90, layout="constrained")
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
            draw_box(axes, truth, GREEN)
            draw_box(axes, box, ORANGE, dashed=True)
            axes.set(xlim=(window[0], window[2]), ylim=(window[3], window[1]), xticks=[], yticks=[])
            axes.set_title(text, fontsize=9)
    return figure


def _inside(found: BranchMaps) -> str:
    return "no gradient" if np.isnan(found.inside) else f"{100 * found.inside:.0f} % inside the object"
