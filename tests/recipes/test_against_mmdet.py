"""Assignments and losses equal mmdet 3.3.0's on random tensors, where its files are at hand.

``pip install --no-deps mmdet==3.3.0`` suffices (or its wheel unpacked on PYTHONPATH): the assigners are plain PyTorch,
so the few files are loaded alone, with stand-ins for the registries and containers of mmengine and mmcv.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tscode_yolo.recipes import get_recipe
from tscode_yolo.recipes.contract import Targets
from tscode_yolo.recipes.losses import distribution_focal_loss, giou_loss, quality_focal_loss
from tscode_yolo.recipes.soft import center_prior, pair_scores

from .scenes import moment, positives, random_scene, run

SPEC = importlib.util.find_spec("mmdet")
pytestmark = pytest.mark.skipif(SPEC is None, reason="mmdet's files are not installed (pip install --no-deps mmdet)")
PACKAGES = ("models", "models.task_modules", "models.task_modules.assigners", "models.losses", "models.dense_heads")


class Instances(SimpleNamespace):
    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


class Registry(dict):
    def register_module(self, *_, **__):
        return lambda cls: self.setdefault(cls.__name__, cls)

    def build(self, config):
        config = dict(config)
        return self[config.pop("type")](**config)


def module(name: str, path: str | None = None, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    if path:
        made.__path__ = [path]
    sys.modules[name] = made
    return made


@pytest.fixture(scope="module")
def mmdet() -> Iterator[Any]:
    """Load single files of mmdet; what they import from elsewhere are stand-ins, gone after the tests."""
    root = SPEC.submodule_search_locations[0]
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0].startswith("mm")}
    try:
        module("mmengine")
        module("mmengine.structures", InstanceData=Instances)
        module("mmengine.model", bias_init_with_prob=None, normal_init=None)
        module("mmcv")
        module("mmcv.cnn", Scale=nn.Identity)
        module("mmdet", root)
        module("mmdet.registry", TASK_UTILS=Registry(), MODELS=Registry())
        types = dict.fromkeys(("ConfigType", "InstanceList", "OptInstanceList"), Any)
        utils = module("mmdet.utils", f"{root}/utils", reduce_mean=lambda x: x, **types)
        utils.util_mixins = importlib.import_module("mmdet.utils.util_mixins")
        module("mmdet.structures", f"{root}/structures")
        bbox = module("mmdet.structures.bbox", f"{root}/structures/bbox", get_box_tensor=lambda boxes: boxes)
        bbox.bbox_overlaps = importlib.import_module("mmdet.structures.bbox.bbox_overlaps").bbox_overlaps
        for package in PACKAGES:
            module(f"mmdet.{package}", f"{root}/{package.replace('.', '/')}")
        module("mmdet.models.utils", levels_to_images=None, multi_apply=None)
        module("mmdet.models.task_modules.prior_generators", MlvlPointGenerator=None)
        module("mmdet.models.dense_heads.fcos_head", FCOSHead=nn.Module)
        names = {
            "ATSSAssigner": "models.task_modules.assigners.atss_assigner",
            "SimOTAAssigner": "models.task_modules.assigners.sim_ota_assigner",
            "TaskAlignedAssigner": "models.task_modules.assigners.task_aligned_assigner",
            "BboxOverlaps2D": "models.task_modules.assigners.iou2d_calculator",
            "gfocal": "models.losses.gfocal_loss",
            "iou_losses": "models.losses.iou_loss",
            "autoassign": "models.dense_heads.autoassign_head",
        }
        loaded = {key: importlib.import_module(f"mmdet.{path}") for key, path in names.items()}
        yield SimpleNamespace(**{key: getattr(mod, key, mod) for key, mod in loaded.items()})
    finally:
        for name in list(sys.modules):
            if name.split(".")[0].startswith("mm"):
                del sys.modules[name]
        sys.modules.update(before)


def image_of(scene, b):
    """(priors with side 8 strides, prediction, ground truth) of one image, in mmdet's containers."""
    preds, targets, grid = scene.preds().detach(), scene.targets, scene.grid
    half = 4 * grid.strides[:, None]
    anchors = torch.cat((grid.points - half, grid.points + half), 1)
    real = targets.mask[b]
    truth = Instances(bboxes=targets.bboxes[b, real], labels=targets.labels[b, real])
    return anchors, preds, truth


