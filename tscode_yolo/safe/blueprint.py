"""From a detection model to a description in JSON, and back by building it anew, layer by layer, from known classes.

A model YAML is a small programme for the host: `activation:` goes through eval() there (ultralytics 8.4.190,
nn/tasks.py, parse_model), and a row may name anything in the host's namespace, functions that unpickle included. A
description from elsewhere is therefore held against what a YAML needs before the host sees it.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from ultralytics.nn import modules
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo import __version__, register
from tscode_yolo.build import FPN, NAME
from tscode_yolo.config import SCHEMA
from tscode_yolo.study.provenance import version

DOWNLOADS = {"TorchVision", "AutoShape"}  # host layers that fetch or open other files when they are built
MODEL_KEYS = ("names", "stride", "end2end")  # what a model holds beside its YAML and its tensors


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
    layers: Any = model.model if isinstance(model, DetectionModel) else [None]
    head = layers[-1]
    if not isinstance(head, Detect) or not isinstance(getattr(model, "yaml", None), dict):
        raise ValueError(f"expected a detection model with its YAML, got a {type(model).__name__}; pack works on those")
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
    schema = description.get("schema")
    if schema is not None and (not isinstance(schema, int) or schema > SCHEMA):
        raise ValueError(
            f"the file's TSCODE head has schema {schema}; the installed tscode_yolo knows up to {SCHEMA}. Update it: "
            "pip install -U tscode-yolo"
        )
    if missing := [k for k in ("yaml", "train_args", *MODEL_KEYS) if k not in description]:
        raise ValueError(f"the file's description lacks {', '.join(missing)}; pack the .pt again")
    yaml = description["yaml"]
    check_yaml(yaml)
    register.register()
    try:
        model: Any = DetectionModel(
            _buildable(yaml, description.get("options")), yaml.get("channels", 3), verbose=False
        )
    except (TypeError, KeyError, IndexError, AttributeError, RuntimeError, SyntaxError) as e:
        raise ValueError(f"the file's model YAML cannot be built ({type(e).__name__}: {e}); pack the .pt again") from e
    _fill(model, tensors)
    model.yaml = copy.deepcopy(yaml)
    model.names = {int(k): str(v) for k, v in description["names"]}
    model.stride = model.model[-1].stride = torch.tensor(description["stride"])
    model.task, model.args = "detect", dict(description["train_args"])
    if model.end2end != description["end2end"]:
        model.end2end = description["end2end"]
    return model.eval()


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
    activation = yaml.get("activation")
    if activation and not _is_plain_activation(activation):
        raise ValueError(
            f"the file's model YAML has activation {str(activation)[:80]!r}: expected a torch.nn module with plain "
            "arguments, e.g. nn.LeakyReLU(0.1). Nothing was built"
        )


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
        last[3] = ["nc", dict(options)]
    return d


def _fill(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors in place of the model's own; ValueError unless they are exactly its state dict."""
    own = model.state_dict()
    unknown, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    wrong = [
        f"{k} {list(tensors[k].shape)} for {list(own[k].shape)}"
        for k in own
        if k in tensors
        and (tensors[k].shape != own[k].shape or tensors[k].is_floating_point() != own[k].is_floating_point())
    ]
    for what, names in (("unknown tensors", unknown), ("no tensors", missing), ("tensors of another form", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"expected exactly the tensors of its own model YAML, got {what}: {', '.join(names[:3])}{more}. A "
                "fused or pruned model cannot be rebuilt from its YAML: use the checkpoint as training saved it"
            )
    model.load_state_dict(dict(tensors), strict=True, assign=True)


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
