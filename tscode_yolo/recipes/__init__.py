"""Training recipes: the label assignment, losses and score rule of a published detector, by name.

``RECIPES`` is the table; ``get_recipe`` reads what a user wrote. The host's own loss is no recipe: ``"ultralytics"``,
the default, leaves it untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from tscode_yolo.config import unknown_name
from tscode_yolo.recipes.atss import ATSS
from tscode_yolo.recipes.autoassign import AutoAssign
from tscode_yolo.recipes.contract import Recipe
from tscode_yolo.recipes.ddod import DDOD
from tscode_yolo.recipes.defcn import DeFCN
from tscode_yolo.recipes.dw import DW
from tscode_yolo.recipes.fcos import FCOS
from tscode_yolo.recipes.gfl import GFL
from tscode_yolo.recipes.ota import OTA
from tscode_yolo.recipes.simota import SimOTA
from tscode_yolo.recipes.tood import TOOD

__all__ = ["RECIPES", "Recipe", "get_recipe", "recipe_from"]

RECIPES: dict[str, type[Recipe]] = {
    "fcos": FCOS,
    "atss": ATSS,
    "gfl": GFL,
    "autoassign": AutoAssign,
    "ddod": DDOD,
    "defcn": DeFCN,
    "ota": OTA,
    "dw": DW,
    "tood": TOOD,
    "simota": SimOTA,
}


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """Make a recipe, with the published hyper-parameters unless overridden.

    Args:
        name: key of ``RECIPES``.
        overrides: fields of the recipe, e.g. ``topk=13`` or ``box_gain=1.5``.

    Raises:
        ValueError: unknown name or field (the closest one is named), or a value that is out of range or of another
            type than the field's default (a whole number serves as a float).

    Example:
        >>> get_recipe("atss", topk=11).topk
        11
    """
    if name == "ultralytics":
        raise ValueError(
            f"the host's own loss takes no recipe options, got {overrides}; its gains are arguments of train"
        )
    if name not in RECIPES:
        raise ValueError(unknown_name("recipe", str(name), [*RECIPES, "ultralytics"]))
    recipe = RECIPES[name]
    defaults = {field.name: field.default for field in fields(recipe)}
    for key, value in overrides.items():
        if key not in defaults:
            raise ValueError(unknown_name(f"option of recipe {name}", key, list(defaults)))
        _check_value(key, value, type(defaults[key]), recipe)
    return recipe(**overrides)


def recipe_from(spec: str | Mapping[str, Any]) -> Recipe:
    """Make the recipe a model YAML asks for.

    Args:
        spec: a name, or a mapping of ``name`` and hyper-parameters.

    Raises:
        ValueError: the mapping has no name; or as ``get_recipe``.

    Example:
        >>> recipe_from({"name": "atss", "topk": 11}).topk
        11
    """
    if isinstance(spec, str):
        return get_recipe(spec)
    if "name" not in spec:
        raise ValueError(f"expected a recipe mapping with a name, like {{name: atss, topk: 11}}, got {dict(spec)}")
    if strange := [key for key in spec if not isinstance(key, str)]:
        raise ValueError(f"expected names of options in the recipe mapping {dict(spec)}, got {strange[0]!r}")
    return get_recipe(**spec)


def _check_value(key: str, value: Any, kind: type, recipe: type[Recipe]) -> None:
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"expected recipe option {key} of type {kind.__name__}, got {value!r}")
    if isinstance(value, str):
        return
    low = 1 if kind is int and not key.endswith(("_epoch", "_epochs")) else 0
    if not (isfinite(value) and value >= low):
        raise ValueError(f"expected recipe option {key} finite and at least {low}, got {value!r}")
    if key in recipe.above_zero and value == 0:
        raise ValueError(f"expected recipe option {key} above 0, got {value!r}")
    if key in recipe.at_most_one and value > 1:
        raise ValueError(f"expected recipe option {key} between 0 and 1, got {value!r}")
