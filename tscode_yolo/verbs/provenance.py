"""Where a number comes from: command, versions, hardware and git state, without a path or the name of this machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("tscode-yolo", "ultralytics", "torch", "torchvision", "numpy", "scipy", "opencv-python", "matplotlib"),
    *("faster-coco-eval", "pycocotools", "onnxruntime", "openvino", "ray"),
)


def provenance(argv: list[str] | None = None) -> dict[str, Any]:
    """Everything a reader needs to run the study again on a machine like this one.

    Args:
        argv: command line, `sys.argv` by default; the program is named without its folder.
    """
    program, *rest = argv or sys.argv
    name = "tscode" if Path(program).name == "cli.py" else Path(program).name  # run as a module
    return {
        "command": shlex.join([name, *(_without_home(a) for a in rest)]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {p: v for p in PACKAGES if (v := version(p))},
        "hardware": hardware(),
        "git": git_state(Path(__file__).parent),
    }


def software() -> dict[str, Any]:
    """What decides the numbers of a run besides its settings: package versions, and a digest of our own source."""
    code = hashlib.blake2b(digest_size=4)
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(file.read_bytes())
    return {**{p: version(p) for p in ("tscode-yolo", "ultralytics", "torch")}, "code": code.hexdigest()}


def version(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and CUDA devices."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": len(cores()), "memory_gib": _memory_gib(), "gpus": gpus}


def cores() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the source checkout around `folder` and whether files differ from it; None outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # Installed into somebody's project, the enclosing repository is not ours: only a tracked file counts.
    if not commit or not git("ls-files", "."):
        return None
    return {"commit": commit, "branch": git("rev-parse", "--abbrev-ref", "HEAD"), "dirty": bool(git("status", "-s"))}


def _without_home(argument: str) -> str:
    """An argument with absolute paths cut to their last two parts: enough to know the file, not the machine."""
    key, eq, value = argument.rpartition("=")
    parts = [str(Path(*Path(p).parts[-2:])) if Path(p).is_absolute() else p for p in value.split(",")]
    return f"{key}{eq}{','.join(parts)}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
