"""examples/onnx_standalone.py: on hand-made graphs of known output, and (slow) against the host on real exports."""

from __future__ import annotations

import shutil
import sys

import cv2
import numpy as np
import onnx
import pytest
from conftest import REPO, run
from onnx import TensorProto, helper, numpy_helper

SCRIPT = REPO / "examples/onnx_standalone.py"
ALONE = (  # nothing but what the script says it needs; an import of anything else of weight fails
    "import sys, runpy\n"
    "for name in ('torch', 'torchvision', 'ultralytics', 'tscode_yolo', 'scipy', 'PIL', 'onnx'):\n"
    "    sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def alone(*args, cwd):
    """Run the script without torch and Ultralytics; the lines it prints, split."""
    return [line.split() for line in run(sys.executable, "-c", ALONE, SCRIPT, *args, cwd=cwd).stdout.splitlines()]


def constant_model(path, output, shape=(1, 3, 64, 64), dtype=TensorProto.FLOAT, **metadata):
    """An .onnx file that answers every image with `output`, described as the host describes its exports."""
    node = helper.make_node("Constant", [], ["output0"], value=numpy_helper.from_array(np.float32([output])))
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info("images", dtype, list(shape))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    described = {"names": {0: "cell", 1: "dust"}, "stride": 32, "imgsz": [64, 64], "end2end": False, "args": {}}
    for key, value in {**described, **metadata}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.save(model, path)
    return path


# Three anchors, xywh and two class scores: a cell, its double (IoU 15/17 > 0.7), and dust in the same place.
RAW = np.float32([[32, 32, 16, 8, 0.9, 0.1], [32.5, 32, 15, 8, 0.8, 0.1], [32, 32, 16, 8, 0.1, 0.6]]).T
# The same as final rows: xyxy, score, class; the last one is padding.
FINAL = [[24, 28, 40, 36, 0.9, 0], [24, 28, 40, 36, 0.6, 1], [0, 0, 0, 0, 0, 0]]
# The 200x100 image is scaled by 0.32 to 64x32 and padded by 16 above: (24, 28 - 16) / 0.32 and (40, 36 - 16) / 0.32.
STATIC = ["75.0", "37.5", "125.0", "62.5"]
# A dynamic input is not padded (32 is a multiple of the stride): (24, 28) / 0.32 and (40, 36 -> 112.5, cut to 100).
DYNAMIC = ["75.0", "87.5", "125.0", "100.0"]


@pytest.mark.parametrize(
    ("output", "options", "box"),
    [
        (RAW, {}, STATIC),
        (RAW, {"shape": ("batch", 3, "height", "width")}, DYNAMIC),
        (FINAL, {"end2end": True}, STATIC),
        (FINAL, {"args": {"nms": True, "batch": 1}}, STATIC),
        (FINAL, {"args": {"nms": True}, "shape": (4, 3, 64, 64)}, STATIC),
        (RAW, {"dtype": TensorProto.FLOAT16}, STATIC),
    ],
    ids=["plain", "dynamic", "end2end", "nms", "batch4", "half"],
)
def test_it_gives_the_boxes_worked_out_by_hand_without_torch(tmp_path, output, options, box):
    model = constant_model(tmp_path / "best.onnx", output, **options)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((100, 200, 3), np.uint8))
    assert alone(model, tmp_path / "image.png", cwd=tmp_path) == [
        ["0", "cell", "0.900", *box],
        ["0", "dust", "0.600", *box],
    ]


def test_a_video_gets_every_frame_back(tmp_path):
    model = constant_model(tmp_path / "best.onnx", RAW)
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (200, 100))
    for _ in range(5):
        writer.write(np.zeros((100, 200, 3), np.uint8))
    writer.release()
    lines = alone(model, tmp_path / "in.mp4", tmp_path / "out.mp4", "0.7", cwd=tmp_path)
    assert [(number, name) for number, name, *_ in lines] == [(str(i), "cell") for i in range(5)]
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    assert [f.shape for f in frames] == [(100, 200, 3)] * 5
    assert frames[0][37:40, 75:80].max() > 100  # the box was drawn


