"""``tscode pack model=best.pt [out=FILE]``: a checkpoint as tensors and JSON, which anybody can load without trust."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

from tscode_yolo import register
from tscode_yolo.safe import blueprint, container
from tscode_yolo.verbs.arguments import existing, take_only

KEYS = ("model", "out", "trust")


def main(args: dict[str, Any]) -> int:
    """Run the verb: write the file, say its name."""
    print(f"packed {pack(**take_only(args, KEYS, required=('model',)))}")
    return 0


def pack(model: str | Path, out: str | Path | None = None, *, trust: bool = False) -> Path:
    """Write a checkpoint as a ``.safetensors`` file, once it is shown that the file gives the same model back.

    Args:
        model: ``.pt`` of a detection model, ours or stock, as training saved it.
        out: file to write, replaced if it exists; beside the checkpoint by default.
        trust: unpickle the checkpoint without restrictions. Only for files whose origin you trust.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is no detection checkpoint, needs `trust`, or cannot be rebuilt from its YAML.
        OSError: the file cannot be written.
    """
    source = existing("model", model)
    if source.suffix != ".pt":
        raise ValueError(f"model={model}: expected a checkpoint whose name ends in .pt, as training saved it")
    target = Path(str(out)).expanduser() if out else source.with_suffix(container.SUFFIX)
    if target.suffix != container.SUFFIX:
        raise ValueError(f"out={out}: expected a name that ends in {container.SUFFIX}")
    checkpoint = unpickle(source, trust)
    net: Any = checkpoint.get("ema") or checkpoint.get("model")
    if checkpoint.get("modelopt"):
        raise ValueError(f"{source.name}: quantisation-aware checkpoints are not packed; pack the float one")
    try:
        description, tensors = blueprint.describe(net, checkpoint), net.state_dict()
        again = blueprint.build(description, tensors)
    except ValueError as e:
        raise ValueError(f"{source.name}: {e}") from e
    if changed := [k for k, v in again.state_dict().items() if v.dtype != tensors[k].dtype or not _same(v, tensors[k])]:
        raise ValueError(
            f"{source.name}: expected the rebuilt model to hold the same tensors, got others in {changed[:3]}"
        )
    container.write(target, tensors, description)
    return target


ARGUMENTS = pack  # for `tscode pack help`


def unpickle(path: Path, trust: bool) -> Mapping[str, Any]:
    """Load a checkpoint with torch's ``weights_only`` where this host and torch can, else with a warning.

    Raises:
        ValueError: it holds classes outside the host's list and ours, or is no checkpoint.
    """
    register.register()
    restricted = getattr(getattr(tasks, "_SafeLoad", None), "SUPPORTED", False) and not trust
    if not restricted and not trust:
        LOGGER.warning(f"{path.name} is unpickled without restrictions: this Ultralytics or torch knows no other way")
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        checkpoint = tasks.torch_safe_load(path, safe_only=True)[0] if restricted else tasks.torch_safe_load(path)[0]
    except (TypeError, RuntimeError, AttributeError, KeyError, EOFError, pickle.UnpicklingError) as e:
        what = next(iter(str(e).splitlines()), type(e).__name__)
        raise ValueError(
            f"{path.name}: expected a checkpoint of known classes, got something else ({what}). If you trust its "
            "origin, add trust=true"
        ) from e
    finally:
        LOGGER.setLevel(level)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path.name}: expected a checkpoint of Ultralytics, got a {type(checkpoint).__name__}")
    return checkpoint


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
