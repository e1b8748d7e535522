"""Grafting: images, the distance of two heads, the fit, the checkpoint, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from tscode_yolo import cli
from tscode_yolo.graft import command, graft
from tscode_yolo.graft import fit as fitting
from tscode_yolo.graft.images import Views, batches, find_images
from tscode_yolo.graft.loss import GAINS, PARTS, distance, hint
from tscode_yolo.graft.pair import Pair

TINY = {"t": [0.25, 0.125, 1024]}  # a scale below n; the oldest hosts build none below this width


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn images, one of them deeper down, one grey, and one that is none."""
    home = tmp_path_factory.mktemp("pictures")
    (home / "deeper").mkdir()
    random = np.random.default_rng(0)
    for i in range(6):
        image = cv2.resize(random.integers(0, 255, (6, 8, 3), np.uint8), (96, 64 + 8 * i))
        cv2.imwrite(str(home / ("deeper" if i == 5 else "") / f"{i}.png"), image[..., 0] if i == 1 else image)
    (home / "broken.jpg").write_bytes(b"no image")
    (home / "notes.txt").write_text("no image either")
    return home


@pytest.fixture(scope="module")
def make_yaml() -> Callable[..., str]:
    """Write a model YAML at the tiny scale: (file, name, changes) to its path."""

    def make(file: Path, name: str, **changes: object) -> str:
        content = {**yaml_model_load(name), "scales": TINY, "scale": "t", **changes}
        content.pop("yaml_file")
        file.write_text(json.dumps(content))
        return str(file)

    return make


@pytest.fixture(scope="module")
def make_teacher(make_yaml: Callable[..., str]) -> Callable[..., Path]:
    """Write a checkpoint of a stock model whose predictors differ from place to place."""

    def make(file: Path, name: str = "yolo11n.yaml", fuse: bool = False, **changes: object) -> Path:
        torch.manual_seed(1)
        net = DetectionModel(make_yaml(file.with_suffix(".yaml"), name, **changes), nc=3, verbose=False)
        net.names = {0: "cat", 1: "dog", 2: "owl"}
        net.train()
        for _ in range(3):
            net(torch.rand(2, 3, 64, 64))  # running statistics
        for p in net.model[-1].parameters():
            p.data.mul_(1.5)
        net.args = {"task": "detect"}
        torch.save({"model": net.eval().fuse() if fuse else net.eval(), "train_args": net.args}, file)
        return file

    return make


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, make_teacher: Callable[..., Path]) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "stock.pt")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, make_yaml: Callable[..., str]) -> str:
    return make_yaml(tmp_path_factory.mktemp("student") / "ours.yaml", "yolo11n-tscode.yaml")


def test_images_are_found_below_folders_and_nothing_else(folder, tmp_path):
    assert [p.name for p in find_images([folder])] == [*(f"{i}.png" for i in range(5)), "broken.jpg", "5.png"]
    assert len(find_images([folder, folder / "deeper"])) == 7
    with pytest.raises(FileNotFoundError, match="expected a folder of images, got none of that name"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"expected images \(.*jpg.*\), got none"):
        find_images([tmp_path])


def test_views_are_pictures_of_the_size_asked_for(folder):
    views = Views(find_images([folder]), 96)
    for _ in range(8):
        for i in (0, 1, 6):
            view = views[i]
            assert view.shape == (3, 96, 96)
            assert view.dtype == torch.float32
            assert 0 <= view.min() <= view.max() <= 1
    assert views[5] is None


def test_batches_count_what_cannot_be_read(folder, tmp_path):
    source = batches(find_images([folder]), 64, 7, 0, seed=3)
    seen = [next(source) for _ in range(2)]
    assert [(len(images), unreadable) for images, unreadable in seen] == [(6, 1), (6, 1)]
    assert not torch.equal(seen[0][0], seen[1][0])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of 1 files could be read as an image"):
        next(batches(find_images([tmp_path]), 64, 2, 0, seed=0))


