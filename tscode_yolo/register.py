"""Plug the head into Ultralytics: the only module that writes into the host's namespace.

Every change is a wrapper that hands over to the original unless a TSCODE head is involved, so stock models run the
host's own code. `PATCHES` lists them all; `unregister` puts the originals back.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tscode_yolo
from tscode_yolo.build import build_layers, resolve_recipe, yaml_name
from tscode_yolo.config import NAME
from tscode_yolo.shipped import cfg_path, closest_model, model_names

SUPPORTED = ((8, 4, 0), (9, 0, 0))  # ultralytics, first excluded last

_originals: dict[tuple[str, str], Any] = {}  # (module, attribute path) -> what the host had there
_warned: set[str] = set()


def _is_ours(head: object) -> bool:
    module = sys.modules.get("tscode_yolo.head")  # not imported, so no head of ours; stock models must not need it
    return module is not None and isinstance(head, module.TSCODEDetect)


def _head_of(model: Any) -> Any:
    """Last layer of a host model, or None."""
    layers: Any = getattr(model, "model", None)
    return layers[-1] if hasattr(layers, "__len__") and len(layers) else None


# --- ultralytics.nn.tasks ---------------------------------------------------------------------------------------------


def _parse_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let the host build a stock layer where a YAML names one of ours, then put ours in its place."""

    @functools.wraps(original)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
        return build_layers(d, ch, verbose, original)

    return parse_model


def _check_yaml(original: Callable[..., Any]) -> Callable[..., Any]:
    """Find our model YAMLs by bare name. What the host finds itself, the user's own file first, wins."""

    @functools.wraps(original)
    def check_yaml(file: Any, *args: Any, **kwargs: Any) -> Any:
        name = _without_scale(str(file))
        ours = cfg_path(name)
        if ours is None:
            return _or_say_closest(original, file, *args, **kwargs)
        found = _softly(original, file, *args, **kwargs) or _softly(original, name, *args, **kwargs)
        if not found and ours.parent.name == "datasets":
            raise ValueError(f"{name} describes a data set, not a model: data={name} model=tscode.yaml")
        return found or str(ours)

    return check_yaml


def _or_say_closest(original: Callable[..., Any], file: Any, *args: Any, **kwargs: Any) -> Any:
    """As the host; where nothing is found under a name that looks like one of ours, the error names the closest."""
    try:
        return original(file, *args, **kwargs)
    except FileNotFoundError:
        name = Path(file).name
        if "tscod" not in name.lower():
            raise
        raise FileNotFoundError(f"expected a model YAML, got no file of that name{_closest(str(file))}") from None


def _closest(file: str) -> str:
    """What follows "got no file of that name": the name, and the closest one or all of them."""
    name = Path(file).name
    close = closest_model(name)
    if name != file:
        return f": {file}; those that come with tscode_yolo go by their bare names, e.g. {close or 'tscode.yaml'}"
    # The host asks a second time without a scale letter, so that for yolo11nn-tscode.yaml a right name comes here.
    given = "" if close == name else f": {name}"
    every = f"valid, those of a YOLO family with a scale letter too: {', '.join(model_names())}"
    return f"{given}; did you mean {close}?" if close else f"{given}; {every}"


def _check_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """Find our data YAMLs by bare name, as the host finds its own."""

    @functools.wraps(original)
    def check_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        ours = cfg_path(str(file))
        return (
            original(file, *args, **kwargs) if ours is None else _softly(original, file, *args, **kwargs) or str(ours)
        )

    return check_file


