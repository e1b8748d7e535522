"""The examples run as a user would run them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import cv2
import pytest
from conftest import REPO, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(installed, shapes):
    """Weights from the first example, two epochs."""
    options = ("imgsz=96", "batch=4", "workers=0", "device=cpu", "name=example")
    out = run(sys.executable, REPO / "examples/train.py", "tscode.yaml", shapes, "2", *options, cwd=installed).stdout
    assert "AP50" in out
    return installed / "runs/detect/example/weights/best.pt"


@pytest.fixture(scope="module")
def clip(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (128, 128))
    image = cv2.imread(str(shapes.parent / "images/val/00000.jpg"))
    for _ in range(30):
        writer.write(image)
    writer.release()
    return path


def test_predict_prints_objects_and_says_where_images_are(installed, shapes, trained):
    images = shapes.parent / "images/val"
    out = run(sys.executable, REPO / "examples/predict.py", trained, images, "0.001", cwd=installed).stdout
    assert out.count(" objects\n") == 4
    assert "saved to" in out


def test_predict_without_arguments_explains_itself(installed):
    done = run(sys.executable, REPO / "examples/predict.py", cwd=installed, check=False)
    assert done.returncode == 2
    assert "WEIGHTS IMAGE_OR_FOLDER" in done.stderr


def test_the_start_up_cost_is_measured(installed, tmp_path):
    import json

    run(sys.executable, REPO / "examples/benchmark_startup.py", tmp_path / "start.json", cwd=installed)
    assert json.loads((tmp_path / "start.json").read_text())["microseconds"]["median"] > 0


def test_the_latency_of_scales_is_measured_once(installed, tmp_path):
    import json

    file = tmp_path / "latency.json"
    options = ("imgsz=64", "families=yolo11", "scales=n", "formats=pytorch,onnx", "rounds=6")
    command = (sys.executable, REPO / "examples/head_latency.py", f"json={file}", *options)
    assert "yolo11n, onnx, batch 1, model:" in run(*command, cwd=installed).stdout
    rows = json.loads(file.read_text())["rows"]
    assert [(r["format"], r["part"]) for r in rows] == [("pytorch", "model"), ("pytorch", "head"), ("onnx", "model")]
    assert all(r["ratio"]["low"] <= r["ratio"]["median"] <= r["ratio"]["high"] for r in rows)
    assert "yolo11n" not in run(*command, cwd=installed).stdout
    other = run(*command, "threads=2", cwd=installed, check=False)
    assert "holds rows with another threads" in other.stderr
    other = run(*command[:2], "json=graph.json", "formats=cudagraph", "device=cpu", cwd=installed, check=False)
    assert "formats=cudagraph: expected a CUDA device, got device=cpu" in other.stderr


def test_what_bins_in_place_are_worth_is_measured(installed, tmp_path):
    import json

    file = tmp_path / "dfl.json"
    command = (sys.executable, REPO / "examples/dfl_in_place.py", f"json={file}", "imgsz=64", "rounds=6")
    run(*command, "models=yolo11n", "formats=onnx", cwd=installed)
    rows = json.loads(file.read_text())["rows"]
    assert [r["variant"] for r in rows] == ["tscode, moved", "tscode, in place", "stock, in place"]
    assert all(set(r["ms"]) == {r["variant"], "yolo11n"} for r in rows)
    other = run(*command, "models=yolo26n", cwd=installed, check=False)
    assert "expected a model whose boxes have bins" in other.stderr


def test_a_border_is_put_around_images_and_labels(installed, trained, tmp_path):
    """At 0 pixels the AP is that of `yolo val`; a border of another width is another picture with the same objects."""
    import json

    file = tmp_path / "border.json"
    command = (
        sys.executable,
        REPO / "examples/border_effect.py",
        f"json={file}",
        f"model={trained}",
        "data=shapes.yaml",
    )
    run(*command, "imgsz=96", "borders=0,16", "images=1000", cwd=installed)
    found = json.loads(file.read_text())
    code = (
        "import sys; from ultralytics import YOLO; "
        "m = YOLO(sys.argv[1]).val(data='shapes.yaml', imgsz=96, rect=False, plots=False, workers=0); print(m.box.map)"
    )
    ap = 100 * float(run(sys.executable, "-c", code, trained, cwd=installed).stdout.splitlines()[-1])
    assert [r["border"] for r in found["rows"]] == [0, 16]
    assert found["rows"][0]["AP"] == pytest.approx(ap, abs=3)
    assert found["images"] == found["data"]["images"]["val"]
    other = run(*command, "imgsz=96", "borders=8", cwd=installed, check=False)
    assert "borders=8: expected a multiple of 16" in other.stderr


@pytest.mark.parametrize("track", [[], ["--track"]], ids=["detect", "track"])
def test_stream_reads_a_file_to_its_end_and_writes_every_frame(installed, trained, clip, track):
    out = installed / "annotated.mp4"
    script = REPO / "examples/stream.py"
    text = run(sys.executable, script, trained, clip, "--out", out, "--imgsz", "96", *track, cwd=installed).stdout
    assert "30 frames" in text
    assert "FPS" in text
    assert int(cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT)) == 30


def test_stream_ends_cleanly_on_ctrl_c(installed, trained, tmp_path, clip):
    long = tmp_path / "long.mp4"
    writer = cv2.VideoWriter(str(long), cv2.VideoWriter_fourcc(*"mp4v"), 25, (128, 128))
    frame = cv2.VideoCapture(str(clip)).read()[1]
    for _ in range(5000):
        writer.write(frame)
    writer.release()
    out = tmp_path / "cut.mp4"
    command = [sys.executable, REPO / "examples/stream.py", trained, long, "--out", out, "--imgsz", "96"]
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=installed,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has us ignore it
    )
    assert process.stdout is not None
    while "frame 25" not in process.stdout.readline():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "stopped" in rest
    assert 25 <= int(cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT)) < 5000


def test_memory_does_not_grow_along_a_stream(installed, trained, clip):
    """Resident memory after 90 and after 540 frames of the same clip, in one process."""
    code = f"""
import psutil
from ultralytics import YOLO
model, process, seen = YOLO({str(trained)!r}), psutil.Process(), []
for repeat in range(18):
    frames = sum(1 for _ in model.track({str(clip)!r}, stream=True, persist=True, imgsz=96, verbose=False))
    seen.append(process.memory_info().rss)
print(frames, (seen[-1] - seen[2]) / 2**20)
"""
    frames, grown = run(sys.executable, "-c", code, cwd=installed).stdout.splitlines()[-1].split()
    assert int(frames) == 30
    assert float(grown) < 30
