"""Raw predictions: what the head says at every anchor point, before NMS and before any top-k.

Works on any Ultralytics ``Detect`` head, stock or ours. End-to-end heads (YOLOv10, YOLO26) hold two branches; the one
the model is set to use is read, before its top-k. Images are resized and padded exactly as ``yolo val`` does
(``ultralytics.data.base.BaseDataset.load_image`` and ``LetterBox``, read in 8.4.190), so that the boxes are its boxes.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.torch_utils import select_device

from tscode_yolo.align.source import Sample
from tscode_yolo.verbs.loading import one_line

DEFAULT_IMGSZ = 640  # the host's
NO_DETECT = (
    "model={}: expected a detection model with a Detect head (a .pt of the task 'detect'), got {}; RT-DETR and "
    "exported formats have no anchor points to look at"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """How an image was put into the model's input.

    Attributes:
        shape: (height, width) of the input, pixels.
        gain: (x, y) input pixels per original pixel.
        pad: (left, top) input pixels.
        size: (height, width) of the original image.
    """

    shape: tuple[int, int]
    gain: tuple[float, float]
    pad: tuple[int, int]
    size: tuple[int, int]

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Map (N, 4) xyxy from input pixels to original pixels, without clipping."""
        scale, shift = np.array(self.gain * 2), np.array(self.pad * 2)
        return (boxes - shift) / scale


@dataclass(frozen=True, slots=True)
class Raw:
    """Everything the head predicts on one image. A = anchor points of all levels, K = classes.

    Attributes:
        boxes: (A, 4) xyxy in original pixels, not clipped.
        scores: (A, K) after the sigmoid.
        size: (height, width) of the original image.
    """

    boxes: np.ndarray
    scores: np.ndarray
    size: tuple[int, int]

    @property
    def clipped(self) -> np.ndarray:
        """(A, 4) xyxy with every box cut at the image's edge, as the host's ``clip_boxes`` does after NMS."""
        height, width = self.size
        return np.clip(self.boxes, 0, np.array([width, height, width, height]))