def _softly(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the host finds with these arguments, but for an error if that is nothing."""
    given = inspect.signature(original).bind(*args, **kwargs)
    given.arguments["hard"] = False
    return original(*given.args, **given.kwargs)


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
    """Let restricted loading (ULTRALYTICS_SAFE_LOAD=1) build our modules too; rebuild a checkpoint as it was built.

    Only where loading is restricted, for this imports all of them: otherwise the checkpoint itself names what it needs.
    """

    @functools.wraps(original)
    def torch_safe_load(weight: Any, safe_only: bool | None = None, **kwargs: Any) -> Any:
        given = {} if safe_only is None else {"safe_only": safe_only}
        try:
            if getattr(sys.modules["ultralytics.nn.tasks"], "SAFE_LOAD", False) if safe_only is None else safe_only:
                allow_pickled()
        except Exception as e:
            warnings.warn(f"tscode_yolo: TSCODE checkpoints will not load: {e!r}", RuntimeWarning, stacklevel=2)
        loaded = original(weight, **given, **kwargs)
        try:
            for name in ("model", "ema"):
                _keep_options(loaded[0].get(name))
        except Exception as e:
            warnings.warn(f"tscode_yolo: the head's options were not looked at: {e!r}", RuntimeWarning, stacklevel=2)
        return loaded

    def allow_pickled() -> None:
        import torch

        from tscode_yolo import blocks, context, deform, fpn, head, integral, quality
        from tscode_yolo.recipes import contract

        modules = (blocks, context, deform, fpn, head, integral, quality, contract)
        classes = [c for m in modules for c in vars(m).values() if isinstance(c, type)]
        ours = [c for c in classes if c.__module__.startswith("tscode_yolo.")]
        torch.serialization.add_safe_globals([*ours, *fpn.PICKLED])

    return torch_safe_load


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to build a model of another task, or one that calls its head differently, around a detection head."""

    @functools.wraps(original)
    def __init__(self: Any, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        from ultralytics.nn import tasks

        hosts = type(self).__module__.startswith("ultralytics.")
        if cfg is not None and hosts and type(self) is not tasks.DetectionModel:
            d = cfg if isinstance(cfg, dict) else tasks.yaml_model_load(cfg)
            if d.get("head") and d["head"][-1][2] == NAME:
                raise ValueError(
                    f"{yaml_name(d)} has a {NAME} head, which does task=detect in a plain DetectionModel; asked for "
                    f"was a {type(self).__name__}. Use `yolo detect ...`, or a model YAML of the other task"
                )
        original(self, *(() if cfg is None else (cfg,)), *args, **kwargs)
        _keep_options(self)

    return __init__


def _keep_options(model: Any) -> None:
    """Spell the options of a model's head out in its YAML, from which the host rebuilds it to train on.

    Later defaults must not change it: neither when it is built, nor when it comes out of an older checkpoint.
    """
    head = _head_of(model)
    if _is_ours(head) and isinstance(getattr(model, "yaml", None), dict):
        model.yaml["tscode"] = dict(head.options)


def _init_criterion(original: Callable[..., Any]) -> Callable[..., Any]:
    """Train with the recipe that the head was built for, if any."""

    @functools.wraps(original)
    def init_criterion(self: Any) -> Any:
        head = _head_of(self)
        recipe = resolve_recipe(head.options.get("recipe", "ultralytics")) if _is_ours(head) else None
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
    """Warn of a warm-up that does harm, once a training, just before it begins.

    And show a recipe's own loss names on hosts that fix them here; later ones read them off the criterion.
    """

    @functools.wraps(original)
    def get_validator(self: Any) -> Any:
        validator = original(self)
        model = getattr(self.model, "module", self.model)
        head = _head_of(getattr(model, "student_model", model))  # of a distillation
        if not _is_ours(head):
            return validator
        from ultralytics.utils import LOGGER

        from tscode_yolo.priors import undone_by

        if harm := undone_by(self.args):
            LOGGER.warning(harm)
        recipe = resolve_recipe(head.options.get("recipe", "ultralytics"))
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
        "SemanticSegmentationModel.__init__": _init,
        "DetectionModel._predict_augment": _predict_augment,
        "DetectionModel.init_criterion": _init_criterion,
    },
    "ultralytics.models.yolo.detect.train": {"DetectionTrainer.get_validator": _get_validator},
    "ultralytics.nn.distill_model": {"DistillationModel.get_distill_layers": _get_distill_layers},
    "ultralytics.data.utils": {"check_file": _check_file},
}

ONLY_SOME_HOSTS = {"SemanticSegmentationModel.__init__"}


def _is_absent(module: str, path: str) -> bool:
    """Whether this host does not have something that only some supported hosts have."""
    return path in ONLY_SOME_HOSTS and not hasattr(sys.modules[module], path.split(".")[0])


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
        if not _is_absent(module, path)
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
    todo = [
        (path, wrap, *_owner(module, path))
        for path, wrap in PATCHES[module].items()
        if (module, path) not in _originals and not _is_absent(module, path)
    ]
    for path, wrap, owner, name in todo:
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
