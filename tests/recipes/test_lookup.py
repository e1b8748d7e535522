"""Recipes by name, and the answers to what users mistype."""

from __future__ import annotations

import pytest

from tscode_yolo.recipes import RECIPES, get_recipe, recipe_from


def test_the_table_holds_the_papers_nine_and_simota():
    assert list(RECIPES) == ["fcos", "atss", "gfl", "autoassign", "ddod", "defcn", "ota", "dw", "tood", "simota"]


def test_overrides_replace_the_published_values():
    assert get_recipe("tood").topk == 13
    assert get_recipe("tood", topk=10, alpha=0.5, box_gain=3).box_gain == 3


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("foc", {}, ValueError, "did you mean 'fcos'"),
        ("tod", {}, ValueError, "did you mean 'tood'"),
        ("ATSS", {}, ValueError, "did you mean 'atss'"),
        ("retinanet", {}, ValueError, r"'retinanet'\. Valid: fcos"),
        ("atss", {"top_k": 9}, ValueError, "did you mean 'topk'"),
        ("atss", {"topk": 9.5}, ValueError, "topk of type int, got 9.5"),
        ("atss", {"topk": True}, ValueError, "topk of type int, got True"),
        ("atss", {"box_gain": -1.0}, ValueError, "at least 0, got -1.0"),
        ("atss", {"topk": 0}, ValueError, "at least 1, got 0"),
        ("atss", {"box_gain": float("nan")}, ValueError, "finite"),
        ("ota", {"epsilon": 0.0}, ValueError, "epsilon above 0, got 0.0"),
        ("fcos", {"radius": 0}, ValueError, "radius above 0, got 0"),
        ("dw", {"sigma": 0.0}, ValueError, "sigma above 0"),
        ("ddod", {"alpha_cls": 1.1}, ValueError, "alpha_cls between 0 and 1, got 1.1"),
        ("defcn", {"alpha": 2.0}, ValueError, "alpha between 0 and 1"),
        ("defcn", {"matcher": "munkres"}, ValueError, '"hungarian" or "greedy", got \'munkres\''),
    ],
)
def test_mistakes_get_one_clear_error(name, overrides, error, message):
    with pytest.raises(error, match=message):
        get_recipe(name, **overrides)


def test_an_option_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match=r"expected names of options in the recipe mapping .*, got 3"):
        recipe_from({"name": "atss", 3: 4})
