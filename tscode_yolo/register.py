"""Plug the head into Ultralytics: the only module that writes into the host's namespace.

Every change is a wrapper that hands over to the original unless a TSCODE head is involved, so stock models run the
host's own code. `PATCHES` lists them all; `unregister` puts the originals back.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tscode_yolo
from tscode_yolo.config import HeadConfig, cfg_path

SUPPORTED = ((8, 4, 0), (9, 0, 0))  # ultralytics, first excluded last
NAME, FPN = "TSCODEDetect", "TorchvisionFPN"  # in the model YAMLs

_originals: dict[tuple[str, str], Any] = {}  # (module, attribute path) -> what the host had there
_warned: set[str] = set()


def _is_ours(head: object) -> bool:
    from tscode_yolo.head import TSCODEDetect

    return isinstance(head, TSCODEDetect)


def _head_of(model: Any) -> Any:
    """Last layer of a host model, or None."""
    layers = getattr(model, "model", None)
    return layers[-1] if layers is not None and len(layers) else None


# --- ultralytics.nn.tasks ---------------------------------------------------------------------------------------------


def _parse_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let the host build a stock layer where a YAML names one of ours, then put ours in its place."""

    @functools.wraps(original)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
        fpn = _build_fpn(d, ch)
        rows = d["head"]
        ours = [i for i, row in enumerate(rows) if row[2] == NAME]
        misspelt = [row[2] for row in rows if str(row[2]).lower() == NAME.lower() and row[2] != NAME]
        if misspelt:
            raise ValueError(f"{_yaml_name(d)}: unknown layer '{misspelt[0]}'; did you mean '{NAME}'?")
        if not ours and d.get("tscode"):
            raise ValueError(f"{_yaml_name(d)}: options under `tscode:` need {NAME} as the last row of `head:`")
        if fpn is None and not ours:
            return original(d, ch, verbose)
        if fpn is not None:
            d = {**d, "backbone": [[-1, 1, "nn.Identity", []], *d["backbone"][1:]]}
        if ours and ours != [len(rows) - 1]:
            raise ValueError(f"{_yaml_name(d)}: {NAME} must be the last row of `head:`, and the only one of its kind")
        if ours:
            config, rows = _stock_rows(d, fpn)
        layers, save = original({**d, "head": rows}, ch, verbose)
        if fpn is not None:
            layers[0] = _in_place_of(layers[0], fpn, verbose)
        if ours:
            layers[-1] = _in_place_of(layers[-1], _build_head(layers[-1], config, d), verbose)
        return layers, save

    return parse_model


def _build_fpn(d: Mapping[str, Any], ch: int) -> Any:
    """The backbone with pyramid that the YAML's first row names, or None."""
    rows = [row for row in (*d["backbone"], *d["head"]) if row[2] == FPN]
    if not rows:
        return None
    if len(rows) > 1 or rows[0] is not d["backbone"][0]:
        raise ValueError(f"{_yaml_name(d)}: {FPN} must be the first row of `backbone:`, and the only one of its kind")
    from tscode_yolo.fpn import TorchvisionFPN

    try:
        return TorchvisionFPN.from_row(rows[0][3], ch)
    except ValueError as e:
        raise ValueError(f"{_yaml_name(d)}: {e}") from None


def _stock_rows(d: Mapping[str, Any], fpn: Any) -> tuple[HeadConfig, list[Any]]:
    """Our head's options, and `head:` with a stock row in its place.

    A head that reads a pyramid layer as a whole gets the host's Index rows that hand out its maps one by one.
    """
    *rows, (source, number, _, args) = d["head"]
    at = len(d["backbone"]) + len(rows)  # layer number of the head
    whole = fpn is not None and isinstance(source, int) and source % at == 0
    args, options = _split_row([[0] * 2 if whole else source, number, NAME, args], d)
    config = HeadConfig.from_mapping(d.get("tscode"), options)
    if whole:
        maps = list(enumerate(fpn.out_channels))[not config.finer :]
        rows += [[0, 1, "Index", [channels, i]] for i, channels in maps]
        source = list(range(at, at + len(maps)))
    return config, [*rows, [source, number, "Detect", args]]


