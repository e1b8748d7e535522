"""Fixtures for all tests. The environment is set before anything imports the host."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="tscode-tests-"))

import numpy as np
import pytest
import torch

import tscode_yolo

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TSCODE_SHARED", REPO.parent / "shared"))
torch.set_num_threads(1)  # these models are tiny: threads cost more than they bring
CHANNELS = (16, 24, 32, 40)  # of C2, P3, P4, P5 in unit tests: all different, so that a mix-up shows


@pytest.fixture(autouse=True)
def keep_random_state() -> Iterator[None]:
    """No test leaks random state or the host's class-wide switches into the next."""
    from ultralytics.nn.modules.head import Detect

    states = random.getstate(), np.random.get_state(), torch.get_rng_state(), Detect.legacy
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    Detect.legacy = states[3]


@pytest.fixture
def pyramid() -> Callable[..., list[torch.Tensor]]:
    """Make C2, P3, P4, P5 of an image: (height, width, batch) to four maps of the channels CHANNELS."""

    def make(height: int = 96, width: int = 160, batch: int = 2, finer: bool = True) -> list[torch.Tensor]:
        maps = [torch.randn(batch, c, height // s, width // s) for c, s in zip(CHANNELS, (4, 8, 16, 32))]
        return maps if finer else maps[1:]

    return make


@pytest.fixture
def make_head() -> Callable[..., torch.nn.Module]:
    """Build a head for `pyramid` as the host would: strides set, biases initialised."""

    def make(
        nc: int = 5, reg_max: int = 4, end2end: bool = False, legacy: bool = False, **options: object
    ) -> torch.nn.Module:
        from ultralytics.nn.modules.head import Detect

        from tscode_yolo.head import TSCODEDetect

        Detect.legacy = legacy
        options.setdefault("finer", True)
        ch = CHANNELS if options["finer"] else CHANNELS[1:]
        head = TSCODEDetect(nc, reg_max, end2end, ch, options)
        head.stride = torch.tensor([8.0, 16.0, 32.0])
        head.bias_init()
        return head

    return make


def wake(module: torch.nn.Module) -> torch.nn.Module:
    """Give every norm statistics of its own, and weights to what starts at zero: else nothing is held against nothing.

    Returns:
        The module.
    """
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(m.running_mean, std=0.2)
            torch.nn.init.uniform_(m.running_var, 0.5, 2)
        if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.GroupNorm)):
            torch.nn.init.uniform_(m.weight, 0.5, 2)
            torch.nn.init.normal_(m.bias, std=0.2)
    for p in module.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return module


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the repository."""
    if not (SHARED / "weights").is_dir():
        pytest.skip("no ../shared beside the repository (real data and weights); TSCODE_SHARED names another place")
    return SHARED


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml of eight small drawn images for training and the same for validation."""
    from tscode_yolo.shapes import NAMES, make_shapes

    root = make_shapes(tmp_path_factory.mktemp("data") / "shapes", {"train": 8, "val": 4}, size=128)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    data = root / "data.yaml"
    data.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


def run(*command: object, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh process: this environment's programs first, host settings (runs_dir, ...) of `cwd`."""
    config = cwd / ".config"
    config.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "YOLO_CONFIG_DIR": str(config), **env}
    environment.pop("PYTEST_CURRENT_TEST", None)  # the host would save its runs elsewhere
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{command} failed with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def fresh_python(code: str, cwd: Path, **env: str) -> str:
    """Run Python code in a fresh interpreter outside the repository; returns what it printed."""
    return run(sys.executable, "-c", code, cwd=cwd, **env).stdout.strip()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the stock commands in, provided this environment has the package installed with its .pth."""
    folder = tmp_path_factory.mktemp("outside")
    if fresh_python("import sys; print('tscode_yolo' in sys.modules)", folder) != "True":
        pytest.skip("tscode_yolo is not installed in this environment (pip install .), so no fresh process loads it")
    return folder


def pytest_report_header() -> str:
    import ultralytics

    return (
        f"tscode_yolo {tscode_yolo.__version__}, ultralytics {ultralytics.__version__}, shared data: {SHARED.is_dir()}"
    )
