"""One format in a process of its own: a runtime that crashes takes only its own rows along.

``python -m tscode_yolo.parity.worker REQUEST.json RESULT.json``; the result is written after every variant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tscode_yolo.verbs.storage import read_json, write_json

PACKAGES = {  # format -> distributions whose versions belong to its rows; torch and ultralytics to all
    "onnx": ("onnx", "onnxruntime", "onnxslim"),
    "openvino": ("openvino", "nncf"),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN", "onnx"),
    "executorch": ("executorch",),
    "litert": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "saved_model": ("tensorflow", "onnx2tf", "tf_keras", "onnx"),
    "pb": ("tensorflow", "onnx2tf", "tf_keras", "onnx"),
    "paddle": ("paddlepaddle", "x2paddle"),
    "coreml": ("coremltools",),
    "engine": ("tensorrt", "onnx"),
}


def run(request: dict[str, Any], folder: Path, timeout: float) -> list[dict[str, Any]]:
    """Measure the variants of one format in a fresh process; after a crash the rest of them in another.

    Args:
        request: see `serve`; JSON values.
        folder: where its files go.
        timeout: seconds for each process.

    Returns:
        One row a variant; one that a crash or the clock took along carries it as its error.
    """
    rows: list[dict[str, Any]] = []
    while left := request["variants"][len(rows) :]:
        done, ended = attempt({**request, "variants": left}, folder / str(len(rows)), timeout)
        rows += done
        if len(done) < len(left):
            rows.append(lost(request, left[len(done)], ended))
    return rows


def attempt(request: dict[str, Any], folder: Path, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """One process: the rows it wrote, and how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log.txt"
    write_json(folder / "request.json", request)
    # The host would install packages into the environment, and MNN's converter into whichever one `pip` belongs to.
    environment = {**os.environ, "YOLO_AUTOINSTALL": "false", "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "tscode_yolo.parity.worker", str(folder / "request.json"), str(result)]
    try:
        with log.open("w") as out:
            code = subprocess.run(
                command, cwd=folder, env=environment, stdout=out, stderr=out, timeout=timeout, check=False
            ).returncode
        ended = f"its process died with signal {-code}" if code < 0 else f"its process ended with exit code {code}"
    except subprocess.TimeoutExpired:
        ended = f"took longer than timeout={timeout:g} s"
    last = " ".join(log.read_text(errors="replace").split())[-200:]
    return list((read_json(result) or {"rows": []})["rows"]), f"{ended}; last words: {last}"


def lost(request: dict[str, Any], words: str, reason: str) -> dict[str, Any]:
    """The row of a variant whose process left none."""
    from tscode_yolo.parity.variants import parse

    variant = parse(request["format"], words, request["setting"]["imgsz"])
    side = dict.fromkeys(("bytes", "boxes", "scores", "detections", "ap", "unrunnable"))
    return {
        **{"format": variant.format, "variant": words, "precision": variant.precision, "baseline": None},
        **{"input": [variant.batch, 3, *variant.size], "latency": None, "skipped": None, "packages": {}},
        "model": {**side, "error": reason},
    }


def serve(request: dict[str, Any], result: Path) -> None:
    """Measure the variants of one format here.

    Args:
        request: ``model``, ``baseline`` (paths or None), ``format``, ``variants`` (words) and ``setting``
            (`tscode_yolo.parity.measure.Setting`).
        result: JSON to write: ``rows``.
    """
    from tscode_yolo import register
    from tscode_yolo.parity import exported, variants
    from tscode_yolo.parity.measure import Setting, measure

    register.register()
    setting = Setting(**request["setting"])
    baseline = Path(request["baseline"]) if request["baseline"] else None
    exported.leave_calibration(Path.cwd(), setting.images)
    rows: list[dict[str, Any]] = []
    for i, words in enumerate(request["variants"]):
        variant = variants.parse(request["format"], words, setting.imgsz)
        with tempfile.TemporaryDirectory(prefix=f"{i}-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
            row = measure(Path(request["model"]), baseline, variant, setting, Path(folder))
        rows.append({**row, "packages": versions(variant.format)})
        write_json(result, {"rows": rows})


def versions(fmt: str) -> dict[str, str]:
    """Installed versions of what a format's numbers depend on."""
    found = {}
    for name in ("torch", "ultralytics", *PACKAGES.get(fmt, ())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    serve(read_json(Path(sys.argv[1])), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # some runtimes crash while the interpreter takes them down, after the result is written