def _split_row(row: list[Any], d: Mapping[str, Any]) -> tuple[list[Any], Mapping[str, Any] | None]:
    """The host's arguments of the head's row, copied, and our options behind them."""
    source, args = row[0], list(row[3])
    if not isinstance(source, list) or len(source) < 2:
        raise ValueError(
            f"{_yaml_name(d)}: {NAME} reads at least 2 layers, its row names {source}. "
            f"Expected e.g. [[16, 19, 22], 1, {NAME}, [nc]]"
        )
    options = args.pop() if len(args) > 1 else None
    if len(args) != 1 or not (options is None or isinstance(options, Mapping)):
        raise ValueError(
            f"{_yaml_name(d)}: the arguments of {NAME} are [nc] or [nc, {{option: value, ...}}], got {row[3]}"
        )
    return args, options


def _build_head(stub: Any, config: HeadConfig, d: Mapping[str, Any]) -> Any:
    """Our head with the stock head's inputs and settings."""
    from tscode_yolo.head import TSCODEDetect

    recipe = _recipe(config.recipe)
    ch = [tower[0].conv.in_channels for tower in stub.cv2]
    end2end = getattr(stub, "one2one_cv2", None) is not None
    try:
        config = _with_recipe(config, recipe)
        head: Any = TSCODEDetect(stub.nc, stub.reg_max, end2end, ch, config.as_dict())
    except ValueError as e:
        raise ValueError(f"{_yaml_name(d)}: {e}") from None
    head.recipe_state = recipe.state(stub.nc, head.nl) if recipe is not None else None
    return head


def _in_place_of(stub: Any, module: Any, verbose: bool) -> Any:
    """Our module with the number, inputs and log line of the host's layer it replaces."""
    from ultralytics.utils import LOGGER

    module.i, module.f, module.type = stub.i, stub.f, f"{type(module).__module__}.{type(module).__name__}"
    module.np = sum(p.numel() for p in module.parameters())
    if verbose:
        shown = f"{module.i:>3}{module.f!s:>20}{1:>3}{module.np:10.0f}  {module.type:<45}"
        LOGGER.info(f"{shown}[{module.extra_repr()}]")
    return module


def _recipe(spec: str | Mapping[str, Any]) -> Any:
    """The recipe an option names, or None for the host's own loss (without loading any)."""
    if spec in ("ultralytics", {"name": "ultralytics"}):
        return None
    from tscode_yolo.recipes import recipe_from

    return recipe_from(spec)


def _with_recipe(config: HeadConfig, recipe: Any) -> HeadConfig:
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


def _yaml_name(d: Mapping[str, Any]) -> str:
    return Path(str(d.get("yaml_file") or "model YAML")).name


def _check_yaml(original: Callable[..., Any]) -> Callable[..., Any]:
    """Find our model YAMLs by bare name. What the host finds itself, the user's own file first, wins."""

    @functools.wraps(original)
    def check_yaml(file: Any, *args: Any, hard: bool = True, **kwargs: Any) -> Any:
        name = _without_scale(str(file))
        if not cfg_path(name):
            return original(file, *args, hard=hard, **kwargs)
        return (
            original(file, *args, hard=False, **kwargs)
            or original(name, *args, hard=False, **kwargs)
            or str(cfg_path(name))
        )

    return check_yaml


def _check_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """Find our data YAMLs by bare name, with or without .yaml, as the host finds its own."""

    @functools.wraps(original)
    def check_file(file: Any, *args: Any, hard: bool = True, **kwargs: Any) -> Any:
        ours = cfg_path(str(file))
        if ours is None:
            return original(file, *args, hard=hard, **kwargs)
        return original(file, *args, hard=False, **kwargs) or str(ours)

    return check_file


def _scale_letter(stem: str) -> re.Match[str] | None:
    """Match tscoden, tscode-n (and n s m l x alike), whose scale the host's own pattern does not see."""
    return re.fullmatch(r"(tscode)-?([nsmlx])", stem)


