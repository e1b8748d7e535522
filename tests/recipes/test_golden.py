"""Cases small enough to work by hand; the working stands in the docstrings.

Points of a 64 px image at strides 8, 16, 32: an 8x8 grid at 4, 12, 20, ..., a 4x4 grid at 8, 24, 40, 56, and a 2x2 grid
at 16, 48. ``TINY`` is a 16 px image at stride 8: points 0..3 at (4, 4), (12, 4), (4, 12), (12, 12).
"""

from __future__ import annotations

import math

import pytest
import torch

from tscode_yolo.recipes import get_recipe
from tscode_yolo.recipes.contract import Moment, Pairs, Preds, RecipeState, Targets
from tscode_yolo.recipes.defcn import OneToOne
from tscode_yolo.recipes.geometry import centerness, iou, make_grid, nearest_points
from tscode_yolo.recipes.losses import (
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    iou_square_loss,
    joint_log_scores,
    quality_focal_loss,
    score_focal_loss,
)
from tscode_yolo.recipes.soft import center_prior, spread

from .scenes import make_grid_for, moment, positives

LN2 = math.log(2)
TINY = make_grid([(2, 2)], [8.0])
WHOLE = [0.0, 0.0, 16.0, 16.0]  # of the tiny image


def objects(*boxes, labels=None):
    labels = labels or [0] * len(boxes)
    return Targets(torch.tensor([labels]), torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.bool))


def flat_preds(grid, boxes=None, classes=1):
    """All probabilities one half; boxes as given, or empty."""
    points = len(grid.points)
    boxes = torch.zeros(1, points, 4) if boxes is None else torch.tensor([boxes])
    return Preds(torch.zeros(1, points, classes), boxes, torch.zeros(1, points))


def assign(name, targets, grid, preds=None):
    recipe = get_recipe(name)
    return recipe.assign(preds or flat_preds(grid), targets, grid, moment(recipe, 1, len(grid.shapes)))


# --- geometry and losses ----------------------------------------------------------------------------------------------


def test_boxes():
    """Overlap 1 of areas 4 and 4: 1/7. Side by side with a gap of 1: union 2, hull 3, GIoU -1/3, loss 4/3."""
    a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    assert iou(a, b).item() == pytest.approx(1 / 7)
    assert iou(a, a).item() == 1
    inverted = torch.tensor([[2.0, 2.0, 1.0, 1.0]])
    assert iou(a, inverted).item() == 0
    unit, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]])
    assert giou_loss(unit, right).item() == pytest.approx(4 / 3)
    assert iou_square_loss(a, b).item() == pytest.approx(1 - 1 / 49)


def test_centerness():
    """(20, 20) in [8, 8, 40, 40]: sides 12 and 20 both ways, sqrt(0.6 * 0.6). On a side and outside: 0."""
    box = torch.tensor([8.0, 8.0, 40.0, 40.0])
    assert centerness(torch.tensor([20.0, 20.0]), box).item() == pytest.approx(0.6)
    assert centerness(torch.tensor([8.0, 20.0]), box).item() == 0
    assert centerness(torch.tensor([50.0, 20.0]), box).item() == 0


@pytest.mark.parametrize(("rule", "s"), [("p", 0.5), ("pq", 0.25), ("sqrt_pq", 0.5)])
def test_class_losses_at_even_odds(rule, s):
    """p = q = 1/2. Focal: 0.25 (1-s)^2 (-ln s), 0.75 s^2 (-ln(1-s)). Quality focal to 0.75: |0.75-s|^2 BCE."""
    preds = Preds(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4), torch.zeros(1, 1))
    log_s, log_rest = joint_log_scores(preds, rule)
    assert log_s.exp().flatten().tolist() == pytest.approx([s, s])
    assert log_rest.exp().flatten().tolist() == pytest.approx([1 - s, 1 - s])
    target = torch.tensor([[[1.0, 0.0]]])
    hit, miss = 0.25 * (1 - s) ** 2 * -math.log(s), 0.75 * s**2 * -math.log(1 - s)
    assert score_focal_loss(preds, target, rule).flatten().tolist() == pytest.approx([hit, miss])
    if rule == "p":
        assert focal_loss(preds, target).flatten().tolist() == pytest.approx([hit, miss])
    bce = -(0.75 * math.log(s) + 0.25 * math.log(1 - s))
    quality = quality_focal_loss(preds, target * 0.75, rule).flatten().tolist()
    assert quality == pytest.approx([(0.75 - s) ** 2 * bce, s**2 * -math.log(1 - s)], abs=1e-7)


