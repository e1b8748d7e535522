"""``tscode doctor``: is the plug-in alive in this Python, and if not, what is the cure?

Every check is a function that returns what it found and raises `Sick` with the cure when something is off.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tscode_yolo import __version__, config, shipped

PACKAGES = ("ultralytics", "torch", "torchvision", "opencv-python", "numpy", "onnx", "onnxruntime")


class Sick(RuntimeError):
    """Something is off; the message says what and the cure."""


def versions() -> str:
    """Versions of what matters, and whether the host's is supported."""
    from tscode_yolo import register

    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    first, last = (".".join(map(str, v)) for v in register.SUPPORTED)
    if not register.SUPPORTED[0] <= register.host_version() < register.SUPPORTED[1]:
        raise Sick(
            f"ultralytics {installed['ultralytics']} is not supported; pip install 'ultralytics>={first},<{last}'"
        )
    text = ", ".join(f"{k} {v}" for k, v in installed.items())
    return f"tscode-yolo {__version__}, Python {platform.python_version()}, {text}"


def autoload() -> str:
    """Does a fresh interpreter plug us in by itself?"""
    if os.environ.get("TSCODE_YOLO_AUTOLOAD", "1") == "0":
        raise Sick(
            "switched off by TSCODE_YOLO_AUTOLOAD=0; unset it, or call tscode_yolo.register.register() in your code"
        )
    code = "import sys; print('tscode_yolo' in sys.modules)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(sys.prefix))
    if fresh.stdout.strip() != "True":
        raise Sick(
            "a fresh interpreter does not load tscode_yolo: its .pth file is not in this environment's site-packages "
            "(pip install --target, PYTHONPATH, or Python started with -S). Install it into this environment ("
            f"{config.how_to_install()}), or put `import tscode_yolo` into your script; the `yolo` command needs the "
            "former"
        )
    return "a fresh interpreter loads the plug-in"


def hooks() -> str:
    """Are all wrappers in place?"""
    import importlib

    from tscode_yolo.register import PATCHES, live

    for module in PATCHES:
        with contextlib.suppress(ModuleNotFoundError):  # hosts before 8.4.100 or so have no distillation
            importlib.import_module(module)

    dead = [name for name, alive in live().items() if not alive]
    if dead:
        raise Sick(f"not wrapped: {', '.join(dead)}. Restart Python; if it stays so, report it with this output")
    return ", ".join(name.removeprefix("ultralytics.") for name in live())


def yamls() -> str:
    """Where are the shipped YAMLs?"""
    for name in ("tscode.yaml", "shapes.yaml"):
        if shipped.cfg_path(name) is None:
            raise Sick(f"{name} is not in {shipped.cfg_dir()}; reinstall: {config.how_to_install()}")
    return f"{len(list(shipped.cfg_dir().rglob('*.yaml')))} YAMLs in {shipped.cfg_dir()}"


def forward() -> str:
    """Build the recommended model from its bare name and run it at a size whose coarsest map is odd."""
    import torch
    from ultralytics import YOLO

    model: Any = YOLO("tscoden.yaml", verbose=False).model
    head = model.eval().model[-1]
    if type(head).__name__ != "TSCODEDetect":
        raise Sick(f"tscoden.yaml built a {type(head).__name__}; another package may have replaced parse_model")
    with torch.inference_mode():
        out = model(torch.zeros(1, 3, 96, 160))[0]
    if not torch.isfinite(out).all():
        raise Sick("the forward gave values that are not finite; reinstall torch")
    return f"tscoden.yaml at 96x160 (coarsest map 3x5): output {tuple(out.shape)}"


CHECKS: tuple[Callable[[], str], ...] = (versions, autoload, hooks, yamls, forward)


def main(args: dict[str, Any]) -> int:
    """Run all checks; 1 if one found something off."""
    if args:
        print(f"tscode doctor takes no arguments, got {', '.join(args)}", file=sys.stderr)
        return 2
    sick = False
    for check in CHECKS:
        try:
            verdict, text = "ok  ", check()
        except Exception as e:  # a check that breaks is a finding too, and the others still run
            sick, verdict, text = True, "SICK", str(e) if isinstance(e, Sick) else f"{type(e).__name__}: {e}"
        print(f"{verdict} {check.__name__:<9} {text}")
    return int(sick)
