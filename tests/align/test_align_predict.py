"""Raw predictions are the host's own: same boxes, same scores, every branch, every head."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.modules.head import Detect

from tscode_yolo import cli
from tscode_yolo.align.cam import BRANCHES, NoGradient, branch_maps
from tscode_yolo.align.collect import Settings, collect
from tscode_yolo.align.match import candidates, suppress
from tscode_yolo.align.predict import Detector, letterbox
from tscode_yolo.align.source import open_source
from tscode_yolo.verbs.loading import with_options

from .align_scenes import draw_dataset

SHARED = Path(os.environ.get("TSCODE_SHARED", Path(__file__).parents[3] / "shared"))
NAMES = {0: "box", 1: "disc"}
CAN_SWITCH = getattr(Detect.end2end, "fset", None) is not None  # not in ultralytics 8.4.0
switch = pytest.mark.skipif(not CAN_SWITCH, reason="this ultralytics cannot choose the branch of a head")
HEADS = [
    *((name, None) for name in ("yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolo11n-tscode.yaml")),
    *(pytest.param(f"yolo26n{kind}.yaml", e, marks=switch) for kind in ("", "-tscode") for e in (True, False)),
]


def _image(seed=0, height=96, width=80):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_an_rtdetr_yaml_is_refused_for_what_it_is():
    with pytest.raises(ValueError, match=r"model=rtdetr-l\.yaml: .*RT-DETR and exported formats have no anchor points"):
        Detector("rtdetr-l.yaml")


@pytest.mark.parametrize(("name", "end2end"), HEADS)
def test_raw_predictions_equal_the_networks_output(name, end2end):
    """Against the network itself: its decoded output, or for an end-to-end head its top rows."""
    torch.manual_seed(1)
    host = YOLO(name, verbose=False)
    detector = Detector(host, imgsz=96, end2end=end2end)
    padded, frame = letterbox(_image(), 96, 32)
    raw = detector([padded], [frame])[0]
    head = host.model.model[-1]
    if end2end is not None:
        head.end2end = end2end
    with torch.no_grad():
        pixels = torch.from_numpy(padded[..., ::-1].transpose(2, 0, 1).copy())[None].float() / 255
        expected = host.model.eval().float()(pixels)[0][0].numpy()
    assert detector.end2end == bool(head.end2end)
    if detector.end2end:
        pairs = candidates(raw, 0.0)
        got = np.column_stack([raw.boxes[pairs.anchor], pairs.score])[: len(expected)]
        want = expected[:, :5].copy()
        want[:, :4] = frame.to_image(want[:, :4])
        np.testing.assert_allclose(got[:20, 4], want[:20, 4], atol=1e-5)
        top = candidates(raw, float(want[0, 4]) - 1e-6)
        assert np.abs(raw.boxes[top.anchor] - want[0, :4]).sum(1).min() < 0.05
    else:
        assert raw.scores.shape == (expected.shape[1], 80)
        np.testing.assert_allclose(raw.scores, expected[4:].T, atol=1e-5)
        centre = (raw.boxes[:, :2] + raw.boxes[:, 2:]) / 2 * np.array(frame.gain) + np.array(frame.pad)
        np.testing.assert_allclose(centre, expected[:2].T, atol=0.05)


def test_the_users_model_is_left_alone():
    host = YOLO("yolo11n.yaml", verbose=False)
    before = {k: v.clone() for k, v in host.model.state_dict().items()}
    Detector(host, imgsz=96)
    after = host.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.requires_grad for n, p in host.model.named_parameters() if "dfl" not in n)


@pytest.mark.parametrize(("name", "task"), [("seg", "segment"), ("pose", "pose"), ("cls", "classify"), ("obb", "obb")])
def test_models_of_other_tasks_are_refused_by_name(name, task):
    with pytest.raises(ValueError, match=f"expected a detection model, got one of the task '{task}'"):
        Detector(YOLO(f"yolo11n-{name}.yaml", verbose=False))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_files_that_are_no_checkpoint_give_one_clear_error(tmp_path, dataset, content, capsys):
    """An empty file, junk, and a file that torch reads but that holds no model: exit code 2 and a line."""
    file = tmp_path / "a.pt"
    torch.save({"model": torch.nn.Linear(2, 2)}, file) if content is None else file.write_bytes(content)
    assert cli.main(["align", f"model={file}", f"data={dataset}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tscode: ")
    assert "a.pt" in said


def test_a_branch_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="one-to-one branch"):
        Detector(YOLO("yolo11n.yaml", verbose=False), end2end=True)


@pytest.mark.parametrize("rect", [True, False])
def test_detections_equal_the_hosts_validator(tmp_path, checkpoint, rect):
    """Every box after NMS that ``yolo val`` scores, image by image, in pixels of the padded input.

    The host runs channels-last, so values are rounded otherwise: on some processors a pair that overlaps by the
    threshold itself falls to the other side, and with it what it suppresses or not.
    """
    data = draw_dataset(tmp_path / "set", 4)
    seen: dict[str, np.ndarray] = {}

    class Spy(DetectionValidator):
        def update_metrics(self, preds, batch):
            for file, p in zip(batch["im_file"], preds, strict=True):
                seen[Path(file).name] = torch.cat([p["bboxes"], p["conf"][:, None], p["cls"][:, None]], 1).numpy()
            super().update_metrics(preds, batch)

    args = {"model": checkpoint, "data": str(data), "imgsz": 96, "rect": rect, "batch": 1, "plots": False,
            "device": "cpu", "mode": "val", "conf": 0.001, "iou": 0.7, "verbose": False}  # fmt: skip
    Spy(save_dir=tmp_path / "val", args=args)()
    detector = Detector(checkpoint, imgsz=96, rect=rect)
    for sample in open_source(str(data), NAMES):
        padded, frame = letterbox(sample.image, 96, 32, rect=rect)
        raw = detector([padded], [frame])[0]
        pairs = candidates(raw, 0.001)
        final = suppress(pairs, 0.7)[:300]
        boxes = raw.boxes[pairs.anchor[final]] * np.array(frame.gain * 2) + np.array(frame.pad * 2)
        theirs = seen[sample.path.name]
        ours = np.column_stack([boxes, pairs.score[final], pairs.cls[final]])
        assert min(len(ours), len(theirs)) > 20
        same = (np.abs(ours[:, None] - theirs) <= np.array([0.2] * 4 + [5e-3, 0])).all(-1)
        assert min(same.any(1).mean(), same.any(0).mean()) > 0.97


@pytest.mark.parametrize("lqe", [True, False])
@pytest.mark.parametrize(("name", "end2end"), HEADS)
def test_gradient_maps_show_only_the_levels_a_branch_reads(name, end2end, lqe, tmp_path):
    """A stock branch reads its own level alone; a TSCODE box branch its neighbours too, a class logit them by lqe."""
    torch.manual_seed(0)
    if "tscode" in name:
        content = with_options(name, {"sce_at": None, "dpe_at": None, "dpe_levels": [-1, 0, 1], "lqe": lqe})
        name = str(tmp_path / name)
        Path(name).write_text(yaml.safe_dump({k: v for k, v in content.items() if k != "yaml_file"}))
    elif lqe:
        pytest.skip("a stock head has no quality estimate")
    model = YOLO(name, verbose=False)
    for parameter in model.model.model[-1].parameters():  # a fresh TSCODE head adds nothing of other levels yet
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    detector = Detector(model, imgsz=96, end2end=end2end)
    anchor = _anchor_of_stride_16(detector)
    if detector.end2end and not CAN_SWITCH:
        with pytest.raises(NoGradient, match="detaches the one-to-one"):
            branch_maps(detector, _image(height=64, width=96), anchor, 0, np.array([8, 8, 60, 60.0]))
        return
    maps = branch_maps(detector, _image(height=64, width=96), anchor, 0, np.array([8, 8, 60, 60.0]))
    for branch in BRANCHES:
        found = maps[branch]
        assert sum(found.levels.values()) == pytest.approx(1)
        assert found.heat.shape == found.pixels.shape == (64, 96)
        assert 0 <= found.heat.min() <= found.heat.max() <= 1
        assert 0 < found.inside < 1
        if "tscode" not in name:
            assert found.levels[16] == pytest.approx(1)
    if "tscode" in name:
        assert {s for s, v in maps["box"].levels.items() if v > 0} == {8, 16, 32}
        read = {s for s, v in maps["class"].levels.items() if v > 0}
        assert (8 in read) == lqe  # P3 through the estimate alone, which the box tower feeds
        assert 16 in read
    assert not detector.head._forward_pre_hooks


def _anchor_of_stride_16(detector):
    """The middle anchor point of stride 16: after all those of stride 8."""
    _, frame = letterbox(_image(height=64, width=96), detector.imgsz, detector.stride, detector.rect)
    h, w = frame.shape
    return (h // 8) * (w // 8) + (h // 16) * (w // 16) // 2


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="shared weights are not here (TSCODE_SHARED)")
@pytest.mark.slow
@pytest.mark.parametrize(("weights", "expected"), [("yolo11n", 0.444), ("yolov8n", 0.436), ("yolo26n", 0.469)])
def test_ap_of_trained_models_is_near_the_hosts(weights, expected, tmp_path):
    """mAP50-95 the host measured on coco128 val (shared/data/README.md); it interpolates AP otherwise than COCO."""
    from tscode_yolo.align.measure import Measurer

    detector = Detector(str(SHARED / "weights" / f"{weights}-restored.pt"))
    source = open_source(str(SHARED / "data" / "coco128" / "data.yaml"), detector.names)
    collection = collect(source, [detector], Settings(examples=0), progress=False)
    values = Measurer(collection.collectors[0], 128, 80)(np.ones((1, 128), np.uint16))
    assert values["ap"][0, 0] == pytest.approx(expected, abs=0.015)