def test_without_a_readable_file_it_says_so(tmp_path):
    model = constant_model(tmp_path / "best.onnx", RAW)
    done = run(sys.executable, SCRIPT, model, "nothing.jpg", cwd=tmp_path, check=False)
    assert (done.returncode, "expected an image or video" in done.stderr) == (1, True)
    assert run(sys.executable, SCRIPT, cwd=tmp_path, check=False).returncode == 2


def test_what_cannot_be_written_is_an_error(tmp_path):
    model = constant_model(tmp_path / "best.onnx", RAW)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((100, 200, 3), np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (200, 100))
    writer.write(np.zeros((100, 200, 3), np.uint8))
    writer.release()
    for source, out, message in (
        ("image.png", "no/folder.png", "cannot be written"),
        ("image.png", "image.xyz", "expected a name with the extension of an image"),
        ("in.mp4", "no/folder.mp4", "the video cannot be written"),
    ):
        done = run(sys.executable, SCRIPT, model, source, out, cwd=tmp_path, check=False)
        assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_a_wrong_model_or_confidence_ends_in_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    bare = constant_model(tmp_path / "best.onnx", RAW)
    described = onnx.load(bare)
    del described.metadata_props[:]
    onnx.save(described, tmp_path / "bare.onnx")
    constant_model(tmp_path / "stride.onnx", RAW, stride="abc")
    for arguments, message in (
        (["nowhere.onnx", "x.png"], "nowhere.onnx: expected an .onnx file"),
        (["text.onnx", "x.png"], "text.onnx: expected an .onnx file"),
        (["bare.onnx", "x.png"], "expected the metadata that `yolo export` writes (names, stride, imgsz), got none"),
        (["stride.onnx", "x.png"], "expected the metadata that `yolo export` writes"),
        (["best.onnx", "x.png", "o.png", "high"], "high: expected a confidence from 0 to 1"),
        (["best.onnx", "x.png", "o.png", "nan"], "nan: expected a confidence from 0 to 1"),
    ):
        done = run(sys.executable, SCRIPT, *arguments, cwd=tmp_path, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert message in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("yolo11n", {"imgsz": 320}),
        ("yolo11n", {"imgsz": [192, 320]}),
        ("yolo11n", {"imgsz": 320, "dynamic": True}),
        ("yolo11n", {"imgsz": 320, "nms": True, "conf": 0.25}),
        ("yolo26n", {"imgsz": 320, "nms": False}),
        ("yolo26n", {"imgsz": 320}),
    ],
    ids=["static", "oblong", "dynamic", "nms", "end2end", "one2many"],
)
def test_it_gives_what_the_host_gives_from_the_same_file(tmp_path, shared, name, options):
    """On trained weights and a photograph: a random network answers with ties, which NMS may break either way."""
    from ultralytics import YOLO

    weights = shutil.copy(shared / f"weights/{name}-restored.pt", tmp_path / "best.pt")
    photo = sorted((shared / "data/coco128/images/val").glob("*.jpg"))[0]
    file = YOLO(weights).export(format="onnx", verbose=False, **options)
    result = YOLO(file).predict(photo, conf=0.25, iou=0.7, imgsz=options["imgsz"], verbose=False)[0]
    expected = [(result.names[int(k)], [*box, c]) for *box, c, k in result.boxes.data.tolist()]
    lines = alone(file, photo, tmp_path / "o.png", "0.25", cwd=tmp_path)
    got = [(" ".join(line[1:-5]), [*map(float, line[-4:]), float(line[-5])]) for line in lines]
    assert len(got) == len(expected) > 1
    for (name_a, a), (name_b, b) in zip(got, expected):  # both best first
        assert name_a == name_b
        np.testing.assert_allclose(a, b, atol=0.06)