def test_one_readable_image_among_others_is_enough(folder, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    shutil.copy(next((folder / "deeper").iterdir()), tmp_path)
    for seed in range(8):  # by chance it comes late, or is left out of a round's last, short batch
        source = batches(find_images([tmp_path]), 64, 3, 0, seed=seed)
        assert all(next(source)[0].shape[0] == 1 for _ in range(3))


def test_fewer_images_than_a_batch_are_seen_more_than_once(folder):
    assert next(batches(find_images([folder / "deeper"]), 64, 4, 0, seed=0))[0].shape[0] == 4


@pytest.mark.parametrize("reg_max", [1, 4])
def test_heads_that_say_the_same_are_not_apart(reg_max):
    student = {"boxes": torch.randn(2, 4 * reg_max, 5).abs() + 0.1, "scores": torch.randn(2, 3, 5)}
    parts = distance(student, {k: v.clone() for k, v in student.items()}, reg_max)
    assert {*parts, "hint"} == set(PARTS)
    assert all(abs(v.item()) < 1e-5 for v in parts.values())


def test_distance_by_hand():
    """One anchor point, one class: the teacher is sure by 0.8 of a box 2x2, the student by 0.5 of one of 4x2."""
    teacher = {
        "boxes": torch.tensor([1.0, 1.0, 1.0, 1.0]).view(1, 4, 1),
        "scores": torch.tensor(0.8).logit().view(1, 1, 1),
    }
    student = {"boxes": torch.tensor([1.0, 1.0, 3.0, 1.0]).view(1, 4, 1), "scores": torch.zeros(1, 1, 1)}
    parts = distance(teacher, student, 1)
    # The weights sum to 0.8, which counts as 1: few sure anchor points must not blow the loss up.
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert_close(parts["cls"] / GAINS["cls"], torch.tensor(kl), rtol=1e-4, atol=1e-5)
    assert_close(parts["dfl"] / GAINS["dfl"], torch.tensor(0.8 * 1.5 / 4))  # smooth L1 of 2 is 1.5, over four sides
    # IoU 4 / 8; centres 1 apart in a common box 4x2; aspect ratios atan(1) and atan(2).
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    ciou = 1 - 0.5 + 1 / 20 + v * v / (1 - 0.5 + v)
    assert_close(parts["box"] / GAINS["box"], torch.tensor(0.8 * ciou), rtol=1e-4, atol=1e-4)


def test_distance_of_distributions_by_hand():
    """Sides over two bins, half-half there and 0.9 to 0.1 here; every side alike, weight 4 of 4 anchor points."""
    teacher = {"boxes": torch.zeros(1, 8, 4), "scores": torch.full((1, 1, 4), 30.0)}
    student = {
        "boxes": torch.tensor([0.9, 0.1]).log().repeat(4).view(1, 8, 1).repeat(1, 1, 4),
        "scores": teacher["scores"],
    }
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert_close(distance(teacher, student, 2)["dfl"] / GAINS["dfl"], torch.tensor(kl), rtol=1e-4, atol=1e-5)


def test_hints_are_the_share_of_variance_that_is_missing():
    teacher = [torch.tensor([0.0, 2.0]).view(1, 1, 1, 2), torch.tensor([5.0, 7.0]).view(1, 1, 1, 2)]  # variance 2
    assert_close(hint(teacher, [teacher[0] + 1, teacher[1]]) / GAINS["hint"], torch.tensor(0.25))  # 1 / 2 and nothing


@pytest.mark.parametrize("options", [{"sce": True}, {"sce": False}, {"sce_at": [0], "dpe_at": [0], "sce": True}])
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_merging_bridges_changes_nothing(make_teacher, make_yaml, tmp_path, name, options):
    teacher = YOLO(make_teacher(tmp_path / "stock.pt", f"{name}.yaml")).model.float()
    options = {"finer": True, **options}
    model = DetectionModel(make_yaml(tmp_path / "ours.yaml", f"{name}-tscode.yaml", tscode=options), nc=3)
    pair = Pair(teacher, model)
    for tower, *_ in pair._towers().values():
        for p in tower[-1].parameters():
            torch.nn.init.normal_(p, std=0.1)
    pair.student.eval()
    images = torch.rand(2, 3, 96, 128)
    before = pair.predict(images)
    pair.merge()
    branches = [getattr(pair.student, name) for name in ("one2many", "one2one")[: len(before)]]
    after = [pair.student.forward_head(list(pair.body(images)), **branch) for branch in branches]
    for bridged, merged in zip(before, after):
        for task, student in bridged.items():
            assert merged[task].shape == student.teacher.shape
            assert_close(merged[task], student.student, rtol=1e-4, atol=1e-4)
    assert not options["sce"] or pair.student.cls_skip[0][-1].bias is None


@pytest.mark.parametrize("options", [{"sce": False}, {"cls_depth": 2}])
def test_a_branch_like_the_stock_heads_starts_as_the_teacher(teacher, make_yaml, tmp_path, options):
    """Its weights move, and the bridge in front of the teacher's predictor is where they went; SCE adds nothing yet."""
    model = make_yaml(tmp_path / "dpe.yaml", "yolo11n-tscode.yaml", tscode={"finer": True, **options})
    pair = Pair(YOLO(teacher).model.float(), DetectionModel(model, nc=3))
    pair.student.eval()
    scores = pair.predict(torch.rand(1, 3, 96, 96))[0]["scores"]
    assert_close(scores.student, scores.teacher, rtol=1e-3, atol=1e-3)


def test_a_graft_moves_the_body_and_teaches_the_head(teacher, student, folder, tmp_path):
    out = tmp_path / "new" / "grafted.pt"
    report = graft(
        str(teacher), student, str(folder), steps=20, imgsz=96, batch=4, lr=0.003, out=str(out), verbose=False
    )
    course = report["course"]
    assert course["steps"] == 20
    assert course["images"] + course["unreadable"] == 80
    losses = [sum(part.values()) for part in course["losses"]]
    assert len(losses) == 10
    assert losses[-1] < 0.5 * losses[0]
    assert json.loads(out.with_suffix(".json").read_text())["course"]["steps"] == 20
    theirs, ours = YOLO(teacher).model, YOLO(out).model
    assert ours.names == {0: "cat", 1: "dog", 2: "owl"}
    body = {k: v for k, v in theirs.float().state_dict().items() if not k.startswith("model.23.")}
    own = ours.float().state_dict()
    assert len(body) > 100
    assert all(torch.equal(v.half(), own[k].half()) for k, v in body.items())
    assert YOLO(out).predict(np.zeros((96, 96, 3), np.uint8), imgsz=96, verbose=False)[0].names[2] == "owl"


def test_options_change_the_head_that_is_grafted(teacher, student, folder, tmp_path):
    """Without SCE the classification is the stock head's: it moves, and is in the checkpoint to be trained further."""
    out = tmp_path / "g.pt"
    given = {"steps": 1, "imgsz": 96, "batch": 2, "lr": 1e-9, "out": str(out), "verbose": False}
    report = graft(str(teacher), student, str(folder), options="{sce: false}", **given)
    assert "  head  moved: cv3.0, cv3.1, cv3.2, dfl" in report["account"]
    assert report["options"]["sce"] is False
    assert report["options"]["finer"] is True  # the YAML's own stay
    net = YOLO(out).model
    assert net.yaml["tscode"] == report["options"]
    ours, theirs = (m.float().model[-1].cv3[0][0][0].conv.weight for m in (net, YOLO(teacher).model))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # stored in half precision


def test_steps_make_a_graft_repeatable(teacher, student, folder, tmp_path):
    def head(out: Path, seed: int) -> dict[str, torch.Tensor]:
        graft(str(teacher), student, str(folder), steps=2, imgsz=96, batch=2, seed=seed, out=str(out), verbose=False)
        return YOLO(out).model.model[-1].state_dict()

    first, again, other = (head(tmp_path / f"{i}.pt", seed) for i, seed in enumerate((0, 0, 1)))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["cv2.0.0.conv.weight"], other["cv2.0.0.conv.weight"])


