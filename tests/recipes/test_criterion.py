"""The criterion against the host's contract, and the state that must survive it."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.tal import make_anchors
from ultralytics.utils.torch_utils import ModelEMA

from tscode_yolo.recipes import RECIPES, criterion, get_recipe
from tscode_yolo.recipes.contract import RecipeState
from tscode_yolo.recipes.criterion import RecipeCriterion, TwinCriterion, decode, make_criterion, pad_targets
from tscode_yolo.recipes.geometry import make_grid

SHAPES = [(8, 12), (4, 6), (2, 3)]  # a 64 x 96 image
STRIDES = [8.0, 16.0, 32.0]


class Head(nn.Module):
    """The attributes of a detection head that a criterion reads."""

    def __init__(self, recipe, nc=4, reg_max=16, twin=False):
        super().__init__()
        self.nc, self.reg_max = nc, reg_max
        self.stride = torch.tensor(STRIDES)
        self.recipe_state = recipe.state(nc, 3)
        self.one2one_cv2 = nn.Identity() if twin else None


def make_model(recipe, resume=False, epochs=10, **kwargs):
    model = nn.Module()
    model.model = nn.ModuleList([nn.Conv2d(1, 1, 1), Head(recipe, **kwargs)])
    model.args = SimpleNamespace(epochs=epochs, resume=resume, box=7.5, cls=0.5, dfl=1.5)
    return model


def make_preds(batch=2, nc=4, reg_max=16, dtype=torch.float32, seed=0, quality=True):
    generator = torch.Generator().manual_seed(seed)
    points = sum(h * w for h, w in SHAPES)
    out = {
        "boxes": (torch.rand(batch, 4 * reg_max, points, generator=generator) * 3).to(dtype),
        "scores": (torch.randn(batch, nc, points, generator=generator) - 2).to(dtype),
        "feats": [torch.zeros(batch, 1, h, w, dtype=dtype) for h, w in SHAPES],
    }
    if quality:
        out["quality"] = torch.randn(batch, 1, points, generator=generator).to(dtype)
    return {key: v.requires_grad_() if isinstance(v, torch.Tensor) else v for key, v in out.items()}


def make_batch():
    return {
        "batch_idx": torch.tensor([1.0, 0.0, 1.0]),
        "cls": torch.tensor([[2.0], [0.0], [3.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.6], [0.3, 0.4, 0.4, 0.4], [0.2, 0.2, 0.3, 0.3]]),
    }


@pytest.mark.parametrize("reg_max", [16, 1])
def test_decode_equals_the_host(reg_max):
    preds = make_preds(reg_max=reg_max)
    host = v8DetectionLoss.__new__(v8DetectionLoss)
    host.use_dfl, host.proj = reg_max > 1, torch.arange(reg_max, dtype=torch.float32)
    points, strides = make_anchors(preds["feats"], torch.tensor(STRIDES), 0.5)
    expected = host.bbox_decode(points, preds["boxes"].permute(0, 2, 1)) * strides
    decoded = decode(preds, make_grid(SHAPES, STRIDES))
    torch.testing.assert_close(decoded.bboxes, expected)
    assert (decoded.bins is None) == (reg_max == 1)


def test_targets_equal_the_host():
    host = v8DetectionLoss.__new__(v8DetectionLoss)
    host.device = torch.device("cpu")
    batch = make_batch()
    flat = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"], batch["bboxes"]), 1)
    flat = flat[flat[:, 0].argsort(stable=True)]  # the host counts on its collate function; we sort
    expected = host.preprocess(flat, 2, torch.tensor([96.0, 64.0, 96.0, 64.0]))
    targets = pad_targets(batch, 2, 64, 96, torch.device("cpu"))
    torch.testing.assert_close(targets.bboxes, expected[..., 1:])
    assert targets.labels.tolist() == expected[..., 0].long().tolist() == [[0, 0], [2, 3]]
    assert targets.mask.tolist() == [[True, False], [True, True]]


def test_boxes_without_area_are_no_targets():
    batch = make_batch()
    batch["bboxes"][1, 2] = 0
    assert pad_targets(batch, 2, 64, 96, torch.device("cpu")).mask.sum() == 2


@pytest.mark.parametrize("reg_max", [16, 1])
@pytest.mark.parametrize("name", RECIPES)
def test_terms_are_summed_named_and_scaled_as_the_host_expects(name, reg_max, monkeypatch):
    recipe = get_recipe(name)
    loss = make_criterion(make_model(recipe, reg_max=reg_max), recipe)
    assert isinstance(loss, RecipeCriterion)
    for named in (True, False):
        monkeypatch.setattr(criterion, "NAMED_ITEMS", named)
        preds = make_preds(reg_max=reg_max)
        vector, items = loss((None, preds), make_batch())
        assert vector.isfinite().all()
        assert len(vector) == len(loss.loss_names) == len(items)
        values = torch.stack(list(items.values())) if named else items
        if named:
            assert tuple(items) == loss.loss_names
        assert not values.requires_grad
        torch.testing.assert_close(vector.detach(), 2 * values)
        vector.sum().backward()
        assert all(preds[key].grad.isfinite().all() for key in ("boxes", "scores"))


@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_predictions_are_finite_and_near_single(name):
    recipe = get_recipe(name)
    single = RecipeCriterion(make_model(recipe), recipe)(make_preds(), make_batch())[0].detach()
    half = make_preds(dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        vector, _ = RecipeCriterion(make_model(recipe), recipe)(half, make_batch())
    assert vector.dtype == torch.float32
    vector.sum().backward()
    assert all(half[key].grad.isfinite().all() for key in ("boxes", "scores"))
    torch.testing.assert_close(vector.detach(), single, rtol=0.05, atol=0.05)


def test_the_hosts_gains_are_not_multiplied_on_top():
    recipe = get_recipe("atss")
    model = make_model(recipe)
    expected = RecipeCriterion(model, recipe)(make_preds(), make_batch())[0]
    model.args.box = model.args.cls = 100.0
    torch.testing.assert_close(RecipeCriterion(model, recipe)(make_preds(), make_batch())[0], expected)


def test_a_head_without_the_branch_or_the_state_is_refused():
    recipe = get_recipe("atss")
    loss = RecipeCriterion(make_model(recipe), recipe)
    with pytest.raises(ValueError, match=r"ATSS expected preds\['quality'\] \(centerness\), got only"):
        loss(make_preds(quality=False), make_batch())
    model = make_model(recipe)
    del model.model[-1].recipe_state
    with pytest.raises(TypeError, match="expected a RecipeState as recipe_state of Head, got NoneType"):
        RecipeCriterion(model, recipe)


def test_epochs_and_counts_move_in_training_only():
    recipe = get_recipe("ddod")
    model = make_model(recipe)
    loss, state = RecipeCriterion(model, recipe), model.model[-1].recipe_state
    loss(make_preds(), make_batch())
    after_one = state.level_counts.clone()
    assert after_one.sum() > 0
    with torch.no_grad():
        loss(make_preds(), make_batch())
    model.eval()
    loss(make_preds(), make_batch())
    assert state.level_counts.tolist() == after_one.tolist()
    loss.update()
    assert state.finished == 1


def test_a_new_training_restarts_the_counters_and_a_resumed_one_goes_on():
    recipe = get_recipe("ddod")
    model = make_model(recipe)
    state = model.model[-1].recipe_state
    state.epoch.fill_(7)
    state.level_counts.fill_(9)
    model.args.resume = "runs/last.pt"
    RecipeCriterion(model, recipe)
    assert (state.finished, state.level_counts.tolist()) == (7, [9, 9, 9])
    model.args.resume = False
    RecipeCriterion(model.eval(), recipe)  # validation
    assert state.finished == 7
    RecipeCriterion(model.train(), recipe)
    assert (state.finished, state.level_counts.tolist()) == (0, [0, 0, 0])


def test_tood_switches_after_its_warm_up(monkeypatch):
    monkeypatch.setattr(criterion, "NAMED_ITEMS", True)
    recipe = get_recipe("tood", initial_epoch=1)
    loss = RecipeCriterion(make_model(recipe), recipe)
    first = loss(make_preds(), make_batch())[1]["cls_loss"]
    loss.update()
    assert loss(make_preds(), make_batch())[1]["cls_loss"] != first


@pytest.mark.parametrize("name", RECIPES)
def test_twins_share_the_schedule_of_the_host(name, monkeypatch):
    monkeypatch.setattr(criterion, "NAMED_ITEMS", True)
    recipe = get_recipe(name)
    model = make_model(recipe, twin=True, epochs=5)
    loss = make_criterion(model, recipe)
    assert isinstance(loss, TwinCriterion)
    many, one = make_preds(quality=name != "defcn"), make_preds(seed=1)
    vector, items = loss({"one2many": many, "one2one": one}, make_batch())
    assert tuple(items) == loss.loss_names
    assert loss.loss_names[-2:] == ("o2obox_loss", "o2ocls_loss")
    share = torch.tensor([0.8] * (len(items) - 2) + [0.2] * 2)
    torch.testing.assert_close(vector.detach(), 2 * share * torch.stack(list(items.values())))
    vector.sum().backward()
    assert one["scores"].grad.abs().sum() > 0
    assert (one["quality"].grad is None) == (recipe.score == "p")
    loss.update()
    assert loss.o2m == pytest.approx(0.1 + 0.7 * 0.75)
    assert model.model[-1].recipe_state.finished == 1


def test_twins_resume_where_the_schedule_stood():
    recipe = get_recipe("atss")
    model = make_model(recipe, twin=True, epochs=5, resume="last.pt")
    model.model[-1].recipe_state.epoch.fill_(2)
    loss = make_criterion(model, recipe)
    assert loss.o2m == pytest.approx(0.1 + 0.7 * 0.5)
    loss.updates = 1  # what newer hosts do on resume
    loss.update()
    assert (loss.updates, model.model[-1].recipe_state.finished) == (2, 2)


def test_state_counters_are_shared_by_copies_and_parameters_are_not():
    state = RecipeState({"mu": torch.zeros(4)}, {"level_counts": 3})
    twin = copy.deepcopy(state)
    state.level_counts += 5
    state.epoch += 2
    with torch.no_grad():
        state.parameter("mu").fill_(1)
    assert twin.level_counts.tolist() == [5, 5, 5]
    assert twin.finished == 2
    assert twin.parameter("mu").tolist() == [0, 0, 0, 0]
    stored = io.BytesIO()
    torch.save(twin, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    state.level_counts += 1
    assert loaded.level_counts.tolist() == [5, 5, 5]


def test_state_survives_the_hosts_average_and_half_precision_checkpoint_exactly():
    """What the host does each epoch: average, deep copy, half; then float, state_dict, load."""
    recipe = get_recipe("autoassign")
    model = make_model(recipe)
    state = model.model[-1].recipe_state
    average = ModelEMA(model)
    with torch.no_grad():
        state.parameter("mu").fill_(1 / 3)
    state.epoch.fill_(3)
    average.update(model)
    kept = average.ema.model[-1].recipe_state.parameter("mu").clone()
    checkpoint = copy.deepcopy(average.ema).half()
    assert checkpoint.model[0].weight.dtype == torch.float16
    fresh = make_model(recipe)
    fresh.load_state_dict(checkpoint.float().state_dict())
    assert torch.equal(fresh.model[-1].recipe_state.parameter("mu"), kept)
    assert fresh.model[-1].recipe_state.finished == 3


def test_learned_state_is_spared_by_the_hosts_optimizer_rules():
    """No weight decay for names with "logit_scale"; no orthogonalisation for one dimension (build_optimizer)."""
    parameters = dict(get_recipe("autoassign").state(5, 3).named_parameters())
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        "logit_scale_mu": (10,),
        "logit_scale_sigma": (10,),
    }
