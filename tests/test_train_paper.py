from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import tscode_yolo  # noqa: F401  # plugs in, also where the package is not installed

SIZE = 128
PLAIN = dict.fromkeys(
    ("mosaic", "hsv_h", "hsv_s", "hsv_v", "fliplr", "translate", "scale", "erasing", "weight_decay"), 0.0
)


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """Data YAML of four images with a bright box (class 0) and a dark disc (class 1) each; trained and judged on."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        image = rng.integers(90, 160, (SIZE, SIZE, 3), dtype=np.uint8)
        x, y, w, h = 8 + 6 * i, 12 + 3 * i, 30 + 4 * i, 40 - 4 * i
        image[y : y + h, x : x + w] = (240, 200, 60)
        cx, cy, r = 92 - 4 * i, 90 - 2 * i, 14 + 3 * i
        cv2.circle(image, (cx, cy), r, (20, 40, 10), -1)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
        rows = [(0, x + w / 2, y + h / 2, w, h), (1, cx + 0.5, cy + 0.5, 2 * r + 1, 2 * r + 1)]
        text = "\n".join(f"{c} " + " ".join(f"{v / SIZE:.6f}" for v in box) for c, *box in rows)
        (tmp_path / "labels" / f"{i}.txt").write_text(text)
    data = tmp_path / "few.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [box, disc]\n")
    return data


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("fcos-r50-fpn-tscode", 100), ("gfl-r50-fpn-tscode", 60)])
def test_overfits_a_few_images_validates_and_exports_with_parity(name, epochs, few_images, tmp_path):
    import onnxruntime
    from ultralytics import YOLO

    common = {"data": str(few_images), "imgsz": SIZE, "batch": 4, "workers": 0, "device": "cpu", "plots": False}
    model = YOLO(f"{name}.yaml")
    model.train(
        **common, **PLAIN, epochs=epochs, nbs=4, optimizer="AdamW", lr0=5e-4, lrf=0.1, warmup_epochs=0, amp=False,
        val=False, save=False, seed=0, project=str(tmp_path), name="run",
    )  # fmt: skip
    assert model.model.stride.tolist() == [8, 16, 32, 64, 128]
    metrics = model.val(**common, project=str(tmp_path), name="val")
    assert metrics.box.map50 > 0.9

    best = YOLO(tmp_path / "run" / "weights" / "best.pt")
    file = best.export(format="onnx", imgsz=SIZE, device="cpu")
    image = cv2.imread(str(tmp_path / "images" / "0.png"))[..., ::-1] / np.float32(255)
    x = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
    with torch.no_grad():
        expected = best.model.float().eval()(torch.from_numpy(x))[0]
    assert expected.shape == (1, 4 + 2, 16**2 + 8**2 + 4**2 + 2**2 + 1)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x})
    assert_close(torch.from_numpy(out[:, :4]), expected[:, :4], rtol=0, atol=0.1)  # pixels
    assert_close(torch.from_numpy(out[:, 4:]), expected[:, 4:], rtol=0, atol=1e-3)


def test_the_papers_schedule_drops_after_epochs_8_and_11():
    path = Path(__file__).parents[1] / "examples" / "train_paper.py"
    spec = importlib.util.spec_from_file_location("train_paper", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=example.PAPER["lr0"])
    trainer = SimpleNamespace(epochs=12, start_epoch=0, optimizer=optimizer)
    example.drop_in_steps(trainer)
    rates = []
    optimizer.step()  # else torch warns about the host's order
    for _ in range(12):  # as the host's loop: the scheduler steps at the start of each epoch
        trainer.scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert rates == pytest.approx([0.01] * 8 + [0.001] * 3 + [0.0001])
