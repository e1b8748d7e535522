"""The stock commands, each from a fresh process outside the repository, on a TSCODE model."""

from __future__ import annotations

import csv
import inspect
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import fresh_python, run

pytestmark = pytest.mark.slow
SMALL = ("imgsz=96", "batch=4", "workers=0", "device=cpu")


def yolo(folder: Path, *arguments: object, **env: str) -> str:
    done = run("yolo", *arguments, cwd=folder, **env)
    return done.stdout + done.stderr


def rows(results: Path) -> list[dict[str, float]]:
    with results.open() as f:
        return [{k.strip(): float(v) for k, v in row.items()} for row in csv.DictReader(f)]


@pytest.fixture(scope="module")
def best(installed, shapes) -> Path:
    """best.pt of two epochs of tscode.yaml, the end-to-end model."""
    yolo(installed, "train", "model=tscode.yaml", f"data={shapes}", "epochs=2", "name=base", *SMALL)
    return installed / "runs/detect/base/weights/best.pt"


@pytest.fixture(scope="module")
def plain(installed, shapes) -> Path:
    """best.pt of one epoch of yolo11n-tscode.yaml, which has no one-to-one branches."""
    yolo(installed, "train", "model=yolo11n-tscode.yaml", f"data={shapes}", "epochs=1", "name=plain", *SMALL)
    return installed / "runs/detect/plain/weights/best.pt"


@pytest.fixture(scope="module")
def video(tmp_path_factory, shapes) -> Path:
    """Twelve frames of the drawn images, moving."""
    import cv2

    path = tmp_path_factory.mktemp("video") / "shapes.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 128))
    image = cv2.imread(str(shapes.parent / "images/val/00000.jpg"))
    for i in range(12):
        writer.write(cv2.copyMakeBorder(image, 0, 0, 2 * i, 0, cv2.BORDER_REFLECT)[:, :128])
    writer.release()
    return path


def test_the_readmes_first_command_trains_on_the_embedded_data(installed):
    out = yolo(installed, "train", "model=tscode.yaml", "data=shapes.yaml", "epochs=1", "name=first", *SMALL)
    assert "tscode_yolo.head.TSCODEDetect" in out
    assert (installed / "runs/detect/first/weights/last.pt").is_file()
    again = yolo(installed, "val", "model=runs/detect/first/weights/last.pt", "data=shapes.yaml", *SMALL[:1])
    assert "triangle" in again


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "MuSGD"])
def test_train_with_an_optimiser_by_name(installed, shapes, optimizer):
    from ultralytics.engine.trainer import BaseTrainer

    if optimizer not in inspect.getsource(BaseTrainer.build_optimizer):
        pytest.skip(f"this Ultralytics has no {optimizer}")
    name = f"opt-{optimizer}"
    options = ("epochs=2", f"optimizer={optimizer}", "lr0=0.001", f"name={name}", *SMALL)
    out = yolo(installed, "train", "model=yolo26n-tscode.yaml", f"data={shapes}", *options)
    assert ("Add warmup_bias_lr=0" in out) == (optimizer == "AdamW")
    losses = rows(installed / f"runs/detect/{name}/results.csv")[-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in losses.values())


def test_train_from_official_weights_prints_the_account(installed, shapes, shared):
    weights = shared / "weights/yolo26n-restored.pt"
    out = yolo(installed, "train", "model=tscode.yaml", f"pretrained={weights}", f"data={shapes}", "epochs=1", *SMALL)
    assert "(100 %)" in out
    assert "re-initialised" in out


def test_train_again_from_its_own_checkpoint_keeps_everything(installed, shapes, best):
    out = yolo(installed, "train", f"model={best}", f"data={shapes}", "epochs=1", *SMALL)
    assert "(100 %)" in out
    assert "re-initialised" not in out


@pytest.mark.parametrize(
    "extra",
    [
        ["cache=ram", "plots=True"],
        ["cache=disk", "rect=True"],
        ["freeze=10", "multi_scale=0.5"],
        ["single_cls=True"],
        ["classes=[0,2]", "plots=False"],
    ],
    ids=lambda e: e[0],
)
def test_train_with_what_users_turn_on(installed, shapes, extra):
    name = extra[0].split("=")[0] + extra[0][-3:].strip("]")
    from ultralytics.utils import DEFAULT_CFG_DICT

    if DEFAULT_CFG_DICT["multi_scale"] is False:  # a switch in older hosts, a fraction in newer ones
        extra = [e.replace("multi_scale=0.5", "multi_scale=True") for e in extra]
    yolo(installed, "train", "model=tscode.yaml", f"data={shapes}", "epochs=1", f"name={name}", *extra, *SMALL)
    assert (installed / f"runs/detect/{name}/weights/best.pt").is_file()


