"""From the rows of a model YAML to our layers: what the YAML says of us, checked, and the host's stock rows for it.

The host builds only layers it knows. Where a YAML names one of ours it gets a stock row instead, and our layer takes
the place of what came out. Nothing here writes into the host; `register` calls `build_layers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from tscode_yolo.config import FPN, NAME, HeadConfig


def build_layers(d: dict[str, Any], ch: int, verbose: bool, parse: Callable[..., Any]) -> Any:
    """Build a model YAML: stock layers by the host where it names ours, then ours put in their place.

    Args:
        d: the model YAML; not changed.
        ch: channels of the input image.
        verbose: log the layers.
        parse: the host's own parse_model.

    Returns:
        (layers, save) as the host's parse_model.

    Raises:
        ValueError: a row or option of ours that is wrong.
    """
    ours = check_rows(d)
    fpn = build_fpn(d, ch)
    if fpn is None and not ours:
        return parse(d, ch, verbose)
    rows = d["head"]
    if fpn is not None:
        d = {**d, "backbone": [[-1, 1, "nn.Identity", []], *d["backbone"][1:]]}
    if ours:
        config, rows = stock_rows(d, fpn)
    with own_log_lines() as lines:
        layers, save = parse({**d, "head": rows}, ch, verbose)
        if fpn is not None:
            layers[0] = in_place_of(layers[0], fpn, lines)
        if ours:
            layers[-1] = in_place_of(layers[-1], build_head(layers[-1], config, d), lines)
    return layers, save


def check_rows(d: Mapping[str, Any]) -> bool:
    """Whether a model YAML has our head.

    Raises:
        ValueError: it stands in the wrong place, or a name in the YAML is almost one of ours.
    """
    from ultralytics.nn import tasks  # not above: this module is imported while the host is still being imported

    ours = [i for i, row in enumerate(d["head"]) if row[2] == NAME]
    for name in (str(row[2]) for row in (*d["backbone"], *d["head"])):
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in (NAME, FPN)], n=1, cutoff=0.8)
        if close and name not in (NAME, FPN) and not hasattr(tasks, name):  # the host has a TorchVision of its own
            meant = NAME if close[0] == NAME.lower() else FPN
            raise ValueError(f"{yaml_name(d)}: unknown layer '{name}'; did you mean '{meant}'?")
    keys = difflib.get_close_matches("tscode", [str(k).lower() for k in d if k != "tscode"], n=1, cutoff=0.75)
    if ours and keys:
        raise ValueError(f"{yaml_name(d)}: unknown key '{keys[0]}'; the options of {NAME} go under `tscode:`")
    if any(row[2] == NAME for row in d["backbone"]):
        raise ValueError(f"{yaml_name(d)}: {NAME} belongs into `head:`, as its last row; it stands in `backbone:`")
    if not ours and d.get("tscode"):
        raise ValueError(f"{yaml_name(d)}: options under `tscode:` need {NAME} as the last row of `head:`")
    if ours and ours != [len(d["head"]) - 1]:
        raise ValueError(f"{yaml_name(d)}: {NAME} must be the last row of `head:`, and the only one of its kind")
    if ours and len(d["head"][-1]) != 4:
        raise ValueError(f"{yaml_name(d)}: expected a row [[16, 19, 22], 1, {NAME}, [nc]], got {d['head'][-1]}")
    return bool(ours)


@contextlib.contextmanager
def own_log_lines() -> Iterator[dict[int, str]]:
    """Hold back what the host logs inside; at the end say it, with the lines put into the given dict for those layers.

    The host logs a row per layer, which begins with its number; for a layer of ours that would be the stub's row.
    """
    lines: dict[int, str] = {}
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    LOGGER.addFilter(hold)
    try:
        yield lines
    finally:
        LOGGER.removeFilter(hold)
        for record in held:
            row = re.match(r" *(\d+) ", record.getMessage())
            if row and int(row[1]) in lines:
                record.msg, record.args = lines[int(row[1])], ()
            LOGGER.handle(record)


def build_fpn(d: Mapping[str, Any], ch: int) -> Any:
    """The backbone with pyramid that the YAML's first row names, or None."""
    rows = [row for row in (*d["backbone"], *d["head"]) if row[2] == FPN]
    if not rows:
        return None
    if len(rows) > 1 or rows[0] is not d["backbone"][0]:
        raise ValueError(f"{yaml_name(d)}: {FPN} must be the first row of `backbone:`, and the only one of its kind")
    from tscode_yolo.fpn import TorchvisionFPN

    with errors_name(d):
        return TorchvisionFPN.from_row(rows[0][3], ch)


