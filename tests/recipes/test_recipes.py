"""One contract for all recipes: shapes of ground truth, precision, gradients, order, memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tscode_yolo.recipes import RECIPES, geometry, get_recipe
from tscode_yolo.recipes.contract import QUALITIES, SCORES, Preds, Targets
from tscode_yolo.recipes.defcn import OneToMany, OneToOne

from .scenes import PAPER, YOLO, Scene, make_grid_for, moment, positives, random_scene, random_targets, run, triples

MAKE = {
    **{name: (lambda name=name: get_recipe(name)) for name in RECIPES},
    "one-to-one twin": lambda: OneToOne(rule="sqrt_pq"),
    "one-to-many of defcn": OneToMany,
}
SOFT = {"autoassign", "dw"}
every_recipe = pytest.mark.parametrize("name", MAKE)
every_pyramid = pytest.mark.parametrize(("strides", "size"), [(YOLO, 96), (PAPER, 256)])

# which leaf each loss may move; what is not named must get no gradient from it
REACH = {
    "fcos": {"box_loss": {"distances"}, "cls_loss": {"logits"}, "ctr_loss": {"quality"}},
    "atss": {"box_loss": {"distances"}, "cls_loss": {"logits"}, "ctr_loss": {"quality"}},
    "gfl": {"box_loss": {"distances"}, "cls_loss": {"logits"}, "dfl_loss": {"bins"}},
    "autoassign": {
        "pos_loss": {"logits", "quality", "distances", "mu", "sigma"},
        "neg_loss": {"logits", "quality"},
        "ctr_loss": {"mu", "sigma"},
    },
    "ddod": {"box_loss": {"distances"}, "cls_loss": {"logits"}, "iou_loss": {"quality"}},
    "defcn": {"box_loss": {"distances"}, "cls_loss": {"logits", "quality"}, "aux_loss": {"logits"}},
    "ota": {"box_loss": {"distances"}, "cls_loss": {"logits"}, "iou_loss": {"quality"}},
    "dw": {"box_loss": {"distances"}, "pos_loss": {"logits", "quality"}, "neg_loss": {"logits", "quality"}},
    "tood": {"box_loss": {"distances"}, "cls_loss": {"logits", "quality"}},
    "simota": {
        "box_loss": {"distances"},
        "cls_loss": {"logits"},
        "obj_loss": {"quality"},
        "l1_loss": {"distances"},
    },
    "one-to-one twin": {"box_loss": {"distances"}, "cls_loss": {"logits", "quality"}},
    "one-to-many of defcn": {"box_loss": {"distances"}, "cls_loss": {"logits"}},
}


def gradients(loss, scene, when):
    leaves = {**scene.leaves, **{n.removeprefix("logit_scale_"): p for n, p in when.state.named_parameters()}}
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def used(name):
    return set().union(*REACH[name].values())


@every_recipe
def test_declaration_is_known_to_the_head(name):
    recipe = MAKE[name]()
    assert recipe.quality in QUALITIES
    assert recipe.score in SCORES
    assert (recipe.score == "p") == (recipe.quality == "none")
    assert 0 < recipe.cls_prior < 1
    assert "arXiv:" in recipe.paper
    assert all(len(loss) <= 11 for loss in recipe.loss_names(True))  # the host's progress bar


@every_pyramid
@every_recipe
def test_losses_have_the_declared_names_and_are_finite(name, strides, size):
    scene = random_scene([3, 0, 1], strides=strides, size=size)
    _, losses = run(MAKE[name](), scene)
    assert tuple(losses) == MAKE[name]().loss_names(bins=True)
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())


@every_recipe
def test_no_gt_gives_finite_losses_and_a_gradient_for_every_parameter(name):
    recipe = MAKE[name]()
    for targets in (random_targets([0, 0], 3, 64, pad=2), random_targets([0, 0], 3, 64)):
        scene = random_scene([0, 0]).with_targets(targets)
        when = moment(recipe)
        assignment, losses = run(recipe, scene, when)
        assert triples(assignment) == set()
        total = sum(losses.values())
        assert total.isfinite()
        assert total > 0  # the negatives
        for leaf, gradient in gradients(total, scene, when).items():
            assert (gradient is not None) == (leaf in used(name)), leaf
            assert gradient is None or gradient.isfinite().all(), leaf


@every_recipe
def test_one_gt_is_learned_by_points_inside_it(name):
    targets = Targets(torch.tensor([[2]]), torch.tensor([[[20.0, 24.0, 52.0, 60.0]]]), torch.tensor([[True]]))
    scene = random_scene([1]).with_targets(targets)
    assignment, _ = run(MAKE[name](), scene)
    found = triples(assignment)
    assert found
    for image, gt, point in found:
        x, y = scene.grid.points[point].tolist()
        assert (image, gt) == (0, 0)
        assert 20 < x < 52
        assert 24 < y < 60


@every_recipe
def test_padded_gt_changes_nothing(name):
    scene = random_scene([3, 1], seed=2)
    targets = scene.targets
    pad = torch.zeros(2, 4, 4)
    padded = Targets(
        torch.cat((targets.labels, torch.zeros(2, 4, dtype=torch.long)), 1),
        torch.cat((targets.bboxes, pad), 1),
        torch.cat((targets.mask, torch.zeros(2, 4, dtype=torch.bool)), 1),
    )
    plain, plain_losses = run(MAKE[name](), scene)
    other, other_losses = run(MAKE[name](), scene.with_targets(padded))
    assert triples(plain) == triples(other)
    for key, loss in plain_losses.items():
        torch.testing.assert_close(other_losses[key], loss)


@every_recipe
def test_gt_order_changes_nothing_but_the_indices(name):
    scene = random_scene([4, 4], seed=3)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Targets(*(part[:, order] for part in (scene.targets.labels, scene.targets.bboxes, scene.targets.mask)))
    plain, plain_losses = run(MAKE[name](), scene)
    other, other_losses = run(MAKE[name](), scene.with_targets(shuffled))
    assert triples(plain) == {(b, int(order[g]), i) for b, g, i in triples(other)}
    for key, loss in plain_losses.items():
        torch.testing.assert_close(other_losses[key], loss)


@every_recipe
def test_an_image_does_not_see_its_neighbours_in_the_batch(name):
    scene = random_scene([3, 0, 2], seed=4)
    whole, _ = run(MAKE[name](), scene)
    apart = set()
    for b in range(3):
        leaves = [leaf[b : b + 1] for leaf in scene.leaves.values()]
        t = scene.targets
        alone = Scene(scene.grid, *leaves, Targets(t.labels[b : b + 1], t.bboxes[b : b + 1], t.mask[b : b + 1]))
        assignment, _ = run(MAKE[name](), alone)
        apart |= {(b, g, i) for _, g, i in triples(assignment)}
    assert triples(whole) == apart


@every_recipe
def test_gt_smaller_than_a_stride_is_harmless(name):
    tiny = Targets(
        torch.tensor([[1, 0, 2]]),
        torch.tensor([[[30.0, 30.0, 31.0, 31.5], [4.0, 4.0, 4.25, 4.25], [0.0, 0.0, 60.0, 60.0]]]),
        torch.ones(1, 3, dtype=torch.bool),
    )
    recipe, scene = MAKE[name](), random_scene([3]).with_targets(tiny)
    when = moment(recipe)
    _, losses = run(recipe, scene, when)
    total = sum(losses.values())
    assert total.isfinite()
    assert all(g is None or g.isfinite().all() for g in gradients(total, scene, when).values())


@every_recipe
def test_each_loss_moves_exactly_what_it_should(name):
    recipe, scene = MAKE[name](), random_scene([3, 2], seed=6)
    when = moment(recipe)
    _, losses = run(recipe, scene, when)
    for key, loss in losses.items():
        moved = {leaf for leaf, g in gradients(loss, scene, when).items() if g is not None and g.abs().sum() > 0}
        assert moved == REACH[name][key], key


@every_recipe
def test_perfect_predictions_are_selected_and_cost_no_box_loss(name):
    """Every point inside an object predicts that object exactly; the others predict a box of their own."""
    grid = make_grid_for(96)
    targets = Targets(
        torch.tensor([[0, 2]]),
        torch.tensor([[[8.0, 8.0, 44.0, 40.0], [52.0, 48.0, 92.0, 90.0]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    logits = torch.full((1, len(grid.points), 3), -8.0)
    distances = torch.full((1, len(grid.points), 4), 0.5)
    quality = torch.full((1, len(grid.points)), -4.0)
    within = {}
    for g, (label, box) in enumerate(zip(targets.labels[0], targets.bboxes[0], strict=True)):
        sides = torch.cat((grid.points - box[:2], box[2:] - grid.points), 1)
        for i in (sides.amin(1) > 0).nonzero().squeeze(-1).tolist():
            within[i] = g
            logits[0, i, label], quality[0, i] = 8.0, 8.0
            distances[0, i] = sides[i] / grid.strides[i]
    scene = Scene(grid, logits, distances, quality, torch.zeros(1, len(grid.points), 4, 16), targets)
    assignment, losses = run(MAKE[name](), scene)
    found = triples(assignment)
    assert {g for _, g, _ in found} == {0, 1}
    assert all(within[i] == g for _, g, i in found)
    if "box_loss" in losses:
        assert losses["box_loss"].item() == pytest.approx(0, abs=1e-5)
    else:  # AutoAssign: the likelihood of an object is near 1
        assert losses["pos_loss"].item() == pytest.approx(0, abs=1e-3)


@every_recipe
def test_extreme_predictions_stay_finite(name):
    """Logits at the end of half precision, boxes without area, boxes over everything."""
    recipe, scene = MAKE[name](), random_scene([3, 2], seed=7)
    when = moment(recipe)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for leaf in (scene.logits, scene.quality, scene.bins):
            leaf.copy_(torch.randint(-1, 2, leaf.shape, generator=generator) * 65504.0)
        scene.distances.copy_(torch.randint(0, 2, scene.distances.shape, generator=generator) * 15.0)
    _, losses = run(recipe, scene, when)
    total = sum(losses.values())
    assert total.isfinite(), losses
    for leaf, gradient in gradients(total, scene, when).items():
        assert gradient is None or gradient.isfinite().all(), leaf


class LargestTensor(TorchDispatchMode):
    """Remember the largest number of elements any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.largest = max(self.largest, tensor.numel())
        return out


