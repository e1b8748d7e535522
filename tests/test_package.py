"""What the wheel and the editable install carry, each installed into an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, fresh_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "-w", folder, REPO)
    return next(folder.glob("tscode_yolo-*.whl"))


def pip(python: str | Path, *arguments: object) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(folder: Path) -> Path:
    """A virtual environment that borrows this one's packages, but not its copy of ours; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    borrowed = [p for p in sys.path if p.endswith("-packages")]
    Path(site, "borrowed.pth").write_text("\n".join(borrowed) + "\n")  # .pth files in there are not processed
    return python


def test_the_wheel_carries_yamls_autoload_files_and_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {p.relative_to(REPO).as_posix() for p in (REPO / "cfg").rglob("*.yaml")}
    assert {f"tscode_yolo/{name}" for name in shipped} <= names
    assert {"tscode_yolo.pth", "tscode_yolo.start", "tscode_yolo/py.typed"} <= names
    assert not [n for n in names if n.startswith(("tests", "examples"))]
    text = zipfile.ZipFile(wheel).read("tscode_yolo.pth").decode()
    assert text == "import tscode_yolo\n"  # a plain import: scanners distrust anything else


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_both_kinds_of_install_plug_in_by_themselves(wheel, editable, tmp_path):
    python = environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", *(["-e", REPO] if editable else ["--force-reinstall", wheel]))
    outside = tmp_path / "outside"
    outside.mkdir()
    code = """
import sys
loaded = "tscode_yolo" in sys.modules and not any(m in sys.modules for m in ("torch", "ultralytics", "importlib.util"))
from ultralytics.nn.tasks import DetectionModel
from tscode_yolo.shipped import cfg_dir
import tscode_yolo
print(loaded, type(DetectionModel("yolo11n-tscode.yaml", verbose=False).model[-1]).__name__, tscode_yolo.__file__)
"""
    out = run_in(python, code, outside)
    loaded, head, file = out.splitlines()[-1].split(" ", 2)
    assert (loaded, head) == ("True", "TSCODEDetect")
    assert Path(file).is_relative_to(REPO if editable else tmp_path)


def run_in(python: Path, code: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_checkpoint_loads_in_a_process_that_never_imported_us(installed, tmp_path):
    fresh_python(
        "from ultralytics import YOLO; YOLO('yolo11n-tscode.yaml').save('saved.pt')",
        installed,
    )
    code = "from ultralytics import YOLO; print(type(YOLO('saved.pt').model.model[-1]).__name__)"
    assert fresh_python(code, installed).splitlines()[-1] == "TSCODEDetect"
    assert fresh_python(code, installed, TSCODE_YOLO_AUTOLOAD="0").splitlines()[-1] == "TSCODEDetect"