def stock_rows(d: Mapping[str, Any], fpn: Any) -> tuple[HeadConfig, list[Any]]:
    """Our head's options, and `head:` with a stock row in its place.

    A head that reads a pyramid layer as a whole gets the host's Index rows that hand out its maps one by one.
    """
    *rows, (source, number, _, args) = d["head"]
    at = len(d["backbone"]) + len(rows)  # layer number of the head
    whole = fpn is not None and isinstance(source, int) and source % at == 0
    args, options = split_row([[0] * 2 if whole else source, number, NAME, args], d)
    with errors_name(d):
        config = HeadConfig.from_mapping(d.get("tscode"), options)
    if idle := config.idle({**(d.get("tscode") or {}), **(options or {})}, bool(d.get("end2end"))):
        LOGGER.warning(f"{yaml_name(d)}: {idle}")
    if whole:
        maps = list(enumerate(fpn.out_channels))[not config.finer :]
        rows += [[0, 1, "Index", [channels, i]] for i, channels in maps]
        source = list(range(at, at + len(maps)))
    return config, [*rows, [source, number, "Detect", args]]


def split_row(row: list[Any], d: Mapping[str, Any]) -> tuple[list[Any], Mapping[str, Any] | None]:
    """The host's arguments of the head's row, copied, and our options behind them."""
    source, args = row[0], list(row[3])
    if not isinstance(source, list) or len(source) < 2:
        raise ValueError(
            f"{yaml_name(d)}: {NAME} reads at least 2 layers, its row names {source}. "
            f"Expected e.g. [[16, 19, 22], 1, {NAME}, [nc]]"
        )
    options = args.pop() if len(args) > 1 else None
    if len(args) != 1 or isinstance(args[0], Mapping) or not (options is None or isinstance(options, Mapping)):
        raise ValueError(
            f"{yaml_name(d)}: the arguments of {NAME} are [nc] or [nc, {{option: value, ...}}], got {row[3]}"
        )
    return args, options


def build_head(stub: Any, config: HeadConfig, d: Mapping[str, Any]) -> Any:
    """Our head with the stock head's inputs and settings."""
    from tscode_yolo.head import TSCODEDetect

    ch = [tower[0].conv.in_channels for tower in stub.cv2]
    end2end = getattr(stub, "one2one_cv2", None) is not None
    with errors_name(d):
        recipe = resolve_recipe(config.recipe)
        config = with_recipe(config, recipe)
        head: Any = TSCODEDetect(stub.nc, stub.reg_max, end2end, ch, config.as_dict())
    if recipe is not None and stub.reg_max == 1 and recipe.loss_names(False) != recipe.loss_names(True):
        LOGGER.info(
            f"recipe {config.recipe}: reg_max 1 regresses plain distances, so there is no distribution focal loss; "
            "set `reg_max: 16` in the model YAML for the published form"
        )
    if config.finer and head.nl == 2:
        LOGGER.warning(
            f"{yaml_name(d)}: with `finer: true` the first of {NAME}'s 3 inputs is the finer map, which predicts "
            "nothing; 2 levels are left. Name C2 first, e.g. [[2, 16, 19, 22], 1, TSCODEDetect, [nc]]"
        )
    head.recipe_state = recipe.state(stub.nc, head.nl) if recipe is not None else None
    return head


def in_place_of(stub: Any, module: Any, lines: dict[int, str]) -> Any:
    """Our module with the number and inputs of the host's layer it replaces; its log line goes into `lines`."""
    module.i, module.f, module.type = stub.i, stub.f, f"{type(module).__module__}.{type(module).__name__}"
    module.np = sum(p.numel() for p in module.parameters())
    shown = f"{module.i:>3}{module.f!s:>20}{1:>3}{module.np:10.0f}  {module.type:<45}"
    lines[module.i] = f"{shown}[{module.extra_repr()}]"
    return module


def resolve_recipe(spec: str | Mapping[str, Any]) -> Any:
    """The recipe an option names, or None for the host's own loss (without loading any)."""
    if spec in ("ultralytics", {"name": "ultralytics"}):
        return None
    from tscode_yolo.recipes import recipe_from

    return recipe_from(spec)


def with_recipe(config: HeadConfig, recipe: Any) -> HeadConfig:
    """The options with what the recipe wants of the head; ValueError if the user asked for something else."""
    if recipe is None and config.quality != "none":
        raise ValueError(
            f"tscode option quality={config.quality} without a recipe: the host's loss does not train that branch, and "
            "its noise would enter the scores. Set recipe (fcos, atss, ...), or leave quality and score out"
        )
    if recipe is None:
        return config
    if config.quality not in ("none", recipe.quality) or config.score not in ("p", recipe.score):
        raise ValueError(
            f"tscode options quality={config.quality}, score={config.score}: recipe {config.recipe!r} comes with "
            f"quality={recipe.quality}, score={recipe.score}. Leave both out, or change the recipe"
        )
    return dataclasses.replace(
        config,
        quality=recipe.quality,
        score=recipe.score,
        cls_prior=config.cls_prior or recipe.cls_prior,
        quality_prior=config.quality_prior or recipe.quality_prior,
        box_prior=config.box_prior or recipe.box_prior,
    )


@contextlib.contextmanager
def errors_name(d: Mapping[str, Any]) -> Iterator[None]:
    """Put the model YAML's name before the message of a wrong option inside."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise type(e)(f"{yaml_name(d)}: {e}") from None


def yaml_name(d: Mapping[str, Any]) -> str:
    """What to call a model YAML in a message."""
    return Path(str(d.get("yaml_file") or "model YAML")).name
