"""Making an exported file and calling it: the host's exporter and backend, with float32 where it is asked for."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.nn.autobackend import AutoBackend

from tscode_yolo.parity.variants import Variant, calibrates
from tscode_yolo.study import flops
from tscode_yolo.study.profile import load

CALIBRATION = "calibration_image_sample_data_20x128x128x3_float32.npy"  # onnx2tf wants it, and the host would fetch it


def export(weights: Path, variant: Variant, folder: Path, *, data: str | None, conf: float, iou: float) -> Path:
    """Export a checkpoint through the host.

    Args:
        weights: ``.pt``, left as it is: the host writes beside the file it is given, so it is given a copy.
        variant: how.
        folder: where the file goes; made if absent.
        data: data YAML whose training images calibrate int8.
        conf: threshold of embedded NMS.
        iou: likewise.

    Returns:
        The exported file or folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = Path(shutil.copy(weights, folder / f"{weights.stem}.pt"))
    arguments = variant.arguments()
    if "nms" in variant.flags:
        arguments |= {"conf": conf, "iou": iou}
    if variant.precision == "int8" and calibrates(variant):
        arguments |= {"data": data, "split": "train"}
    device = "cpu" if variant.format != "engine" else 0
    return Path(YOLO(copy).export(**arguments, device=device, verbose=False))


def open_exported(file: Path, variant: Variant) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Open an exported file in its runtime.

    Returns:
        A call from images (B, 3, H, W), float from 0 to 1, to the first output; and whether that output is final rows
        (B, N, 6), after NMS or top-k, rather than raw.
    """
    device = torch.device("cpu" if variant.format != "engine" else "cuda:0")
    with full_precision(variant):
        backend: Any = AutoBackend(str(file), device=device, verbose=False)
    metadata = getattr(backend, "metadata", None) or {}
    final = "nms" in variant.flags or str(metadata.get("end2end")) == "True"

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            out = backend(images.to(device))
        out = out[0] if isinstance(out, (list, tuple)) else out
        return torch.as_tensor(out)

    return call, final


def pytorch(weights: Path, end2end: bool) -> Callable[[Tensor], Tensor]:
    """The same call on the checkpoint: float32, fused, on the CPU; `end2end` chooses the branch where there are two."""
    net: Any = load(str(weights))
    head = net.model[-1]
    if getattr(head, "one2one_cv2", None) is not None and bool(head.end2end) != end2end:
        head.end2end = end2end
    net = flops.deployed(net)

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return net(images)[0]

    return call


def two_branches(weights: Path) -> bool:
    """Whether the checkpoint's head has a branch that needs no NMS, and this host can choose it."""
    net: Any = load(str(weights))
    return getattr(net.model[-1], "one2one_cv2", None) is not None


@contextlib.contextmanager
def full_precision(variant: Variant) -> Iterator[None]:
    """Make OpenVINO compute in float32 unless the variant is ``native``; on some processors it would take bfloat16.

    The host gives no way to say so, hence the detour around the runtime's own compile call.
    """
    if variant.format != "openvino" or variant.precision == "native":
        yield
        return
    import openvino

    original = openvino.Core.compile_model

    def compile_model(self: Any, model: Any, device_name: Any = None, config: Any = None, **kwargs: Any) -> Any:
        config = {**(config or {}), "INFERENCE_PRECISION_HINT": openvino.Type.f32}
        return original(self, model, device_name, config, **kwargs)

    openvino.Core.compile_model = compile_model  # type: ignore[method-assign]
    try:
        yield
    finally:
        openvino.Core.compile_model = original  # type: ignore[method-assign]


def pictures(files: list[str], size: tuple[int, int]) -> Tensor:
    """Images put into the model's input as the host does it: (N, 3, H, W) RGB, float from 0 to 1.

    Raises:
        ValueError: a file that is no image.
    """
    letterbox = LetterBox(new_shape=size, auto=False)
    batch = []
    for file in files:
        image = cv2.imread(file)
        if image is None:
            raise ValueError(f"{Path(file).name}: expected an image that OpenCV can read")
        batch.append(np.asarray(letterbox(image=image))[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.stack(batch))).float() / 255


def leave_calibration(folder: Path, files: list[str]) -> None:
    """Put the file onnx2tf checks its conversion with into `folder`, made of our images, so that nothing is fetched."""
    images = pictures((files * 20)[:20], (128, 128)).permute(0, 2, 3, 1).numpy()
    np.save(folder / CALIBRATION, images)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)
