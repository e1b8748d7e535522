"""From a detection model to a description in JSON, and back by building it anew, layer by layer, from known classes.

A model YAML is a small programme for the host: `activation:` goes through eval() there (ultralytics 8.4.190,
nn/tasks.py, parse_model), and a row may name anything in the host's namespace, functions that unpickle included. A
description from elsewhere is therefore held against what a YAML needs before the host sees it.
"""

from __future__ import annotations

import ast
import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from ultralytics.nn import modules
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo import __version__, register
from tscode_yolo.config import FPN, NAME, SCHEMA, completed
from tscode_yolo.safe.description import check, host_arguments, is_number, is_whole, yaml_name
from tscode_yolo.study.detects import refusal
from tscode_yolo.transfer import stock_units, take_widths
from tscode_yolo.verbs.provenance import version

DOWNLOADS = {"TorchVision", "AutoShape"}  # host layers that fetch or open other files when they are built
MOST_LAYERS = 2000  # repeats of all rows together at the largest depth; the largest models of the host have about 100
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # what a float32 parameter may have been saved as


def describe(model: Any, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of a detection model but its tensors, as JSON values.

    Args:
        model: the host's DetectionModel, as unpickled.
        checkpoint: the rest of the ``.pt``: train_args, train_metrics, date.

    Returns:
        yaml, names, stride, end2end, options (of our head), schema, train_args, train_metrics, date and versions.
        Absolute paths among the training arguments are cut to their last two parts.

    Raises:
        ValueError: not a detection model built from a YAML.
    """
    if why := refusal(model):
        raise ValueError(f"{why}; pack works on models of the task detect")
    if not isinstance(getattr(model, "yaml", None), dict):
        raise ValueError("expected a detection model with its YAML, got one without; use the .pt as training saved it")
    head = model.model[-1]
    arguments = {k: _portable(v) for k, v in dict(checkpoint.get("train_args") or {}).items()}
    yaml = {**model.yaml, "yaml_file": _portable(model.yaml.get("yaml_file"))}
    return {
        "task": "detect",
        "yaml": _plain(yaml),
        "names": [[int(k), str(v)] for k, v in dict(model.names).items()],
        "stride": [float(s) for s in model.stride],
        "end2end": bool(getattr(head, "end2end", False)),
        "options": _plain(head.options) if hasattr(head, "options") else None,
        "schema": getattr(head, "schema", SCHEMA) if hasattr(head, "options") else None,
        "train_args": _plain(arguments),
        "train_metrics": _plain(dict(checkpoint.get("train_metrics") or {})),
        "date": str(checkpoint.get("date") or ""),
        "versions": {"tscode_yolo": __version__, "ultralytics": version("ultralytics"), "torch": torch.__version__},
    }


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Build the model a description tells of and fill in its tensors, dtypes included.

    Args:
        description: from `describe`, maybe by way of a file nobody vouches for.
        tensors: the model's whole state dict.

    Returns:
        The DetectionModel, in eval mode.

    Raises:
        ValueError: a newer head, a description no model follows from, or tensors that are not that model's.
    """
    check(description)
    yaml = description["yaml"]
    check_yaml(yaml)
    register.register()
    buildable = _buildable(yaml, description["options"])
    try:
        with _no_more_than(tensors):
            model: Any = DetectionModel(copy.deepcopy(buildable), yaml.get("channels", 3), verbose=False)
            _take_width(model, buildable, tensors)
    except (TypeError, KeyError, IndexError, AttributeError, RuntimeError, SyntaxError, ArithmeticError) as e:
        raise ValueError(f"the file's model YAML cannot be built ({type(e).__name__}: {e}); pack the .pt again") from e
    _compare(model, description)
    _fill(model, tensors)
    model.yaml = _kept_yaml(yaml, buildable)
    if description["options"] is not None:
        model.yaml["tscode"] = dict(model.model[-1].options)
    model.names = {int(k): str(v) for k, v in description["names"]}
    model.task, model.args = "detect", host_arguments(description["train_args"])
    if model.end2end != description["end2end"]:
        model.end2end = description["end2end"]
    return model.eval()


def _take_width(model: Any, yaml: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give stock classification towers the width of the file's.

    Training on own data keeps the width of the weights it starts from, and that depends on their number of classes: a
    stock head for as many classes as the towers are wide has towers of that width.
    """
    head, n = model.model[-1], len(model.model) - 1
    found = {}
    for unit in stock_units(head):
        weight = tensors.get(f"model.{n}.{unit}.{len(head.get_submodule(unit)) - 1}.weight")
        if weight is not None and weight.ndim == 4:
            found[unit] = weight.shape[1]
    others = {w for unit, w in found.items() if w != head.get_submodule(unit)[-1].in_channels}
    for width in sorted(others)[:2]:  # no more come about by training; each is a model to build
        take_widths(head, _stock_of_width(width, yaml), [unit for unit, w in found.items() if w == width])


def _stock_of_width(width: int, yaml: Mapping[str, Any]) -> Any:
    """The head of the YAML with the stock classification, for `width` classes."""
    d = copy.deepcopy(dict(yaml))
    row = d["head"][-1]
    if row[2] == NAME and isinstance(row[3][-1], Mapping):
        row[3] = [*row[3][:-1], {**row[3][-1], "sce": False}]
    model: Any = DetectionModel({**d, "nc": width}, verbose=False)
    return model.model[-1]


def check_yaml(yaml: Any) -> None:
    """Hold a model YAML against what a detection model needs.

    Raises:
        ValueError: a layer that is no known module, or an activation that is no plain ``nn.Name(numbers)``.
    """
    if not isinstance(yaml, Mapping) or not all(isinstance(yaml.get(k), list) for k in ("backbone", "head")):
        raise ValueError("the file's model YAML has no backbone and head; pack the .pt again")
    for row in (*yaml["backbone"], *yaml["head"]):
        if not isinstance(row, list) or len(row) != 4 or not _is_known_layer(row[2]):
            raise ValueError(
                f"the file's model YAML has the row {str(row)[:80]}: expected [from, number, layer, [args]] "
                "with a layer of Ultralytics, torch.nn or tscode_yolo. Nothing was built"
            )
        if not is_whole(row[1]) or row[1] < 1:
            raise ValueError(
                f"the file's model YAML has the row {str(row)[:80]}: expected a number of repeats from 1. Nothing was "
                "built"
            )
    repeats = sum(row[1] for row in (*yaml["backbone"], *yaml["head"]))
    if not repeats * _depth(yaml) <= MOST_LAYERS:
        raise ValueError(
            f"the file's model YAML repeats its rows {repeats} times, by a depth of {_depth(yaml):g}: expected no more "
            f"than {MOST_LAYERS} layers. Nothing was built"
        )
    activation = yaml.get("activation")
    if activation and not _is_plain_activation(activation):
        raise ValueError(
            f"the file's model YAML has activation {str(activation)[:80]!r}: expected a torch.nn module with plain "
            "arguments, e.g. nn.LeakyReLU(0.1). Nothing was built"
        )


def _depth(yaml: Mapping[str, Any]) -> float:
    """The largest factor by which the YAML's scales multiply repeats, at least 1; inf if it is none."""
    scales = yaml.get("scales") or {}
    rows = scales.values() if isinstance(scales, Mapping) else [None]
    depths = [yaml.get("depth_multiple", 1.0), *(row[0] if isinstance(row, list) and row else None for row in rows)]
    return max(1.0, *(float(d) if is_number(d) else float("inf") for d in depths))


@contextmanager
def _no_more_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the building of a model, here and in this thread, that would need far more parameters than the file holds.

    Four times the file's, for some layers are built and then replaced. A parameter's memory is first written to after
    it was registered, so that what is too large costs nothing.
    """
    owner, most = threading.get_ident(), 4 * sum(t.numel() for t in tensors.values()) + 1_000_000
    left = {"elements": most, "parameters": 4 * len(tensors) + 1000}

    def tally(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is None or threading.get_ident() != owner:
            return
        left["elements"] -= parameter.numel()
        left["parameters"] -= 1
        if min(left.values()) < 0:
            raise ValueError(
                f"the file's model YAML asks for far more parameters than the file's {len(tensors)} tensors; pack the "
                ".pt again"
            )

    handle = register_module_parameter_registration_hook(tally)
    try:
        yield
    finally:
        handle.remove()


def _compare(model: Any, description: Mapping[str, Any]) -> None:
    """Hold what the description says of the model against the model that was built; ValueError if they differ."""
    if why := refusal(model):
        raise ValueError(f"the file's model YAML: {why}")
    head, names = model.model[-1], description["names"]
    if len(names) != head.nc:
        raise ValueError(f"the file has {len(names)} class names: expected {head.nc}, as its model YAML has classes")
    strides = [float(s) for s in model.stride]
    if [float(s) for s in description["stride"]] != strides:
        raise ValueError(f"the file has stride={description['stride']}: expected {strides}, as its model YAML gives")
    if description["end2end"] and getattr(head, "one2one_cv2", None) is None:
        raise ValueError("the file has end2end=true: expected false, for its model YAML has no end-to-end branch")
    if hasattr(head, "options") != (description["options"] is not None):
        raise ValueError("the file has options of a TSCODE head, or lacks them, against what its model YAML ends with")


def _kept_yaml(yaml: Mapping[str, Any], buildable: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML the model keeps, from which the host builds it anew for training: no weights to fetch, no path."""
    kept: dict[str, Any] = copy.deepcopy(dict(yaml))
    kept["backbone"] = copy.deepcopy(buildable["backbone"])
    kept.pop("yaml_file", None)
    if name := yaml_name(yaml.get("yaml_file")):
        kept["yaml_file"] = name
    return kept


def _is_known_layer(name: Any) -> bool:
    """Whether the host would find a module class under this name, and one that opens no other file."""
    if not isinstance(name, str) or name in DOWNLOADS:
        return False
    if name in (NAME, FPN):
        return True
    prefix, _, last = name.rpartition(".")
    home = {"": modules, "nn": nn, "torchvision.ops": torchvision.ops}.get(prefix)
    found = getattr(home, last, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _is_plain_activation(text: Any) -> bool:
    """Whether the text is ``nn.Name(...)`` or ``torch.nn.Name(...)`` with literals in its brackets."""
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            return False
        for value in (*call.args, *(k.value for k in call.keywords)):
            ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    prefix, _, name = ast.unparse(call.func).rpartition(".")
    found = getattr(nn, name, None)
    return prefix in ("nn", "torch.nn") and isinstance(found, type) and issubclass(found, nn.Module)


def _buildable(yaml: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The YAML with our head's options spelt out, so that later defaults change nothing, and no weights to fetch."""
    d: dict[str, Any] = copy.deepcopy(dict(yaml))
    first, last = d["backbone"][0], d["head"][-1]
    if first[2] == FPN and len(first[3]) > 1:
        first[3][1] = {**first[3][1], "weights": None}
    if last[2] == NAME and options is not None:
        last[3] = ["nc", completed(options)]
    return d


def _fill(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors in place of the model's own; ValueError unless they are exactly its state dict."""
    own = model.state_dict()
    unknown, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    wrong = [
        f"{k} {list(tensors[k].shape)} for {list(own[k].shape)}, {tensors[k].dtype} for {own[k].dtype}"
        for k in own
        if k in tensors and (tensors[k].shape != own[k].shape or not _fits(tensors[k].dtype, own[k].dtype))
    ]
    for what, names in (("unknown tensors", unknown), ("no tensors", missing), ("tensors of another form", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"expected exactly the tensors of its own model YAML, got {what}: {', '.join(names[:3])}{more}. A "
                "fused or pruned model cannot be rebuilt from its YAML: use the checkpoint as training saved it"
            )
    model.load_state_dict(dict(tensors), strict=True, assign=True)


def _fits(saved: torch.dtype, own: torch.dtype) -> bool:
    """Whether a tensor of dtype `saved` may stand for the model's own."""
    return saved == own or (own == torch.float32 and saved in DTYPES)


def _portable(value: Any) -> Any:
    """An absolute path cut to its last two parts: it names the file, not the machine. Other values as they are."""
    if isinstance(value, (str, Path)) and Path(value).is_absolute():
        return str(Path(*Path(value).parts[-2:]))
    return value


def _plain(value: Any) -> Any:
    """JSON values: tuples as lists, numpy's numbers as Python's, anything else that JSON lacks as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else str(value)