def test_workers_under_spawn(installed, shapes):
    code = f"""
import multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from ultralytics import YOLO
    YOLO("tscode.yaml").train(data={str(shapes)!r}, epochs=1, imgsz=96, batch=4, workers=2, device="cpu", name="spawn")
"""
    script = installed / "spawn.py"
    script.write_text(code)
    run(sys.executable, script, cwd=installed)
    assert (installed / "runs/detect/spawn/weights/last.pt").is_file()


def test_val_predict_and_stream(installed, shapes, best, video):
    assert "mAP50-95" in yolo(installed, "val", f"model={best}", f"data={shapes}", "rect=True", "plots=True")
    images = shapes.parent / "images/val"
    yolo(
        installed,
        "predict",
        f"model={best}",
        f"source={images}",
        "imgsz=96",
        "conf=0.001",
        "name=folder",
        "save_txt=True",
    )
    assert len(list((installed / "runs/detect/folder").glob("*.jpg"))) == 4
    yolo(installed, "predict", f"model={best}", f"source={images / '00000.jpg'}", "imgsz=160,96", "name=image")
    yolo(installed, "predict", f"model={best}", f"source={video}", "imgsz=96", "name=video")
    assert any((installed / "runs/detect/video").glob("shapes.*"))
    n = fresh_python(
        f"from ultralytics import YOLO; print(sum(1 for r in YOLO({str(best)!r}).predict({str(video)!r}, stream=True, "
        "imgsz=96, verbose=False)))",
        installed,
    )
    assert n.splitlines()[-1] == "12"


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort with ReID"])
def test_track(installed, plain, video, tracker):
    config = "bytetrack.yaml"
    if tracker != "bytetrack":
        from ultralytics.utils import ROOT

        config = installed / "reid.yaml"
        text = (ROOT / "cfg/trackers/botsort.yaml").read_text().replace("with_reid: False", "with_reid: True")
        assert "with_reid: True" in text
        config.write_text(text)
    out = yolo(installed, "track", f"model={plain}", f"source={video}", f"tracker={config}", "imgsz=96", "conf=0.01")
    assert "Results saved to" in out


def test_augment_and_visualize(installed, shapes, best):
    image = shapes.parent / "images/val/00000.jpg"
    out = yolo(installed, "predict", f"model={best}", f"source={image}", "imgsz=96", "augment=True", "name=tta")
    assert "does not support 'augment=True'" not in out
    yolo(installed, "predict", f"model={best}", f"source={image}", "imgsz=96", "visualize=True", "name=features")
    assert any((installed / "runs/detect/features").rglob("*.png")) or any(
        (installed / "runs/detect/features").rglob("*.jpg")
    )


@pytest.mark.parametrize("model", ["end-to-end", "one-to-many"])
@pytest.mark.parametrize("fmt", ["torchscript", "onnx"])
@pytest.mark.parametrize("size", [(640, 640), (480, 640)], ids=str)
def test_exports_equal_pytorch(installed, best, plain, fmt, size, model):
    """On the same input: boxes within 0.1 px, scores within 1e-3; both from a fresh process each."""
    pytest.importorskip("onnxruntime") if fmt == "onnx" else None
    weights = best if model == "end-to-end" else plain
    copy = installed / f"export-{fmt}-{size[0]}-{model}.pt"
    shutil.copy(weights, copy)
    yolo(installed, "export", f"model={copy}", f"format={fmt}", f"imgsz={size[0]},{size[1]}")
    code = f"""
import torch, numpy as np
from ultralytics import YOLO
x = torch.rand(1, 3, *{size}, generator=torch.Generator().manual_seed(0))
model = YOLO({str(copy)!r}).model.fuse(verbose=False).eval()
with torch.inference_mode():
    expected = model(x)[0]
if {fmt!r} == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession({str(copy.with_suffix(".onnx"))!r}, providers=["CPUExecutionProvider"])
    got = torch.from_numpy(session.run(None, {{session.get_inputs()[0].name: x.numpy()}})[0])
else:
    with torch.inference_mode():
        got = torch.jit.load({str(copy.with_suffix(".torchscript"))!r})(x)
assert got.shape == expected.shape, (got.shape, expected.shape)
if got.shape[-1] == 6:  # end-to-end rows are sorted by score and ties may change places: each finds its twin
    scores = (got[0, :, 4] - expected[0, :, 4]).abs().max().item()
    of_class = got[0, :, 5][None] == expected[0, :50, 5][:, None]
    apart = (got[0, None, :, :4] - expected[0, :50, None, :4]).abs().amax(-1)
    print(apart.where(of_class, torch.inf).amin(1).max().item(), scores)
else:
    print((got[0, :4] - expected[0, :4]).abs().max().item(), (got[0, 4:] - expected[0, 4:]).abs().max().item())
"""
    box, score = map(float, fresh_python(code, installed).splitlines()[-1].split())
    assert box < 0.1
    assert score < 1e-3


