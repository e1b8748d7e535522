"""Every recipe's assignment and losses equal the loop-written oracles on random scenes."""

from __future__ import annotations

import pytest
import torch

from tscode_yolo.recipes import RECIPES, get_recipe

from . import reference, reference_losses
from .scenes import PAPER, YOLO, moment, positives, random_scene, run

ASSIGN = {
    "fcos": reference.fcos,
    "atss": reference.atss,
    "gfl": reference.atss,
    "ddod": lambda image: reference.ddod(image, 0.8),
    "defcn": reference.poto,
    "ota": reference.ota,
    "tood": lambda image: reference.tood(image)[0],
    "simota": reference.simota,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ASSIGN)
def test_assignment_equals_the_oracle(name, seed):
    scene = random_scene([3, 1, 0, 2], seed=seed)
    assignment, _ = run(get_recipe(name), scene)
    expected = [ASSIGN[name](image) for image in reference.images_of(scene)]
    assert positives(assignment) == expected
    assert sum(map(len, expected)) >= (1 if name == "fcos" else 4)


@pytest.mark.parametrize(("strides", "size"), [(YOLO, 64), (PAPER, 128)])
@pytest.mark.parametrize("name", RECIPES)
def test_losses_equal_the_oracle(name, strides, size):
    scene = random_scene([2, 0, 3], strides=strides, size=size, seed=5)
    _, losses = run(get_recipe(name), scene)
    expected = reference_losses.LOSSES[name](reference.images_of(scene))
    assert list(losses) == list(expected)
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value, rel=2e-4), key


def test_autoassign_reads_the_learned_prior_of_each_class():
    scene, recipe = random_scene([3, 2], seed=1), get_recipe("autoassign")
    when = moment(recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        when.state.parameter("mu").copy_(torch.randn(6, generator=generator) * 0.5)
        when.state.parameter("sigma").copy_(torch.rand(6, generator=generator) + 0.5)
    _, losses = run(recipe, scene, when)
    mean, sigma = (when.state.parameter(name).view(3, 2).tolist() for name in ("mu", "sigma"))
    expected = reference_losses.loss_autoassign(reference.images_of(scene), mean, sigma)
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value, rel=2e-4), key


def test_ddod_box_positives_equal_the_oracle():
    scene = random_scene([3, 2], seed=3)
    assignment, _ = run(get_recipe("ddod"), scene)
    for b, image in enumerate(reference.images_of(scene)):
        found = {int(i): int(assignment.box_gt[b, i]) for i in assignment.box_fg[b].nonzero().squeeze(-1)}
        assert found == reference.ddod(image, 0.5)


def test_defcn_auxiliary_positives_equal_the_oracle():
    scene = random_scene([3, 2], seed=3)
    (_, auxiliary), _ = run(get_recipe("defcn"), scene)
    assert positives(auxiliary) == [reference.defcn_aux(image) for image in reference.images_of(scene)]


def test_tood_alignment_and_warm_up_equal_the_oracle():
    scene, recipe = random_scene([3, 2], seed=3), get_recipe("tood")
    assignment, _ = run(recipe, scene)
    for b, image in enumerate(reference.images_of(scene)):
        found, target = reference.tood(image)
        for i in found:
            assert assignment.cls_target[b, i].item() == pytest.approx(target[i], rel=1e-4)
    for epoch, oracle in ((3, reference_losses.loss_tood_warm_up), (4, reference_losses.loss_tood)):
        _, losses = run(recipe, scene, moment(recipe, epoch=epoch))
        for key, value in oracle(reference.images_of(scene)).items():
            assert losses[key].item() == pytest.approx(value, rel=2e-4), (epoch, key)