def test_joint_score_of_sure_predictions_keeps_its_small_side():
    """z = 20 with q = 1/2: 1 - s is 1/2, although p rounds to 1. z = q = 30: 1 - s is 2 e^-30, not 0."""
    preds = Preds(torch.tensor([[[20.0], [30.0]]]), torch.zeros(1, 2, 4), torch.tensor([[0.0, 30.0]]))
    rest = joint_log_scores(preds, "pq")[1].flatten().tolist()
    assert rest == pytest.approx([math.log(0.5), math.log(2) - 30], rel=1e-5)


def test_distribution_focal_loss():
    """Uniform over 16 bins: ln 16 wherever the target lies. Beyond the last bin it is clipped to 14.9."""
    bins = torch.zeros(1, 4, 16)
    assert distribution_focal_loss(bins, torch.tensor([[0.0, 3.2, 14.0, 40.0]])).item() == pytest.approx(math.log(16))
    sure = torch.full((1, 4, 16), -100.0)
    sure[..., 14], sure[..., 15] = math.log(0.1), math.log(0.9)
    expected = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert distribution_focal_loss(sure, torch.full((1, 4), 40.0)).item() == pytest.approx(expected, rel=1e-4)


def test_equal_distances_go_to_the_lower_index():
    """A centre on the corner of four cells: 4 at equal distance, then 8; nine take the first five of the eight."""
    grid = make_grid_for(64, (8.0,))
    chosen = nearest_points(grid, objects([16.0, 16.0, 48.0, 48.0]), 9)[0, 0]
    inner, outer = {27, 28, 35, 36}, [19, 20, 26, 29, 34, 37, 43, 44]
    assert set(chosen.tolist()) == inner | set(outer[:5])


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_fcos_takes_the_centre_square():
    """[8, 8, 40, 40]: centre 24, square (12, 36): columns 20 and 28 of stride 8. Stride 16 starts at 64 px."""
    assignment = assign("fcos", objects([8.0, 8.0, 40.0, 40.0]), make_grid_for(64))
    assert positives(assignment) == [dict.fromkeys([18, 19, 26, 27], 0)]
    assert assignment.quality_target[0, [18, 19]].tolist() == pytest.approx([0.6, math.sqrt(0.6 * 12 / 20)])
    assert assignment.box_norm.item() == pytest.approx(4 * 0.6)


def test_fcos_ranges_include_both_ends():
    """[8, 8, 120, 120], 128 px: stride 8 at 60 and 68, longest side 60; stride 16 at 56 and 72, longest just 64."""
    grid = make_grid_for(128)
    found = positives(assign("fcos", objects([8.0, 8.0, 120.0, 120.0]), grid))[0]
    fine = {row * 16 + column for row in (7, 8) for column in (7, 8)}
    coarse = {256 + row * 8 + column for row in (3, 4) for column in (3, 4)}
    assert set(found) == fine | coarse


def test_fcos_gives_a_contested_point_to_the_smaller_box_and_drops_boxes_without_points():
    """Both centred at 32: points 28 and 36 belong to the inner; the outer gets nothing, nor does a 1 px box."""
    boxes = objects([0.0, 0.0, 64.0, 64.0], [16.0, 16.0, 48.0, 48.0], [1.0, 1.0, 2.0, 2.0])
    assert positives(assign("fcos", boxes, make_grid_for(64))) == [dict.fromkeys([27, 28, 35, 36], 1)]


def test_atss_threshold():
    """[12, 12, 44, 44], area 1024, centred on the cell at 28.

    Candidates: 9 of stride 8, 9 of 16, 4 of 32; all anchors (64, 128, 256 px) contain the box, so their IoU is 1/4,
    1/16, 1/64. Mean 2.875 / 22 = 0.1307, unbiased deviation 0.1030, threshold 0.2337: the nine of stride 8.
    """
    found = positives(assign("atss", objects([12.0, 12.0, 44.0, 44.0]), make_grid_for(64)))
    assert found == [dict.fromkeys([row * 8 + column for row in (2, 3, 4) for column in (2, 3, 4)], 0)]