@every_recipe
def test_crowded_images_are_assigned_in_chunks(name, monkeypatch):
    """500 objects an image: the answer does not depend on the chunks, and no tensor outgrows one."""
    classes, size, counts = 2, 64, [500, 480, 500]
    scene = random_scene(counts, classes=classes, size=size, seed=8)
    pairs_an_image = 500 * len(scene.grid.points)
    whole, whole_losses = run(MAKE[name](), scene)
    monkeypatch.setattr(geometry, "PAIR_BUDGET", pairs_an_image)
    with LargestTensor() as memory:
        parts, parts_losses = run(MAKE[name](), scene)
    assert triples(parts) == triples(whole)
    for key, loss in whole_losses.items():
        assert loss.isfinite()
        torch.testing.assert_close(parts_losses[key], loss)
    if name not in SOFT:  # these gather the pairs inside, with four box sides each
        assert memory.largest <= 4 * pairs_an_image
    else:
        assert memory.largest <= 4 * len(triples(whole))


@every_recipe
def test_hyper_parameters_are_fields_and_gains_scale_their_loss(name):
    recipe, scene = MAKE[name](), random_scene([3, 2], seed=9)
    _, losses = run(recipe, scene)
    gains = [field.name for field in dataclasses.fields(recipe) if field.name.endswith("_gain")]
    assert len(gains) == len(losses)
    doubled = dataclasses.replace(recipe, **{gain: 2 * getattr(recipe, gain) for gain in gains})
    _, twice = run(doubled, scene)
    for key, loss in losses.items():
        torch.testing.assert_close(twice[key], 2 * loss)


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in SOFT])
def test_hard_recipes_give_a_point_one_object_and_the_twin_an_object_one_point(name):
    scene = random_scene([4, 4], seed=10)
    assignment, _ = run(get_recipe(name), scene)
    points = [(b, i) for b, _, i in triples(assignment)]
    assert len(points) == len(set(points))
    if name == "defcn":
        assert sorted((b, g) for b, g, _ in triples(assignment)) == [(b, g) for b in range(2) for g in range(4)]