def test_a_dynamic_export_is_right_at_other_sizes(installed, plain):
    pytest.importorskip("onnxruntime")
    copy = installed / "dynamic.pt"
    shutil.copy(plain, copy)
    yolo(installed, "export", f"model={copy}", "format=onnx", "dynamic=True", "imgsz=128")
    code = f"""
import torch, onnxruntime
from ultralytics import YOLO
session = onnxruntime.InferenceSession({str(copy.with_suffix(".onnx"))!r}, providers=["CPUExecutionProvider"])
model = YOLO({str(copy)!r}).model.fuse(verbose=False).eval()
for size in ((1, 3, 96, 160), (2, 3, 160, 32), (1, 3, 128, 128)):
    x = torch.rand(*size)
    with torch.inference_mode():
        expected = model(x)[0]
    got = torch.from_numpy(session.run(None, {{session.get_inputs()[0].name: x.numpy()}})[0])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-1)
print("equal")
"""
    assert fresh_python(code, installed).splitlines()[-1] == "equal"


def test_benchmark(installed, shapes, best):
    pytest.importorskip("onnxruntime")
    out = yolo(installed, "benchmark", f"model={best}", f"data={shapes}", "imgsz=96", "format=onnx", "device=cpu")
    assert "ONNX" in out
    assert "❌" not in out.split("Benchmarks complete")[-1].split("ONNX", 1)[-1].splitlines()[0]


def test_tune(installed, shapes):
    code = (
        "from ultralytics import YOLO; YOLO('tscode.yaml').tune(data={!r}, epochs=1, iterations=2, imgsz=96, batch=4, "
        "workers=0, device='cpu', plots=False, save=False, val=True, name='tuned')"
    )
    fresh_python(code.format(str(shapes)), installed)
    assert len(list(installed.rglob("best_hyperparameters.yaml"))) == 1


def test_resume_after_kill_in_mid_epoch(installed, shapes):
    """Killed in the fourth of five epochs: resuming ends at five, each epoch once, the loss no higher than before."""
    code = """
import os, signal, sys
from ultralytics import YOLO
model = YOLO("yolo11n-tscode.yaml")
def die(trainer):
    if trainer.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
model.add_callback("on_train_batch_end", die)
model.train(data=sys.argv[1], epochs=5, imgsz=96, batch=4, workers=0, device="cpu", name="killed", exist_ok=True)
"""
    script = installed / "killed.py"
    script.write_text(code)
    assert run(sys.executable, script, shapes, cwd=installed, check=False).returncode == -signal.SIGKILL
    results = installed / "runs/detect/killed/results.csv"
    assert [r["epoch"] for r in rows(results)] == [1, 2, 3]
    yolo(installed, "train", "resume=True", "model=runs/detect/killed/weights/last.pt")
    after = rows(results)
    assert [r["epoch"] for r in after] == [1, 2, 3, 4, 5]
    assert after[-1]["train/cls_loss"] < 1.2 * after[2]["train/cls_loss"]


def test_distillation_from_stock_weights(installed, shapes, shared):
    from ultralytics.utils import DEFAULT_CFG_DICT

    if "distill_model" not in DEFAULT_CFG_DICT:
        pytest.skip("this Ultralytics has no distillation")
    teacher = shared / "weights/yolo26n-restored.pt"
    options = (f"distill_model={teacher}", "epochs=1", "name=distilled", *SMALL)
    yolo(installed, "train", "model=tscode.yaml", f"data={shapes}", *options)
    losses = rows(installed / "runs/detect/distilled/results.csv")[-1]
    assert losses["train/dis_loss"] > 0