def found_by(result) -> dict[int, int]:
    gt = result.gt_inds
    return {int(i): int(gt[i]) - 1 for i in (gt > 0).nonzero().squeeze(-1)}


scenes = pytest.mark.parametrize("seed", range(6))


@scenes
def test_atss(mmdet, seed):
    scene = random_scene([4, 1, 3], size=96, seed=seed)
    ours = positives(run(get_recipe("atss"), scene)[0])
    for b in range(3):
        anchors, _, truth = image_of(scene, b)
        theirs = mmdet.ATSSAssigner(topk=9).assign(Instances(priors=anchors), scene.grid.sizes, truth)
        assert ours[b] == found_by(theirs)
        assert ours[b]


@scenes
def test_ddod(mmdet, seed):
    scene = random_scene([4, 1, 3], size=96, seed=seed)
    assignment, _ = run(get_recipe("ddod"), scene)
    for alpha, fg, gt in ((0.8, assignment.fg, assignment.gt), (0.5, assignment.box_fg, assignment.box_gt)):
        for b in range(3):
            anchors, preds, truth = image_of(scene, b)
            given = Instances(priors=anchors, scores=preds.logits[b], bboxes=preds.bboxes[b])
            theirs = mmdet.ATSSAssigner(topk=9, alpha=alpha).assign(given, scene.grid.sizes, truth)
            assert {int(i): int(gt[b, i]) for i in fg[b].nonzero().squeeze(-1)} == found_by(theirs)


@scenes
def test_tood(mmdet, seed):
    scene = random_scene([4, 1, 3], size=96, seed=seed)
    assignment, _ = run(get_recipe("tood"), scene)
    for b in range(3):
        anchors, preds, truth = image_of(scene, b)
        scores = (preds.logits[b].sigmoid() * preds.quality[b].sigmoid()[:, None]).sqrt()
        given = Instances(priors=anchors, scores=scores, bboxes=preds.bboxes[b])
        theirs = mmdet.TaskAlignedAssigner(topk=13).assign(given, truth, alpha=1, beta=6)
        assert positives(assignment)[b] == found_by(theirs)
        for g in range(len(truth.labels)):  # the normalisation of tood_head.py
            mine = theirs.gt_inds == g + 1
            if mine.any():
                metric = theirs.assign_metrics[mine]
                expected = metric / (metric.max() + 1e-7) * theirs.max_overlaps[mine].max()
                torch.testing.assert_close(assignment.cls_target[b, mine], expected)


@scenes
def test_simota(mmdet, seed):
    scene = random_scene([4, 1, 3], size=96, seed=seed)
    assignment, _ = run(get_recipe("simota"), scene)
    for b in range(3):
        _, preds, truth = image_of(scene, b)
        scores = (preds.logits[b].sigmoid() * preds.quality[b].sigmoid()[:, None]).sqrt()
        stride = scene.grid.strides[:, None]
        given = Instances(
            priors=torch.cat((scene.grid.points, stride, stride), 1), scores=scores, bboxes=preds.bboxes[b]
        )
        theirs = mmdet.SimOTAAssigner(center_radius=2.5, candidate_topk=10, iou_weight=3.0).assign(given, truth)
        assert positives(assignment)[b] == found_by(theirs)