def test_atss_keeps_the_best_where_the_threshold_passes_them_all():
    """The same at strides 8 and 16 alone: mean 0.1563 and deviation 0.0965 pass 1/4, which nobody exceeds."""
    found = positives(assign("atss", objects([12.0, 12.0, 44.0, 44.0]), make_grid_for(64, (8.0, 16.0))))
    assert found == [dict.fromkeys([row * 8 + column for row in (2, 3, 4) for column in (2, 3, 4)], 0)]


def test_ddod_level_weights_and_their_memory():
    """Counts 10, 4, 1: 2 - 9/9, 2 - 3/9, 2 - 0. Validation reads them, training adds to them."""
    grid, recipe = make_grid([(1, 1), (1, 1), (1, 1)], [8, 16, 32]), get_recipe("ddod")
    state = recipe.state(1, 3)
    added = torch.tensor([10, 4, 1])
    assert recipe.level_weights(grid, added, Moment(state, learning=False)).tolist() == [2, 2, 2]
    weights = recipe.level_weights(grid, added, Moment(state, learning=True))
    assert weights.tolist() == pytest.approx([1, 2 - 1 / 3, 2])
    assert state.level_counts.tolist() == [10, 4, 1]


def test_tood_alignment_is_target_weight_and_normaliser():
    """IoU 1, 1/2, 1/4, 0; score sqrt(1/2 * 1/2) = 1/2, so t = 1, 2^-6, 2^-12 and nothing at the fourth.

    Box: 2 * (2^-6 * 1/2 + 2^-12 * 3/4) / sum t. Class: BCE at s = 1/2 is ln 2 for any target, times |t - 1/2|^2.
    """
    boxes = [WHOLE, [0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 24.0, 24.0]]
    recipe, targets, preds = get_recipe("tood"), objects(WHOLE), flat_preds(TINY, boxes)
    when = moment(recipe, 1, 1)
    assignment = recipe.assign(preds, targets, TINY, when)
    t = [1, 2**-6, 2**-12]
    assert positives(assignment) == [{0: 0, 1: 0, 2: 0}]
    assert assignment.cls_target[0].tolist() == pytest.approx([*t, 0], rel=1e-6)
    losses = recipe.losses(preds, targets, TINY, assignment, when)
    assert losses["box_loss"].item() == pytest.approx(2 * (t[1] * 0.5 + t[2] * 0.75) / sum(t), rel=1e-4)
    classes = sum((x - 0.5) ** 2 for x in [*t, 0]) * LN2 / sum(t)
    assert losses["cls_loss"].item() == pytest.approx(classes, rel=1e-5)


def test_simota_takes_as_many_points_as_the_overlaps_add_up_to():
    """IoU 1, 3/4, 1/4, 0 add up to 2: the two best boxes.

    Class BCE at even odds: ln 2 each. Objectness: 4 ln 2 over 2. Box: 5 * (0 + 1 - 9/16) / 2. L1: 4 px are 0.5 strides,
    over 2.
    """
    boxes = [WHOLE, [0.0, 0.0, 16.0, 12.0], [0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 24.0, 24.0]]
    recipe, targets, preds = get_recipe("simota"), objects(WHOLE), flat_preds(TINY, boxes)
    when = moment(recipe, 1, 1)
    assignment = recipe.assign(preds, targets, TINY, when)
    assert positives(assignment) == [{0: 0, 1: 0}]
    losses = recipe.losses(preds, targets, TINY, assignment, when)
    expected = {"box_loss": 5 * 7 / 16 / 2, "cls_loss": LN2, "obj_loss": 2 * LN2, "l1_loss": 0.25}
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected)
    for finished, expected_l1 in ((4, 0.0), (5, 0.25)):  # the last 15 of 20 epochs begin when 5 are finished
        at = recipe.losses(preds, targets, TINY, assignment, moment(recipe, 1, 1, epoch=finished))
        assert at["l1_loss"].item() == pytest.approx(expected_l1)