def test_restricted_loading_trains_and_loads(installed, shapes, best):
    env = {"ULTRALYTICS_SAFE_LOAD": "1"}
    yolo(installed, "train", "model=tscode.yaml", f"data={shapes}", "epochs=1", "name=safe", *SMALL, **env)
    out = fresh_python(
        "from ultralytics import YOLO; print(type(YOLO('runs/detect/safe/weights/best.pt').model.model[-1]).__name__)",
        installed,
        **env,
    )
    assert out.splitlines()[-1] == "TSCODEDetect"


DDP = '''
"""The host's own multi-GPU path (temp file, torch.distributed.run) with its CUDA calls replaced by CPU ones."""
import os
import sys
import torch
from torch import distributed as dist
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

class TwoCPUs(DetectionTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = 2, "LOCAL_RANK" not in os.environ  # not the host's constant: pickled with us

    def _setup_ddp(self, *args):
        parallel = torch.nn.parallel.DistributedDataParallel
        torch.nn.parallel.DistributedDataParallel = lambda m, device_ids, **kwargs: parallel(m, **kwargs)
        self.device = torch.device("cpu")
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=2)

    def final_eval(self):
        """Skipped: the host's picks a CUDA device by rank."""

if __name__ == "__main__":
    YOLO("tscode.yaml").train(
        trainer=TwoCPUs, data=sys.argv[1], epochs=2, imgsz=96, batch=4, workers=0, device="cpu", name="ddp", val=True
    )
'''


def test_two_ranks_train_through_the_hosts_ddp_file(installed, shapes):
    from ultralytics.engine.trainer import BaseTrainer

    if "self.ddp = " not in inspect.getsource(BaseTrainer.__init__):
        pytest.skip("this Ultralytics decides on DDP inside train(), where a test cannot put two CPUs")
    script = installed / "ddp.py"
    script.write_text(DDP)
    done = run(sys.executable, script, shapes, cwd=installed)
    assert "torch.distributed.run" in done.stdout + done.stderr
    assert [r["epoch"] for r in rows(installed / "runs/detect/ddp/results.csv")] == [1, 2]
    assert "TSCODEDetect" in fresh_python(
        "from ultralytics import YOLO; print(type(YOLO('runs/detect/ddp/weights/last.pt').model.model[-1]))", installed
    )


def test_a_stock_training_is_bitwise_the_same_with_and_without_the_plugin(installed, shapes):
    def weights(name: str, **env: str) -> dict[str, torch.Tensor]:
        out = yolo(
            installed,
            "train",
            "model=yolo11n.yaml",
            f"data={shapes}",
            "epochs=1",
            f"name={name}",
            "seed=5",
            *SMALL,
            **env,
        )
        assert "TSCODE" not in out
        model = torch.load(installed / f"runs/detect/{name}/weights/last.pt", weights_only=False)["model"]
        return model.state_dict()

    on, off = weights("stock-on"), weights("stock-off", TSCODE_YOLO_AUTOLOAD="0")
    assert on.keys() == off.keys()
    assert all(torch.equal(on[k], off[k]) for k in on)


def test_python_api(installed, shapes):
    code = f"""
from ultralytics import YOLO
model = YOLO("tscode.yaml")
model.info()
model.train(data={str(shapes)!r}, epochs=1, imgsz=96, batch=4, workers=0, device="cpu", name="api", plots=False)
image = {str(shapes.parent / "images/val/00000.jpg")!r}
metrics = model.val(imgsz=96, plots=False)
model.predict(image, imgsz=96)
list(model.track([image] * 3, imgsz=96, stream=True, persist=True))
model.export(format="torchscript", imgsz=96)
again = YOLO("runs/detect/api/weights/best.pt")
again.fuse()
print(type(again.model.model[-1]).__module__, len(again.names), int(metrics.nt_per_class.sum()))
"""
    labels = sum(len(f.read_text().splitlines()) for f in (shapes.parent / "labels/val").glob("*.txt"))
    assert fresh_python(code, installed).splitlines()[-1] == f"tscode_yolo.head 4 {labels}"


def test_processes_end_with_an_error_code_and_one_message_for_a_wrong_option(installed, shapes):
    text = (
        (Path(__file__).parent.parent / "cfg/tscode.yaml")
        .read_text()
        .replace("finer: true", "finer: true\n  sec: false")
    )
    (installed / "wrong.yaml").write_text(text)
    done = run("yolo", "train", "model=wrong.yaml", f"data={shapes}", "epochs=1", cwd=installed, check=False)
    assert done.returncode != 0
    assert "unknown tscode option 'sec'; did you mean 'sce'?" in done.stderr
