"""Reading what a user names: weights, model YAMLs, data YAMLs. What the host cannot read is one clear ValueError."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils import ROOT

from tscode_yolo.config import NAME
from tscode_yolo.shipped import closest_model


def checkpoint(file: str | Path, key: str = "model") -> Any:
    """The network in a checkpoint, on the CPU, as the host loads it.

    Args:
        file: the ``.pt``.
        key: argument that named it, for the message.

    Raises:
        ValueError: no checkpoint of the host's, or a damaged one.
        FileNotFoundError: there is none.
    """
    try:
        return load_checkpoint(str(file))[0]
    except (OSError, ImportError):  # these say themselves what is missing
        raise
    except Exception as e:  # unpickling a file of somebody else's may raise anything
        raise ValueError(
            f"{key}={Path(file).name}: expected a checkpoint that Ultralytics saved, got a file it cannot load "
            f"({type(e).__name__}: {one_line(e)}); fetch or save it again"
        ) from e


def model_yaml(name: str, key: str = "model") -> dict[str, Any]:
    """Content of a model YAML as the host finds and reads it, with its ``scale`` and without the file's place.

    Raises:
        ValueError: no YAML of a model.
        FileNotFoundError: there is none.
    """
    if not name.endswith((".yaml", ".yml")):
        raise ValueError(f"{key}={name}: expected a model YAML, a name that ends in .yaml")
    try:
        content = {k: v for k, v in yaml_model_load(name).items() if k != "yaml_file"}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{key}={name}: expected a model YAML, got no file of that name here or among the installed ones"
            f"{_closest_model(Path(name).name)}"
        ) from None
    if missing := [k for k in ("backbone", "head") if not isinstance(content.get(k), list)]:
        raise ValueError(
            f"{key}={Path(name).name}: expected a model YAML with backbone and head, got no {' and no '.join(missing)};"
            " give a detect YAML or weights"
        )
    return content


def _closest_model(name: str) -> str:
    """``; did you mean yolo11n-tscode.yaml?``, of our models and the host's at every scale, or nothing."""
    close = closest_model(name, [p.name for p in (ROOT / "cfg" / "models").rglob("*.yaml")])
    return f"; did you mean {close}?" if close else ""


def built(name: str, nc: int | None = None, key: str = "model") -> DetectionModel:
    """The detection model of a YAML, with random weights.

    Args:
        name: as the host finds it.
        nc: number of classes; the YAML's own by default.
        key: argument that named it, for the message.

    Raises:
        ValueError: no YAML of a model, or one the host cannot build as a detection model.
        FileNotFoundError: there is none.
    """
    model_yaml(name, key)
    try:
        return DetectionModel(name, nc=nc, verbose=False)
    except (ValueError, OSError, ImportError):  # these say themselves what is wrong
        raise
    except Exception as e:  # what the host says of a YAML of another kind of model, or of a wrong row, has no one type
        raise ValueError(
            f"{key}={Path(name).name}: expected the YAML of a detection model, got one the host cannot build as such "
            f"({type(e).__name__}: {one_line(e)}); give a detect YAML or weights"
        ) from e


def with_options(name: str, options: str | Mapping[str, Any] | None) -> str | dict[str, Any]:
    """The model YAML as it is, or its content with some options of the head changed.

    Args:
        name: model YAML.
        options: over those of its ``tscode:`` mapping; as YAML text, or None.

    Raises:
        ValueError: no mapping.
    """
    if options is None:
        return name
    try:
        given = yaml.safe_load(options) if isinstance(options, str) else options
    except yaml.YAMLError:
        given = None
    if not isinstance(given, Mapping):
        raise ValueError(f'options={options}: expected a mapping, e.g. options="{{sce: false}}"')
    content = options_on_top(yaml_model_load(name))
    return {**content, "tscode": {**content["tscode"], **given}}


def options_on_top(content: Mapping[str, Any]) -> dict[str, Any]:
    """The model YAML with all options of its head under ``tscode:``, where others can be laid over them.

    In the head's row, where they may stand too, they would win over those. A row of another form is left for the
    builder to refuse.

    Raises:
        ValueError: something under ``tscode:`` that is no mapping.
    """
    given = content.get("tscode") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"tscode options: expected a mapping like {{sce: true}}, got {given!r}")
    *above, last = content.get("head") or [None]
    match last:
        case [source, number, str(name), [nc, dict(own)]] if name == NAME:
            rows = [*above, [source, number, name, [nc]]]
            return {**content, "head": rows, "tscode": {**given, **own}}
    return {**content, "tscode": dict(given)}


def data_yaml(data: str | Path, key: str = "data") -> dict[str, Any]:
    """A data YAML as the host resolves it.

    Args:
        data: as the host finds it.
        key: argument that named it, for the message.

    Raises:
        ValueError: a key is missing or has a value of another kind, or it is no data YAML at all.
        FileNotFoundError: it, or a folder it names, is not there.
    """
    try:
        return check_det_dataset(str(data))
    except FileNotFoundError as e:
        absent = "does not exist" in str(e)
        advice = "; give the path of a data YAML, or the name of one that Ultralytics ships, e.g. coco8.yaml"
        raise FileNotFoundError(f"{key}={data}: {one_line(e)}{advice if absent else ''}") from None
    except (OSError, ImportError):  # these say themselves what is wrong
        raise
    except Exception as e:  # what the host, or YAML, says of a wrong file has no one type
        raise ValueError(
            f"{key}={Path(data).name}: expected a data YAML (train, val, names), got one the host refuses: "
            f"{one_line(e)}"
        ) from None


def one_line(error: BaseException) -> str:
    """A message in one line, without the host's icons and colours."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).encode("ascii", "ignore").decode().replace("ERROR", "")
    return " ".join(text.split()).strip(" .") or "no message"