def _without_scale(file: str) -> str:
    """tscoden.yaml -> tscode.yaml; other names as they are."""
    path = Path(file)
    match = _scale_letter(path.stem)
    return str(path.with_name(match.group(1) + path.suffix)) if match else file


def _guess_model_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    """Read the scale off tscoden.yaml ... tscodex.yaml; the host reads yolo11n-tscode.yaml itself."""

    @functools.wraps(original)
    def guess_model_scale(model_path: Any) -> str:
        match = _scale_letter(Path(model_path).stem)
        return match.group(2) if match else original(model_path)

    return guess_model_scale


def _load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Move weights with an account when either side has our head; the host would mix branches."""

    @functools.wraps(original)
    def load(self: Any, weights: Any, verbose: bool = True) -> Any:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if not (_is_ours(_head_of(self)) or _is_ours(_head_of(source))):
            return original(self, weights, verbose)
        from tscode_yolo.transfer import transfer

        return transfer(self, source, functools.partial(original, self), verbose)

    return load


def _torch_safe_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let restricted loading (ULTRALYTICS_SAFE_LOAD=1) build our modules too. Not done earlier: it imports them."""

    @functools.wraps(original)
    def torch_safe_load(*args: Any, **kwargs: Any) -> Any:
        import torch

        from tscode_yolo import context, deform, fpn, head, quality
        from tscode_yolo.recipes import contract

        modules = (context, deform, fpn, head, quality, contract)
        classes = [c for m in modules for c in vars(m).values() if isinstance(c, type)]
        ours = [c for c in classes if c.__module__.startswith("tscode_yolo.")]
        torch.serialization.add_safe_globals([*ours, *fpn.PICKLED])
        return original(*args, **kwargs)

    return torch_safe_load


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to build a model of another task, or one that calls its head differently, around a detection head."""

    @functools.wraps(original)
    def __init__(self: Any, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        from ultralytics.nn import tasks

        others = (tasks.ClassificationModel, tasks.OBBModel, tasks.PoseModel, tasks.SegmentationModel)
        if cfg is not None and isinstance(self, (*others, tasks.RTDETRDetectionModel, tasks.WorldModel)):
            d = cfg if isinstance(cfg, dict) else tasks.yaml_model_load(cfg)
            if d.get("head") and d["head"][-1][2] == NAME:
                raise ValueError(
                    f"{_yaml_name(d)} has a {NAME} head, which does task=detect in a plain DetectionModel; asked for "
                    f"was a {type(self).__name__}. Use `yolo detect ...`, or a model YAML of the other task"
                )
        original(self, *(() if cfg is None else (cfg,)), *args, **kwargs)

    return __init__


def _init_criterion(original: Callable[..., Any]) -> Callable[..., Any]:
    """Train with the recipe that the head was built for, if any."""

    @functools.wraps(original)
    def init_criterion(self: Any) -> Any:
        head = _head_of(self)
        recipe = _recipe(head.options.get("recipe", "ultralytics")) if _is_ours(head) else None
        if recipe is None:
            return original(self)
        from tscode_yolo.recipes.criterion import make_criterion

        return make_criterion(self, recipe)

    return init_criterion


def _predict_augment(original: Callable[..., Any]) -> Callable[..., Any]:
    """Test-time augmentation: the host drops it for every subclass of Detect (its end-to-end heads included)."""

    @functools.wraps(original)
    def _predict_augment(self: Any, x: Any) -> Any:
        if not _is_ours(_head_of(self)) or getattr(self, "end2end", False):
            return original(self, x)
        import torch
        from ultralytics.utils.torch_utils import scale_img

        views = []
        for scale, flip in ((1, None), (0.83, 3), (0.67, None)):  # the host's three views; 3 flips left-right
            view = scale_img(x.flip(flip) if flip else x, scale, gs=int(self.stride.max()))
            views.append(self._descale_pred(self._predict_once(view)[0], flip, scale, x.shape[-2:]))
        return torch.cat(self._clip_augmented(views), -1), None

    return _predict_augment


# --- ultralytics.models.yolo.detect.train -----------------------------------------------------------------------------


def _get_validator(original: Callable[..., Any]) -> Callable[..., Any]:
    """Show a recipe's own loss names on hosts that fix them here; later ones read them off the criterion."""

    @functools.wraps(original)
    def get_validator(self: Any) -> Any:
        validator = original(self)
        head = _head_of(getattr(self.model, "module", self.model))
        recipe = _recipe(head.options.get("recipe", "ultralytics")) if _is_ours(head) else None
        if recipe is not None and vars(self).get("loss_names"):
            from tscode_yolo.recipes.criterion import loss_names

            self.loss_names = loss_names(head, recipe)
        return validator

    return get_validator