def test_ota_supplies_as_many_labels_as_the_overlaps_add_up_to():
    """IoU 1, 1, 0, 0: two labels, which go where the boxes are; four perfect boxes: four labels, background none."""
    away = [16.0, 16.0, 24.0, 24.0]
    found = assign("ota", objects(WHOLE), TINY, flat_preds(TINY, [WHOLE, WHOLE, away, away]))
    assert positives(found) == [{0: 0, 1: 0}]
    found = assign("ota", objects(WHOLE), TINY, flat_preds(TINY, [WHOLE] * 4))
    assert positives(found) == [dict.fromkeys(range(4), 0)]


def test_poto_prefers_the_best_pairing_to_the_best_pair():
    """Quality p^0.2, p of classes 0, 1 at point 0: 0.9, 0.8; at point 1: 0.7, 0.1.

    Both objects want point 0. 0.9^0.2 + 0.1^0.2 = 1.610 loses to 0.7^0.2 + 0.8^0.2 = 1.888; greedy leaves one out.
    """
    p = torch.tensor([[[0.9, 0.8], [0.7, 0.1], [0.001, 0.001], [0.001, 0.001]]])
    preds = Preds(torch.logit(p), torch.tensor([[WHOLE] * 4]))
    targets, when = objects(WHOLE, WHOLE, labels=[0, 1]), Moment(RecipeState())
    assert positives(OneToOne().assign(preds, targets, TINY, when)) == [{0: 1, 1: 0}]
    assert positives(OneToOne(matcher="greedy").assign(preds, targets, TINY, when)) == [{0: 0}]


def test_centre_prior():
    """One stride off in x: exp(-1/2). With mean 1 there and deviation 2 in y, 4 strides off in y: exp(-16/8)."""
    grid, targets = make_grid([(8, 8)], [8.0]), objects([0.0, 0.0, 56.0, 56.0])  # centre 28, on the cell (3, 3)
    zero, one = torch.zeros(2), torch.ones(2)
    pair = Pairs(*torch.tensor([[0], [0], [3 * 8 + 4]]))
    assert center_prior(grid, targets, pair, zero, one).item() == pytest.approx(math.exp(-0.5))
    pair = Pairs(*torch.tensor([[0], [0], [7 * 8 + 4]]))
    mean, sigma = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert center_prior(grid, targets, pair, mean, sigma).item() == pytest.approx(math.exp(-2))


def test_spread_stretches_over_each_object():
    """Values 1, 2, 3 of one object and 7 of another: 0, 1/2, 1 and, alone, 1."""
    targets = objects(WHOLE, WHOLE)
    pairs = Pairs(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0]))
    assert spread(torch.tensor([1.0, 2.0, 3.0, 7.0]), pairs, targets).tolist() == pytest.approx([0, 0.5, 1, 1])
    capped = spread(torch.tensor([0.0, 0.5, 3.0, 7.0]), pairs, targets, ceiling=1.0)
    assert capped[:2].tolist() == pytest.approx([0, 0.5])


def test_autoassign_of_one_point():
    """One point at an object's centre with a perfect box, p = q = 1/2: weight 1, likelihood 1/4.

    Positive 0.25 * ln 4; negatives: the point counts 0 for its class, nothing else exists; centre 0.75 * 1 / 1.
    """
    grid, recipe = make_grid([(1, 1)], [8.0]), get_recipe("autoassign")
    box = [0.0, 0.0, 8.0, 8.0]
    targets, preds, when = objects(box), flat_preds(make_grid([(1, 1)], [8.0]), [box]), moment(recipe, 1, 1)
    losses = recipe.losses(preds, targets, grid, recipe.assign(preds, targets, grid, when), when)
    expected = {"pos_loss": 0.25 * math.log(4), "neg_loss": 0, "ctr_loss": 0.75}
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_dw_of_one_point():
    """The same point: P = C = 1/4, w+ = e^(5/4) / e^(3/4) = e^(1/2), w- = 1 (alone, its spread is 1)."""
    grid, recipe = make_grid([(1, 1)], [8.0]), get_recipe("dw")
    box = [0.0, 0.0, 8.0, 8.0]
    targets, preds, when = objects(box), flat_preds(grid, [box]), moment(recipe, 1, 1)
    losses = recipe.losses(preds, targets, grid, recipe.assign(preds, targets, grid, when), when)
    expected = {
        "box_loss": 0,
        "pos_loss": 0.25 * math.exp(0.5) * math.log(4),
        "neg_loss": -math.log(0.75) / 16,
    }
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