@scenes
def test_autoassign(mmdet, seed):
    """Prior, positive and negative loss of one image whose objects differ in class."""
    scene = random_scene([3], size=96, seed=seed)
    targets = Targets(torch.tensor([[2, 0, 1]]), scene.targets.bboxes, scene.targets.mask)
    scene = scene.with_targets(targets)
    recipe = get_recipe("autoassign")
    when = moment(recipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        when.state.parameter("mu").copy_(torch.randn(6, generator=generator) * 0.3)
        when.state.parameter("sigma").copy_(torch.rand(6, generator=generator) + 0.6)
    assignment, losses = run(recipe, scene, when)

    grid, preds = scene.grid, scene.preds()
    head = mmdet.autoassign.AutoAssignHead
    prior_module = mmdet.autoassign.CenterPrior(num_classes=3, strides=grid.level_strides)
    with torch.no_grad():
        for name, own in (("mean", "mu"), ("sigma", "sigma")):
            getattr(prior_module, name).copy_(when.state.parameter(own).view(3, 2))
    truth = Instances(bboxes=targets.bboxes[0], labels=targets.labels[0])
    box = targets.bboxes[0]
    sides = torch.cat((grid.points[:, None] - box[None, :, :2], box[None, :, 2:] - grid.points[:, None]), -1)
    prior, inside = prior_module(grid.points.split(grid.sizes), truth, sides.amin(-1) > 0)
    pairs = assignment.pairs
    assert set(zip(pairs.point.tolist(), pairs.gt.tolist(), strict=True)) == set(map(tuple, inside.nonzero().tolist()))
    mean, sigma = (when.state.parameter(name).view(3, 2) for name in ("mu", "sigma"))
    torch.testing.assert_close(center_prior(grid, targets, pairs, mean, sigma), prior[pairs.point, pairs.gt])

    flat = (preds.bboxes[0][:, None].expand(-1, 3, -1).reshape(-1, 4), box.repeat(len(grid.points), 1))
    giou = mmdet.iou_losses.giou_loss(*flat, reduction="none").view(-1, 3)
    torch.testing.assert_close(pair_scores(preds, targets, pairs, 5.0).giou, giou[pairs.point, pairs.gt])
    p, q = preds.logits[0].sigmoid(), preds.quality[0].sigmoid()[:, None]
    gains = SimpleNamespace(pos_loss_weight=0.25, neg_loss_weight=0.75)
    (positive,) = head.get_pos_loss_single(gains, p, q, 5 * giou, truth, prior)
    torch.testing.assert_close(losses["pos_loss"], positive / 3, rtol=1e-4, atol=1e-6)
    ious = mmdet.iou_losses.bbox_overlaps(preds.bboxes[0], box).max(-1, keepdim=True).values.repeat(1, 3)
    ious[~inside] = 0
    (negative,) = head.get_neg_loss_single(gains, p, q, truth, ious.detach(), inside)
    # a negative of weight w enters theirs as (w C)^2 BCE(w C, 0), as ours
    torch.testing.assert_close(losses["neg_loss"], negative / prior.detach().sum().clamp(min=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["ctr_loss"], 0.75 * 3 / prior.sum(), rtol=1e-4, atol=1e-6)
    ours, theirs = (
        torch.autograd.grad(loss, (scene.logits, scene.quality, scene.distances), retain_graph=True, allow_unused=True)
        for loss in (losses["pos_loss"], positive / 3)
    )
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6)


@scenes
def test_losses(mmdet, seed):
    generator = torch.Generator().manual_seed(seed)
    scene = random_scene([1, 1], seed=seed)
    label = torch.randint(0, 4, (2, len(scene.grid.points)), generator=generator)  # 3 is background
    score = torch.rand(label.shape, generator=generator) * (label < 3)
    target = nn.functional.one_hot(label, 4)[..., :3] * score[..., None]
    loss = partial(mmdet.gfocal.quality_focal_loss, reduction="none", beta=2.0)
    expected = loss(scene.logits.flatten(0, 1), (label.flatten(), score.flatten()))
    torch.testing.assert_close(quality_focal_loss(scene.preds(), target).sum(-1).flatten(), expected)

    bins = torch.randn(20, 17, generator=generator)
    distance = torch.rand(20, generator=generator) * 15.9
    expected = mmdet.gfocal.distribution_focal_loss(bins, distance, reduction="none")
    ours = distribution_focal_loss(bins.view(5, 4, 17), distance.view(5, 4))
    torch.testing.assert_close(ours, expected.view(5, 4).mean(1))

    boxes = scene.preds().bboxes[0]
    pair = boxes[:-1], boxes[1:]
    torch.testing.assert_close(giou_loss(*pair), mmdet.iou_losses.giou_loss(*pair, reduction="none"))
