"""``tscode unpack model=best.safetensors [out=best.pt]`` and `load_safe`: from tensors and JSON back to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from tscode_yolo.safe import blueprint, container
from tscode_yolo.safe.description import host_metrics
from tscode_yolo.verbs.arguments import take_only
from tscode_yolo.verbs.storage import write_whole

KEYS = ("model", "out")


def main(args: dict[str, Any]) -> int:
    """Run the verb: write the checkpoint, say its name."""
    print(f"unpacked {unpack(**take_only(args, KEYS, required=('model',)))}")
    return 0


def load_safe(path: str | Path) -> YOLO:
    """Load what `tscode_yolo.safe.pack.pack` wrote; nothing is unpickled, only known layers are built.

    Args:
        path: the ``.safetensors`` file, or a folder with ``model.safetensors`` in it.

    Returns:
        The host's YOLO, as from the ``.pt``: float32 weights, ready to predict, validate, track, export or fine-tune.
        Training on several GPUs starts processes that open the file themselves: `unpack` it to a ``.pt`` first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, changed, from a newer package, or not what a detection model is built from.
    """
    file = locate(path)
    net, _ = read_model(file)
    host: Any = YOLO(str(file), task="detect")
    net = net.float()
    net.pt_path = str(file.with_suffix(".pt"))  # names the exported files
    arguments = dict(net.args)
    host.overrides = net.args = {**arguments, "model": str(file)}
    host.model, host.ckpt, host.ckpt_path = net, {"train_args": arguments}, str(file)
    return host


def unpack(model: str | Path, out: str | Path | None = None) -> Path:
    """Write a packed file as a checkpoint of the host, tensors bit for bit as they were packed.

    Of the training arguments only those go along that `tscode_yolo.safe.description.host_arguments` lets pass.

    Args:
        model: as `load_safe`.
        out: file to write; ``.pt`` beside the packed one by default.

    Returns:
        Path of the checkpoint.

    Raises:
        FileExistsError: there is such a file already.
        FileNotFoundError, ValueError: as `load_safe`.
    """
    file = locate(model)
    target = Path(str(out)).expanduser() if out else file.with_suffix(".pt")
    if target.suffix != ".pt":
        raise ValueError(f"out={out}: expected a name that ends in .pt")
    if target.exists():
        raise FileExistsError(f"{target} exists already; give another out=")
    net, description = read_model(file)
    kept = {"train_args": dict(net.args), "train_metrics": host_metrics(description["train_metrics"])}
    kept |= {"date": description["date"], "version": description["versions"].get("ultralytics")}
    checkpoint = {"epoch": -1, "model": net, "ema": None, "optimizer": None, **kept}
    write_whole(target, lambda p: torch.save(checkpoint, p))
    return target


ARGUMENTS = unpack  # for `tscode unpack help`


def locate(path: str | Path) -> Path:
    """The file meant by a path: itself, or ``model.safetensors`` in it if it is a folder."""
    given = Path(str(path)).expanduser()
    return given / f"model{container.SUFFIX}" if given.is_dir() else given


def read_model(file: Path) -> tuple[Any, dict[str, Any]]:
    """The DetectionModel of a packed file with the dtypes it was packed with, and its description."""
    tensors, description = container.read(file)
    try:
        return blueprint.build(description, tensors), description
    except ValueError as e:
        raise ValueError(f"{file.name}: {e}") from e
