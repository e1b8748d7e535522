"""The file: safetensors, with a JSON description in its header and a SHA-256 over both.

safetensors (github.com/huggingface/safetensors, read in 0.8) keeps named tensors and one text-to-text mapping; reading
it runs no code of the file's. The digest tells a damaged or carelessly edited file from a whole one. It is no
signature: whoever can rewrite the file can also rewrite the digest, and gets no further than wrong weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tscode_yolo.config import how_to_install
from tscode_yolo.verbs.storage import write_whole

FORMAT = 1  # of the description; raised when an older package could no longer read it
SUFFIX = ".safetensors"
KEY, DIGEST = "tscode", "sha256"  # keys of the header's mapping


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and description, whole or not at all.

    Args:
        path: file to write.
        tensors: name -> tensor of any dtype safetensors knows; tensors that share memory are written one by one.
        description: JSON values only; ``format`` is added.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps({"format": FORMAT, **description})  # in order: the first of the scales is the host's default
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = {KEY: text, DIGEST: digest(own, text)}
    try:
        write_whole(path, lambda p: save_file(own, str(p), metadata=header))
    except SafetensorError as e:
        raise OSError(f"{path}: expected a place to write to, got: {e}") from e


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote, checked.

    Returns:
        Tensors and description.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, was changed, is not ours, or comes from a newer package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a {SUFFIX} file made by `tscode pack`, got none of that name")
    try:
        with safe_open(str(path), framework="pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except SafetensorError as e:
        raise ValueError(
            f"{path.name}: expected a whole {SUFFIX} file, got a damaged or truncated one ({e}); download or pack it "
            "again. Nothing was loaded"
        ) from e
    if KEY not in header or DIGEST not in header:
        raise ValueError(
            f"{path.name}: expected a file made by `tscode pack`, got tensors without its description; pack the .pt"
        )
    description = _description(path, header[KEY])
    if digest(tensors, header[KEY]) != header[DIGEST]:
        raise ValueError(
            f"{path.name}: its SHA-256 does not match what it holds: the file was changed after `tscode pack` wrote "
            "it. Download or pack it again. Nothing was loaded"
        )
    return tensors, description


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over the description and every tensor's name, dtype, shape and bytes, in the order of the names."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        total.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode())
        total.update(memoryview(t.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()


def _description(path: Path, text: str) -> dict[str, Any]:
    """The parsed description; ValueError if it is none, or newer than this package."""
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(
            f"{path.name}: expected a description in JSON, got {type(e).__name__}: {e}; pack it again"
        ) from e
    version = description.get("format") if isinstance(description, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(
            f"{path.name}: expected a description in JSON with a format, a whole number from 1, got "
            f"{str(description)[:80] if version is None else version!r}; pack it again"
        )
    if version > FORMAT:
        raise ValueError(
            f"{path.name} has format {version}; the installed tscode_yolo reads up to {FORMAT}. Update it: "
            f"{how_to_install()}"
        )
    return description
