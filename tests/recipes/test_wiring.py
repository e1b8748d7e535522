"""A recipe named in a model YAML: head, criterion, scores, twins, checkpoints, training."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tscode_yolo.quality import MaxFilter3d, QualityBranch
from tscode_yolo.recipes import RECIPES, get_recipe
from tscode_yolo.recipes.contract import RecipeState
from tscode_yolo.recipes.criterion import RecipeCriterion, TwinCriterion
from tscode_yolo.register import register

register()

from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss  # noqa: E402

PLAIN = {"sce": False, "dpe": False}


def yaml_dict(options=None, row=None, nc=3, **top):
    """Five convolutions and the head on C2, P3..P5."""
    backbone = [[-1, 1, "Conv", [c, 3, 2]] for c in (8, 16, 32, 32, 64)]
    head = [[[1, 2, 3, 4], 1, "TSCODEDetect", [nc, {"finer": True, **(row or {})}]]]
    out = {"nc": nc, "depth_multiple": 1.0, "width_multiple": 1.0, "backbone": backbone, "head": head, **top}
    return {**out, "tscode": options} if options else out


def build(recipe=None, *, row=None, **top):
    torch.manual_seed(0)
    model = DetectionModel(yaml_dict({"recipe": recipe} if recipe else None, row, **top), verbose=False)
    model.args = get_cfg()
    return model


def make_batch(size=64):
    torch.manual_seed(1)
    return {
        "img": torch.rand(2, 3, size, size),
        "batch_idx": torch.tensor([0.0, 1.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.5], [0.3, 0.3, 0.4, 0.4], [0.7, 0.6, 0.4, 0.5]]),
    }


@pytest.mark.parametrize(("contexts", "end2end"), [({}, False), (PLAIN, True)], ids=["tscode", "plain-end2end"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_the_head_it_asked_for(name, end2end, contexts):
    top = {"end2end": True, "reg_max": 1} if end2end else {}
    model = build(name, row=contexts, **top)
    head, recipe = model.model[-1], get_recipe(name)
    vector, items = model.loss(make_batch())
    assert isinstance(model.criterion, TwinCriterion if end2end else RecipeCriterion)
    assert len(items) == len(vector) == len(model.criterion.loss_names)
    vector.sum().backward()
    idle = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not idle
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    branch = getattr(head, "one2one_quality" if end2end else "quality", None)
    assert (branch is not None) == (recipe.quality != "none")
    assert head.score == recipe.score


def test_the_recipe_may_stand_in_the_row_or_above_and_take_hyper_parameters():
    row = DetectionModel(yaml_dict(row={"recipe": {"name": "atss", "topk": 5}}), verbose=False)
    top = DetectionModel(yaml_dict({"recipe": {"name": "atss", "topk": 5}}), verbose=False)
    for model in (row, top):
        model.args = get_cfg()
        assert model.init_criterion().recipe == get_recipe("atss", topk=5)


def test_without_a_recipe_the_host_keeps_its_loss():
    assert type(build().init_criterion()) is v8DetectionLoss
    assert type(build("ultralytics", end2end=True).init_criterion()) is E2ELoss
    for spec in ("ultralytics", {"name": "ultralytics"}):
        assert build(spec).model[-1].recipe_state is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "attss"}, "did you mean 'atss'"),
        ({"recipe": {"name": "atss", "top": 3}}, "did you mean 'topk'"),
        ({"recipe": {"name": "ultralytics", "topk": 3}}, "takes no recipe options"),
        ({"recipe": "atss", "quality": "iou"}, "comes with quality=centerness, score=pq"),
        ({"recipe": "gfl", "quality": "iou", "score": "pq"}, "comes with quality=none"),
        ({"quality": "iou", "cls_prior": 1.5}, "expected a probability below 1"),
    ],
)
def test_mistakes_in_the_yaml_are_answered(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionModel(yaml_dict(options), verbose=False)


def test_a_mapping_without_a_name_is_answered():
    with pytest.raises(ValueError, match=r"a mapping like \{name: atss"):
        DetectionModel(yaml_dict({"recipe": {"topk": 3}}), verbose=False)


def test_options_without_our_head_are_refused_rather_than_ignored():
    stock = yaml_dict({"recipe": "atss"})
    stock["head"][-1] = [[2, 3, 4], 1, "Detect", [3]]
    with pytest.raises(ValueError, match="need TSCODEDetect as the last row"):
        DetectionModel(stock, verbose=False)


@pytest.mark.parametrize("name", RECIPES)
def test_published_priors_are_written_to_every_predictor(name):
    recipe = get_recipe(name)
    head = build(name, reg_max=1).model[-1]
    for tower, outputs in zip(head.cv3, (12, 3, 3), strict=True):  # SCE's, on the finest level, has four a class
        torch.testing.assert_close(tower[-1].bias.sigmoid(), torch.full((outputs,), recipe.cls_prior))
    for tower in head.cv2:
        assert tower[-1].bias.tolist() == [recipe.box_prior or 2.0] * 4
    if head.quality is not None:
        for predictor in head.quality.predictors:
            assert predictor.bias.sigmoid().item() == pytest.approx(recipe.quality_prior or 0.5)


def test_user_priors_win():
    head = DetectionModel(yaml_dict({"recipe": "dw", "cls_prior": 0.1, "box_prior": 3}, reg_max=1), verbose=False)
    assert head.model[-1].cv3[0][-1].bias[0].sigmoid().item() == pytest.approx(0.1)
    assert head.model[-1].cv2[0][-1].bias[0].item() == 3


@pytest.mark.parametrize("name", RECIPES)
def test_inference_joins_class_and_quality_by_the_published_rule(name):
    model = build(name).eval()
    with torch.no_grad():
        out, preds = model(torch.rand(1, 3, 64, 64))
    p = preds["scores"].sigmoid()
    q = preds["quality"].sigmoid() if "quality" in preds else None
    expected = {"p": lambda: p, "pq": lambda: p * q, "sqrt_pq": lambda: (p * q).sqrt()}[get_recipe(name).score]()
    torch.testing.assert_close(out[:, 4:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["atss", "defcn"])
def test_fusing_an_end_to_end_head_keeps_its_detections(name):
    model = build(name, end2end=True).eval()
    image = torch.rand(1, 3, 64, 64)
    if type(model).end2end.fset:  # older hosts know no other mode
        model.end2end = True
    with torch.no_grad():
        before = model(image)[0]
        head = model.model[-1]
        assert (head.quality is None) == (name == "defcn")  # the filter silences what one-to-many labels ask for
        model.fuse(verbose=False)
        after = model(image)[0]
    assert head.cv2 is None
    assert (head.quality, head.one2one_quality is not None) == (None, True)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_half_precision_inference_is_finite_and_near():
    model = build("tood").eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        single = model(image)[0]
        half = copy.deepcopy(model).half()(image.half())[0]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), single, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("name", ["autoassign", "ddod"])
def test_a_reloaded_checkpoint_goes_on_where_it_stood(name):
    """What the host does: deep copy, half, save; load, float, rebuild from the YAML, move the weights."""
    model = build(name)
    model.loss(make_batch())[0].sum().backward()
    model.criterion.update()
    state = model.model[-1].recipe_state
    with torch.no_grad():
        for p in state.parameters():
            p.add_(torch.rand(p.shape) / 3)
    model.criterion = None
    stored = io.BytesIO()
    torch.save(copy.deepcopy(model).half(), stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False).float()
    rebuilt = DetectionModel(loaded.yaml, verbose=False)
    rebuilt.load(loaded, verbose=False)
    for other in (loaded, rebuilt):
        again = other.model[-1].recipe_state
        assert isinstance(again, RecipeState)
        assert again.finished == 1
        for key, value in state.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


def test_max_filter_equals_the_papers_three_dimensional_pooling():
    torch.manual_seed(0)
    block = MaxFilter3d(32)
    levels = [torch.randn(1, 32, n, n) for n in (9, 5, 3)]
    got = block(levels)
    maps = [block.conv(x) for x in levels]
    for i, x in enumerate(levels):
        near = [j for j in (i - 1, i, i + 1) if 0 <= j < 3]
        resized = [
            F.interpolate(maps[j], size=x.shape[-2:], mode="bilinear", align_corners=False) if j != i else maps[i]
            for j in near
        ]
        pooled = nn.MaxPool3d(3, stride=1, padding=1)(torch.stack(resized, 2))[:, :, near.index(i)]
        torch.testing.assert_close(got[i], torch.relu(block.norm(pooled + x)))


def test_max_filter_refuses_levels_of_different_width():
    with pytest.raises(ValueError, match=r"expected equal channels, got \[8, 16\]"):
        QualityBranch([8, 16], filter3d=True)


def test_old_hosts_learn_the_loss_names_before_training(monkeypatch):
    """Up to 8.4.0 the trainer fixes its loss names in get_validator; later ones read the criterion's dict."""
    from ultralytics.cfg import get_cfg
    from ultralytics.models.yolo.detect.train import DetectionTrainer

    from tscode_yolo.register import PATCHES

    wrap = PATCHES["ultralytics.models.yolo.detect.train"]["DetectionTrainer.get_validator"]

    def fixed(self):
        self.loss_names = "box_loss", "cls_loss", "dfl_loss"
        return "validator"

    trainer = DetectionTrainer.__new__(DetectionTrainer)
    trainer.args = get_cfg()
    for recipe, end2end, expected in (
        ("atss", False, ("box_loss", "cls_loss", "ctr_loss")),
        ("tood", True, ("box_loss", "cls_loss", "o2obox_loss", "o2ocls_loss")),
        (None, False, ("box_loss", "cls_loss", "dfl_loss")),
    ):
        trainer.model = build(recipe, end2end=end2end)
        assert wrap(fixed)(trainer) == "validator"
        assert trainer.loss_names == expected
    monkeypatch.delattr(trainer, "loss_names")
    wrap(lambda self: setattr(self, "loss_names", ()))(trainer)
    assert trainer.loss_names == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_onnx_carries_the_joint_score(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build(name).eval()
    model.model[-1].export = True
    image = torch.rand(1, 3, 64, 64)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (image,), str(path), opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(image), rtol=1e-3, atol=1e-3)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A dozen drawn images in the host's layout."""
    from tscode_yolo.shapes import NAMES, make_shapes

    root = make_shapes(tmp_path / "shapes", {"train": 8, "val": 4}, 96)
    data = tmp_path / "shapes.yaml"
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    data.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddod", "autoassign", "tood"])
def test_plain_train_shows_the_recipes_names_and_resumes_its_state_exactly(name, shapes, tmp_path):
    import yaml
    from ultralytics import YOLO

    cfg = tmp_path / "tiny.yaml"
    cfg.write_text(yaml.safe_dump(yaml_dict({"recipe": name}, nc=4)))
    seen = {}

    class Interrupted(Exception):
        pass

    def interrupt(trainer):
        raise Interrupted

    def remember(trainer):
        state = trainer.model.model[-1].recipe_state.state_dict()
        seen["state"] = {key: value.clone() for key, value in state.items()}
        seen["epoch"] = trainer.start_epoch
        raise Interrupted

    common = {"imgsz": 96, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "project": str(tmp_path)}
    model = YOLO(str(cfg))
    model.add_callback("on_model_save", interrupt)
    with pytest.raises(Interrupted):
        model.train(data=str(shapes), epochs=3, name="run", **common)
    last = tmp_path / "run" / "weights" / "last.pt"
    header = next(csv.reader((tmp_path / "run" / "results.csv").open()))
    for split in ("train", "val"):
        assert [c for c in header if c.startswith(split)] == [f"{split}/{n}" for n in get_recipe(name).loss_names(True)]
    saved = torch.load(last, weights_only=False)["ema"].model[-1].recipe_state
    assert saved.finished == 1
    if name == "ddod":
        assert saved.level_counts.sum() > 0
    resumed = YOLO(str(last))
    resumed.add_callback("on_train_epoch_start", remember)
    with pytest.raises(Interrupted):
        resumed.train(resume=True)
    assert seen["epoch"] == 1
    for key, value in saved.state_dict().items():
        assert torch.equal(seen["state"][key], value), key