def letterbox(image: np.ndarray, imgsz: int, stride: int, rect: bool = True) -> tuple[np.ndarray, Frame]:
    """Resize the long side to ``imgsz`` and pad with grey, as the host's validator does.

    Args:
        image: (H, W, 3) uint8.
        imgsz: long side in pixels.
        stride: the input's sides are multiples of it.
        rect: pad only to the next multiple plus half a stride (the host's ``rect=True, pad=0.5``), else to a square.

    Returns:
        The padded image and how to come back.
    """
    h0, w0 = image.shape[:2]
    ratio = imgsz / max(h0, w0)
    w, h = min(math.ceil(w0 * ratio), imgsz), min(math.ceil(h0 * ratio), imgsz)
    if (h, w) != (h0, w0):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    if rect:
        full = [math.ceil(side / max(h0, w0) * imgsz / stride + 0.5) * stride for side in (h0, w0)]
    else:
        full = [imgsz, imgsz]
    dh, dw = (full[0] - h) / 2, (full[1] - w) / 2
    top, left = round(dh - 0.1), round(dw - 0.1)
    padded = cv2.copyMakeBorder(
        image, top, full[0] - h - top, left, full[1] - w - left, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
    return padded, Frame((full[0], full[1]), (w / w0, h / h0), (left, top), (h0, w0))


def to_tensor(images: list[np.ndarray], device: torch.device) -> Tensor:
    """Stack BGR uint8 images of one shape into (B, 3, H, W) RGB float from 0 to 1."""
    stack = np.ascontiguousarray(np.stack(images)[..., ::-1].transpose(0, 3, 1, 2))
    return torch.from_numpy(stack).to(device).float() / 255


def _open(model: str | YOLO) -> tuple[YOLO, Any]:
    """Open a detection model; refuse everything else in one sentence."""
    try:
        host = model if isinstance(model, YOLO) else YOLO(model)
    except KeyError as error:
        raise ValueError(f"model={model}: expected a checkpoint or a model YAML, got a file without {error}") from None
    except NotImplementedError:  # rtdetr-l.yaml: its class at the host is another
        raise ValueError(NO_DETECT.format(model, "a model that YOLO cannot build")) from None
    except (TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as e:  # an older host lets torch speak
        raise ValueError(
            f"model={model}: expected a checkpoint, got a file that cannot be read ({one_line(e)})"
        ) from None
    net = host.model
    head = net.model[-1] if isinstance(net, nn.Module) and hasattr(net, "model") else None
    if head is not None and host.task != "detect":  # their heads are Detects too
        raise ValueError(
            f"model={model}: expected a detection model, got one of the task {host.task!r} with a "
            f"{type(head).__name__} head; align looks at boxes and their classes"
        )
    if not isinstance(head, Detect):
        got = f"a {type(head).__name__} head" if head is not None else "no PyTorch model"
        raise ValueError(NO_DETECT.format(model, got))
    return host, net


def _trained_imgsz(host: YOLO) -> int | None:
    """The input size that a checkpoint was trained with, as ``yolo val`` takes it; None if it does not say."""
    size = host.overrides.get("imgsz")
    size = max(size, default=None) if isinstance(size, list | tuple) else size
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


class Detector:
    """A detection model opened for looking: forward to raw predictions.

    Args:
        model: path of a checkpoint (or YAML), or a ``YOLO`` object, which is left as it is.
        device: as the host writes it, "cpu", "0"...
        imgsz: long side of the input in pixels; None for the size the model was trained with (640 if it does not say).
        end2end: for heads with two branches, True reads one-to-one, False one-to-many; None as the model is set.
        rect: see :func:`letterbox`.

    Raises:
        ValueError: not a detection model with a ``Detect`` head.

    Attributes:
        trained_imgsz: what the checkpoint says it was trained with.
        imgsz: what is used, a multiple of the stride.
    """

    def __init__(
        self,
        model: str | YOLO,
        device: str = "cpu",
        imgsz: int | None = None,
        end2end: bool | None = None,
        rect: bool = True,
    ) -> None:
        host, net = _open(model)
        self.name: str = str(getattr(host, "ckpt_path", None) or (model if isinstance(model, str) else "model"))
        self.device: torch.device = select_device(device, verbose=False)
        self.net: Any = copy.deepcopy(net).to(self.device).float().eval()
        self.head: Any = self.net.model[-1]
        if end2end is not None:
            self._select(end2end)
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        self.net.fuse(verbose=False)
        self.end2end: bool = bool(self.head.end2end)
        self.names: dict[int, str] = dict(self.net.names)
        self.stride: int = max(int(self.head.stride.max()), 32)
        self.trained_imgsz: int | None = _trained_imgsz(host)
        self.imgsz: int = math.ceil((imgsz or self.trained_imgsz or DEFAULT_IMGSZ) / self.stride) * self.stride
        self.rect: bool = rect

    def _select(self, end2end: bool) -> None:
        """Choose the branch of a two-branch head, before fusing drops the other."""
        if end2end and getattr(self.head, "one2one_cv2", None) is None:
            raise ValueError("expected a head with a one-to-one branch for end2end=true, got a one-to-many head")
        if bool(self.head.end2end) != end2end:
            if getattr(type(self.head).end2end, "fset", None) is None:  # ultralytics 8.4.0
                raise ValueError(
                    f"expected an ultralytics whose heads can change branch, got one that cannot; leave "
                    f"end2end={end2end} out or update it"
                )
            self.head.end2end = end2end

    def decode(self, output: Any) -> tuple[Tensor, Tensor]:
        """Turn the network's output into (B, A, 4) xyxy in input pixels and (B, A, K) scores."""
        decoded, preds = output
        if self.end2end:  # the output is already cut to max_det rows: decode the branch itself
            decoded = self.head._inference(preds["one2one"])
        boxes, scores = decoded[:, :4].transpose(1, 2), decoded[:, 4 : 4 + len(self.names)].transpose(1, 2)
        if not (self.end2end or self.head.xyxy):
            boxes = xywh2xyxy(boxes)
        return boxes, scores

    @torch.no_grad()  # not inference_mode: the head caches its anchors, and the gradient maps need them
    def __call__(self, images: list[np.ndarray], frames: list[Frame]) -> list[Raw]:
        """Predict on padded images of one shape.

        Args:
            images: B arrays (H, W, 3) uint8 from :func:`letterbox`.
            frames: how each was padded.

        Returns:
            One :class:`Raw` an image.
        """
        boxes, scores = self.decode(self.net(to_tensor(images, self.device)))
        found = zip(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), frames, strict=True)
        return [Raw(f.to_image(b), s, f.size) for b, s, f in found]


def batches(
    samples: Iterable[Sample], imgsz: int, stride: int, rect: bool, batch: int
) -> Iterator[list[tuple[Sample, np.ndarray, Frame]]]:
    """Group samples of one input shape into batches; at most four batches' worth of images wait at any time.

    Args:
        samples: the stream.
        imgsz: long side of the input.
        stride: of the coarsest level.
        rect: see :func:`letterbox`.
        batch: images a batch.

    Yields:
        (sample, padded image, frame) triples of one shape.
    """
    waiting: dict[tuple[int, int], list[tuple[Sample, np.ndarray, Frame]]] = {}
    for sample in samples:
        padded, frame = letterbox(sample.image, imgsz, stride, rect)
        bucket = waiting.setdefault(frame.shape, [])
        bucket.append((sample, padded, frame))
        if len(bucket) < batch and sum(map(len, waiting.values())) >= 4 * batch:
            frame_shape = max(waiting, key=lambda k: len(waiting[k]))
            yield waiting.pop(frame_shape)
        elif len(bucket) == batch:
            yield waiting.pop(frame.shape)
    yield from waiting.values()
