"""Run an exported detector with onnxruntime, OpenCV and numpy alone: no torch, no Ultralytics, nothing of ours.

python examples/onnx_standalone.py best.onnx IMAGE_OR_VIDEO [OUT] [CONFIDENCE] prints one line an object and, with OUT,
writes the annotated image or mp4. Class names, stride and size come from the file. Exports of any kind are understood:
plain, nms=True or end2end (nms=False); static or dynamic; with fp16 inputs. Exit code 1: an image or video that cannot
be read or written; 2: a wrong command line or model.
"""

import ast
import sys

import cv2
import numpy as np
import onnxruntime


class Detector:
    """An .onnx file made by `yolo export`; call it with a BGR image. ValueError if it is none."""

    def __init__(self, path: str) -> None:
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime has a class of its own for each fault
            raise ValueError(f"{path}: expected an .onnx file ({' '.join(str(e).split())})") from e
        meta = self.session.get_modelmeta().custom_metadata_map
        try:
            self._read(meta)
        except (KeyError, ValueError, SyntaxError, TypeError, AttributeError, OverflowError) as e:
            raise ValueError(
                f"{path}: expected the metadata that `yolo export` writes (names, stride, imgsz), got "
                f"{', '.join(sorted(meta)) or 'none'} ({type(e).__name__}: {e}); export the checkpoint again"
            ) from e

    def _read(self, meta: dict[str, str]) -> None:
        self.names: dict[int, str] = dict(ast.literal_eval(meta["names"]).items())
        self.stride = int(float(meta["stride"]))
        self.final = meta.get("end2end") == "True" or bool(ast.literal_eval(meta.get("args", "{}")).get("nms"))
        self.input = self.session.get_inputs()[0]
        self.dtype = np.float16 if "float16" in self.input.type else np.float32
        self.static = all(isinstance(side, int) for side in self.input.shape[2:])
        self.imgsz = self.input.shape[2:] if self.static else ast.literal_eval(meta["imgsz"])

    def __call__(self, image: np.ndarray, conf: float = 0.25, iou: float = 0.7) -> np.ndarray:
        """Detect: (N, 6) rows x1, y1, x2, y2 (pixels of the image), score, class; best first."""
        height, width = image.shape[:2]
        gain = min(self.imgsz[0] / height, self.imgsz[1] / width)
        h, w = max(round(height * gain), 1), max(round(width * gain), 1)
        full = self.imgsz if self.static else [-(-side // self.stride) * self.stride for side in (h, w)]
        top, left = round((full[0] - h) / 2 - 0.1), round((full[1] - w) / 2 - 0.1)
        if (h, w) != (height, width):
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        padding = (top, full[0] - h - top, left, full[1] - w - left)
        image = cv2.copyMakeBorder(image, *padding, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        batch = (image[None, ..., ::-1].transpose(0, 3, 1, 2) / 255).astype(self.dtype)
        if isinstance(self.input.shape[0], int):  # exported for a fixed number of images: the same one in every place
            batch = batch.repeat(self.input.shape[0], 0)
        out = self.session.run(None, {self.input.name: np.ascontiguousarray(batch)})[0][0].astype(np.float32)
        rows = out[out[:, 4] > conf] if self.final else suppress(out.T, conf, iou)
        rows[:, :4] = (rows[:, :4] - (left, top, left, top)) / (w / width, h / height, w / width, h / height)
        rows[:, :4] = rows[:, :4].clip(0, (width, height, width, height))
        return rows[rows[:, 4].argsort(kind="stable")[::-1]][:300]


def suppress(out: np.ndarray, conf: float, iou: float) -> np.ndarray:
    """Greedy NMS within each class: (A, 4 + nc) xywh and scores to (N, 6) as `Detector` returns them."""
    scores, classes = out[:, 4:].max(1), out[:, 4:].argmax(1)
    order = np.flatnonzero(scores > conf)
    order = order[scores[order].argsort(kind="stable")[::-1]]
    half = out[:, 2:4] / 2
    boxes, kept = np.concatenate([out[:, :2] - half, out[:, :2] + half], 1), []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        overlap = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        inter = overlap.clip(0).prod(1)
        same = (inter / (area[best] + area[rest] - inter + 1e-9) > iou) & (classes[rest] == classes[best])
        order = rest[~same]
    return np.column_stack([boxes[kept], scores[kept], classes[kept]]).reshape(-1, 6)


def draw(image: np.ndarray, rows: np.ndarray, names: dict[int, str]) -> np.ndarray:
    for x1, y1, x2, y2, score, cls in rows:
        cv2.rectangle(image, (round(x1), round(y1)), (round(x2), round(y2)), (60, 200, 60), 2)
        label = f"{names[int(cls)]} {score:.2f}"
        cv2.putText(image, label, (round(x1), max(round(y1) - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 200, 60), 1)
    return image


def save(out: str, image: np.ndarray) -> None:
    """Write an image. OSError if it cannot be written."""
    try:
        written = cv2.imwrite(out, image)
    except cv2.error as e:
        raise OSError(f"{out}: expected a name with the extension of an image, e.g. .jpg or .png") from e
    if not written:
        raise OSError(f"{out}: the image cannot be written; does its folder exist?")


def open_video(out: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """An mp4 to write frames of `size` (width, height) to. OSError if it cannot be written."""
    writer = cv2.VideoWriter(out, cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise OSError(f"{out}: the video cannot be written; expected a name that ends in .mp4 in a folder that exists")
    return writer


def confidence(text: str) -> float:
    """A number from 0 to 1. ValueError if the text is none."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{text}: expected a confidence from 0 to 1")
    return number


def main(argv: list[str]) -> int:
    if not 2 <= len(argv) <= 4:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        conf = confidence(argv[3]) if len(argv) > 3 else 0.25
        detector = Detector(argv[0])
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    try:
        detect(detector, argv[1], argv[2] if len(argv) > 2 else "", conf)
    except OSError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def detect(detector: Detector, source: str, out: str, conf: float) -> None:
    """Print, and with `out` draw, what is found in an image or in every frame of a video. OSError as `save`."""
    still, writer, number = cv2.imread(source), None, 0
    video = None if still is not None else cv2.VideoCapture(source)
    ok, frame = (True, still) if video is None else video.read()
    if not ok:
        raise OSError(f"{source}: expected an image or video that OpenCV can read")
    while ok:
        rows = detector(frame, conf)
        for x1, y1, x2, y2, score, cls in rows:
            print(f"{number}  {detector.names[int(cls)]:<16} {score:.3f}  {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")
        if out and video is None:
            save(out, draw(frame, rows, detector.names))
        elif out:
            size = frame.shape[1], frame.shape[0]
            writer = writer or open_video(out, video.get(cv2.CAP_PROP_FPS) or 25, size)
            writer.write(draw(frame, rows, detector.names))
        number += 1
        ok, frame = video.read() if video is not None else (False, None)
    if writer is not None:
        writer.release()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