# --- ultralytics.nn.distill_model -------------------------------------------------------------------------------------


def _get_distill_layers(original: Callable[..., Any]) -> Any:
    """Compare the predicted levels only; the host takes every input of the head for one."""

    @functools.wraps(original)
    def get_distill_layers(model: Any) -> list[int]:
        head = _head_of(model)
        return [*list(head.f)[-head.nl :], head.i] if _is_ours(head) else original(model)

    return staticmethod(get_distill_layers)


PATCHES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "ultralytics.nn.tasks": {
        "parse_model": _parse_model,
        "check_yaml": _check_yaml,
        "guess_model_scale": _guess_model_scale,
        "torch_safe_load": _torch_safe_load,
        "BaseModel.load": _load,
        "DetectionModel.__init__": _init,
        "ClassificationModel.__init__": _init,
        "DetectionModel._predict_augment": _predict_augment,
        "DetectionModel.init_criterion": _init_criterion,
    },
    "ultralytics.models.yolo.detect.train": {"DetectionTrainer.get_validator": _get_validator},
    "ultralytics.nn.distill_model": {"DistillationModel.get_distill_layers": _get_distill_layers},
    "ultralytics.data.utils": {"check_file": _check_file},
}


def _owner(module: str, path: str) -> tuple[Any, str]:
    """The object that holds an attribute path of a loaded module, and the attribute's name."""
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, sys.modules[module]), name


def live() -> dict[str, bool]:
    """Which patches are in place, by "module.attribute"; modules that are not loaded yet are left out."""
    return {
        f"{module}.{path}": (module, path) in _originals
        for module, patches in PATCHES.items()
        if module in sys.modules
        for path in patches
    }


def host_version() -> tuple[int, ...]:
    """The installed Ultralytics version as numbers."""
    import ultralytics

    return tuple(int(n) for n in re.findall(r"\d+", ultralytics.__version__)[:3])


def register() -> None:
    """Patch every host module of `PATCHES` that is loaded; the import hook patches those loaded later.

    Does nothing the second time. Outside the supported range of Ultralytics it warns once and changes nothing.
    """
    tscode_yolo.watch(True)
    for module in PATCHES:
        loaded = sys.modules.get(module)
        if loaded is not None and not getattr(loaded.__spec__, "_initializing", False):  # not half-way through
            patch(module)


def patch(module: str) -> None:
    """Wrap what `PATCHES` names in one host module, which has just been executed or is loaded."""
    if not _supported():
        return
    for path, wrap in PATCHES[module].items():
        if (module, path) not in _originals:
            owner, name = _owner(module, path)
            _originals[module, path] = vars(owner)[name]
            setattr(owner, name, wrap(getattr(owner, name)))


def _supported() -> bool:
    """Whether the installed Ultralytics is in the range; warns once if it is not."""
    if SUPPORTED[0] <= host_version() < SUPPORTED[1]:
        return True
    if "version" not in _warned:
        _warned.add("version")
        first, last = (".".join(map(str, v)) for v in SUPPORTED)
        warnings.warn(
            f"tscode_yolo supports ultralytics >= {first}, < {last}; installed is "
            f"{'.'.join(map(str, host_version()))}. The TSCODE head is not plugged in; stock models are not "
            f"affected. Install a supported version: pip install 'ultralytics>={first},<{last}'",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def unregister() -> None:
    """Put back what the host had, until `register`. Models that are built already keep working."""
    tscode_yolo.watch(False)
    while _originals:
        (module, path), original = _originals.popitem()
        owner, name = _owner(module, path)
        setattr(owner, name, original)