@pytest.mark.parametrize("matcher", ["hungarian", "greedy"])
def test_matchers_agree_where_objects_do_not_compete(matcher):
    targets = Targets(
        torch.tensor([[0, 1]]),
        torch.tensor([[[0.0, 0.0, 30.0, 30.0], [34.0, 34.0, 64.0, 64.0]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    scene = random_scene([2], seed=11).with_targets(targets)
    expected, _ = run(OneToOne(rule="pq"), scene)
    found, _ = run(OneToOne(rule="pq", matcher=matcher), scene)
    assert positives(found) == positives(expected)


def test_objects_without_a_centre_point_take_the_nearest_free_one():
    """Two 1 px boxes between four cell centres: nothing lies inside, each still learns from a point of its own."""
    targets = Targets(
        torch.tensor([[0, 0]]),
        torch.tensor([[[7.0, 7.0, 8.0, 8.0], [8.5, 8.5, 9.5, 9.5]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    scene = random_scene([2], seed=12).with_targets(targets)
    assignment, _ = run(OneToOne(rule="pq"), scene)
    points = {i for _, _, i in triples(assignment)}
    assert len(points) == 2
    assert all((scene.grid.points[i] - 8).abs().max() <= 8 for i in points)


def test_preds_detach_cuts_everything():
    scene = random_scene([1])
    assert not any(part.requires_grad for part in vars(scene.preds().detach()).values())
    assert Preds(scene.logits, scene.distances).detach().quality is None
