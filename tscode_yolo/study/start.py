"""What a run starts from: the random state of each epoch, its model, and the weights below the head."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.verbs.loading import built, checkpoint


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed for each epoch of each run (epoch -1: building the model), far from its neighbours."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def seed_everything(seed: int, epoch: int) -> None:
    """Set Python's, numpy's and torch's random state to the epoch's."""
    value = epoch_seed(seed, epoch)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def is_checkpoint(model: str) -> bool:
    """Whether a model argument names weights, rather than a YAML."""
    return model.lower().endswith(".pt")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_hash(model: str) -> str:
    """Hash of a checkpoint, or of what a model YAML builds, wherever it lies.

    That is the YAML with its scale and with every option of our head, so that a default that changed is another model.
    """
    if is_checkpoint(model):
        return file_hash(Path(model))
    content: dict[str, Any] = built(model).yaml  # type: ignore[assignment]
    kept = {k: v for k, v in content.items() if k != "yaml_file"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=repr).encode()).hexdigest()


def untrained(model: str, nc: int) -> DetectionModel:
    """The model of a YAML or of a checkpoint for `nc` classes, with random weights."""
    return DetectionModel(checkpoint(model).yaml, nc=nc, verbose=False) if is_checkpoint(model) else built(model, nc)


def weights_of(model: nn.Module) -> dict[str, Any]:
    """State of the network alone: a loss object that is a module hangs on the host's model, and is kept apart."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("criterion.")}


def body_names(model: nn.Module) -> list[str]:
    """Names of the tensors below the head: those of every layer but the last of a host model."""
    layers: Any = model.model
    head = f"model.{len(layers) - 1}."
    return [name for name in weights_of(model) if not name.startswith(head)]


def transfer_body(source: nn.Module, target: nn.Module) -> tuple[int, int]:
    """Copy every tensor below the head from one host model to another, by name and shape.

    Returns:
        Tensors copied, tensors below the target's head; they are equal.

    Raises:
        ValueError: one is missing in `source` or has another shape.
    """
    given = {name: source.state_dict()[name] for name in body_names(source)}
    wanted = {name: target.state_dict()[name].shape for name in body_names(target)}
    missing = [n for n, shape in wanted.items() if n not in given or given[n].shape != shape]
    if missing:
        raise ValueError(
            f"init: expected weights for all {len(wanted)} tensors below the head, got {len(wanted) - len(missing)} "
            f"(first without: {missing[0]}); give a checkpoint of the same family and scale, or none"
        )
    target.load_state_dict({name: given[name].float() for name in wanted}, strict=False)
    return len(wanted), len(wanted)


def body_fingerprint(model: nn.Module) -> str:
    """Digest of all weights below the head: equal for two runs that start alike."""
    state = model.state_dict()
    digest = hashlib.blake2b(digest_size=16)
    for name in body_names(model):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