@pytest.mark.parametrize("sce", [True, False])
def test_both_branches_of_an_end_to_end_head_learn(make_teacher, make_yaml, folder, tmp_path, sce):
    weights = make_teacher(tmp_path / "stock26.pt", "yolo26n.yaml")
    model = make_yaml(tmp_path / "ours26.yaml", "yolo26n-tscode.yaml", tscode={"finer": True, "sce": sce})
    report = graft(str(weights), model, [folder], steps=2, imgsz=96, batch=2, out=str(tmp_path / "g.pt"), verbose=False)
    assert report["course"]["steps"] == 2
    torch.manual_seed(0)
    fresh = DetectionModel(model, nc=3, verbose=False).model[-1].half()
    head = YOLO(tmp_path / "g.pt").model.model[-1]
    for name in ("cv2", "one2one_cv2", "cls_skip" if sce else "cv3", "one2one_cv3"):
        pairs = zip(getattr(head, name).parameters(), getattr(fresh, name).parameters())
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_verb_says_what_was_kept(teacher, student, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_ap", lambda file, *_: 0.4 if file == teacher else 0.3)
    monkeypatch.setattr(command, "data_yaml", lambda _: None)
    arguments = [f"weights={teacher}", f"model={student}", f"images={folder}", "steps=1", "imgsz=96", "batch=7"]
    assert cli.main(["graft", *arguments, f"out={tmp_path / 'g.pt'}", "data=my.yaml"]) == 0
    said = capsys.readouterr().out
    assert "g.pt: 6 views of 7 images in" in said
    assert "1 times an unreadable file" in said
    assert "AP on my.yaml: stock 0.400, grafted 0.300 (75 % kept)" in said


def test_minutes_end_a_fit(teacher, student, folder, tmp_path):
    report = graft(
        str(teacher), student, str(folder), minutes=0.02, imgsz=96, batch=1, out=str(tmp_path / "g.pt"), verbose=False
    )
    assert report["course"]["steps"] >= 1
    assert report["course"]["minutes"] >= 0.02


def test_a_stopped_fit_keeps_what_was_learnt(teacher, student, folder, tmp_path, monkeypatch):
    steps = []

    def step(*given):
        steps.append(real(*given))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return steps[-1]

    real = fitting._step
    monkeypatch.setattr(fitting, "_step", step)
    report = graft(
        str(teacher), student, str(folder), steps=50, imgsz=96, batch=2, out=str(tmp_path / "g.pt"), verbose=False
    )
    assert (report["course"]["stopped"], report["course"]["steps"]) == (True, 2)
    assert type(YOLO(tmp_path / "g.pt").model.model[-1]).__name__ == "TSCODEDetect"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.yaml"}, "nowhere.yaml"),
        ({"imgsz": 100}, "imgsz=100: expected a multiple of 32"),
        ({"steps": 0}, "steps=0: expected a whole number >= 1"),
        ({"steps": None, "minutes": -1}, "minutes=-1: expected a number above 0"),
        ({"out": "grafted.onnx"}, r"expected a name that ends in \.pt"),
        ({"workers": "abc"}, "workers='abc'"),
        ({"workers": -1}, "workers=-1"),
        ({"model": "yolo11n-tscode.pt"}, "expected a model YAML"),
        ({"options": "sce"}, r'options=sce: expected a mapping, e.g. options="{sce: false}"'),
        ({"options": "{sce: "}, "expected a mapping"),
        ({"options": {"sec": False}}, "did you mean 'sce'"),
        ({"model": "yolo11n.yaml"}, "expected a YAML with a TSCODEDetect head, got Detect"),
        ({"model": "yolo11n-tscode.yaml"}, "different backbones or necks: .* Take the same family and scale"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(
    teacher, student, folder, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    given = {"weights": str(teacher), "model": student, "images": str(folder), "steps": 1, "imgsz": 96, **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        graft(**given, verbose=False)
    assert not list(tmp_path.iterdir())


def test_data_of_other_classes_is_refused(teacher, student, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "data_yaml", lambda _: {"nc": 7})
    with pytest.raises(ValueError, match=r"expected the 3 classes of weights=, .* got 7"):
        graft(str(teacher), student, str(folder), steps=1, imgsz=96, data="my.yaml", out=str(tmp_path / "g.pt"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["g.pt", "g.json"])
def test_what_is_there_already_is_not_written_over(teacher, student, folder, tmp_path, there):
    (tmp_path / there).write_text("precious")
    with pytest.raises(FileExistsError, match=f"{there} is there already"):
        graft(str(teacher), student, str(folder), steps=1, imgsz=96, out=str(tmp_path / "g.pt"), verbose=False)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [(there, "precious")]


def test_a_place_that_cannot_be_written_to_is_said_before_the_fit(teacher, student, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a place to write to"):
        graft(str(teacher), student, str(folder), steps=1, imgsz=96, out=str(tmp_path / "file/g.pt"), verbose=False)


def test_an_interrupted_measurement_leaves_checkpoint_and_report(teacher, student, folder, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_ap", stopped)
    monkeypatch.setattr(command, "data_yaml", lambda _: None)
    given = {"steps": 1, "imgsz": 96, "batch": 2, "data": "my.yaml", "out": str(tmp_path / "g.pt"), "verbose": False}
    with pytest.raises(KeyboardInterrupt):
        graft(str(teacher), student, str(folder), **given)
    assert json.loads((tmp_path / "g.json").read_text())["AP"] is None
    assert type(YOLO(tmp_path / "g.pt").model.model[-1]).__name__ == "TSCODEDetect"


def test_weights_that_are_no_numbers_are_not_saved(teacher, student, folder, tmp_path):
    given = {"steps": 1, "imgsz": 96, "batch": 2, "lr": 1e38, "out": str(tmp_path / "g.pt"), "verbose": False}
    with pytest.raises(FloatingPointError, match="lower lr"):
        graft(str(teacher), student, str(folder), **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_place_for_the_checkpoint(teacher, student, folder, tmp_path):
    (tmp_path / "g.pt").mkdir()
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        graft(str(teacher), student, str(folder), steps=1, imgsz=96, out=str(tmp_path / "g.pt"), verbose=False)


def test_the_stock_weights_are_not_written_over(teacher, student, folder):
    before = teacher.read_bytes()
    with pytest.raises(ValueError, match="expected another file than weights="):
        graft(str(teacher), student, str(folder), steps=1, imgsz=96, out=str(teacher), verbose=False)
    assert teacher.read_bytes() == before


def test_heads_that_cannot_teach_are_refused(teacher, student, make_teacher, make_yaml, folder, tmp_path):
    def refused(weights: Path, model: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            graft(str(weights), model, str(folder), steps=1, imgsz=96, out=str(tmp_path / "g.pt"), verbose=False)

    ours = make_teacher(tmp_path / "ours.pt", "yolo11n-tscode.yaml")
    refused(ours, student, "expected a stock detection model, got one with a TSCODEDetect head")
    atss = make_yaml(tmp_path / "atss.yaml", "yolo11n-tscode.yaml", tscode={"finer": True, "recipe": "atss"})
    refused(teacher, atss, "quality branch")
    two = make_teacher(tmp_path / "two.pt", "yolo26n.yaml")
    defcn = make_yaml(tmp_path / "defcn.yaml", "yolo26n-tscode.yaml", tscode={"finer": True, "recipe": "defcn"})
    refused(two, defcn, "quality branch")  # of its one-to-one branch alone
    plain = make_yaml(tmp_path / "one.yaml", "yolo11n-tscode.yaml", end2end=True)
    refused(teacher, plain, "must both be end-to-end or both not")
    shared = {"finer": True, "share_towers": True, "share_down": True, "sce_width": 16, "dpe_width": 16}
    refused(teacher, make_yaml(tmp_path / "s.yaml", "yolo11n-tscode.yaml", tscode=shared), "got share_towers")
    fused = make_teacher(tmp_path / "fused.pt", "yolo26n.yaml", fuse=True)
    refused(fused, make_yaml(tmp_path / "y26.yaml", "yolo26n-tscode.yaml"), "the weights are fused for inference")


@pytest.mark.slow
def test_a_real_head_is_approached_on_real_images(shared, tmp_path):
    weights, data = shared / "weights" / "yolo11n-restored.pt", shared / "data" / "coco128"
    report = graft(
        str(weights),
        "yolo11n-tscode.yaml",
        str(data / "images" / "train"),
        steps=40,
        imgsz=192,
        out=str(tmp_path / "g.pt"),
        verbose=False,
    )
    first, last = report["course"]["losses"][0], report["course"]["losses"][-1]
    assert last["cls"] < 0.7 * first["cls"]
    assert last["hint"] < 0.9 * first["hint"]
    assert YOLO(tmp_path / "g.pt").names[0] == "person"
