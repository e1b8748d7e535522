"""``tscode push model=best.pt repo=USER/NAME`` and `from_pretrained`: packed weights on the Hugging Face Hub.

The Hub holds a folder: model.safetensors, which is all that loading reads, and for people config.json (its description)
and README.md (the model card). The transfer is huggingface_hub's: pip install '.[hub]'.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ultralytics import YOLO

from tscode_yolo.config import how_to_install
from tscode_yolo.safe import container
from tscode_yolo.safe.pack import pack
from tscode_yolo.safe.unpack import load_safe, read_model
from tscode_yolo.verbs.arguments import existing, take_only
from tscode_yolo.verbs.storage import write_json, write_text, write_whole

KEYS = ("model", "repo", "private", "message", "trust")
FILE = f"model{container.SUFFIX}"


def main(args: dict[str, Any]) -> int:
    """Run the verb: upload, say where to."""
    print(f"pushed to {push(**take_only(args, KEYS, required=('model', 'repo')))}")
    return 0


def push(
    model: str | Path, repo: str, *, private: bool = True, message: str = "Add TSCODE weights", trust: bool = False
) -> str:
    """Upload a checkpoint or packed file to the Hub, with the login huggingface_hub finds.

    Args:
        model: ``.pt`` or ``.safetensors``.
        repo: ``user/name`` on the Hub, made if it is not there.
        private: whether a repository made now is private.
        message: of the commit.
        trust: unpickle a ``.pt`` without restrictions. Only for files whose origin you trust.

    Returns:
        Address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        ConnectionError: the Hub cannot be reached, or refuses.
        ValueError, FileNotFoundError: as pack and `load_safe`.
    """
    if str(repo).count("/") != 1:
        raise ValueError(f"repo={repo}: expected user/name")
    client = _client().HfApi()
    with tempfile.TemporaryDirectory() as folder, _reaching(repo):
        save_pretrained(model, folder, trust=trust, repo=repo)
        client.create_repo(repo_id=repo, private=private, exist_ok=True)
        return str(client.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))


ARGUMENTS = push  # for `tscode push help`


def save_pretrained(model: str | Path, folder: str | Path, *, trust: bool = False, repo: str = "USER/NAME") -> Path:
    """Write a folder as the Hub holds it: model.safetensors, config.json, README.md.

    Args:
        model: ``.pt``, which is packed, or ``.safetensors``, which is checked and copied.
        folder: made if absent.
        trust: unpickle a ``.pt`` without restrictions. Only for files whose origin you trust.
        repo: what the model card tells people to load.

    Returns:
        The folder.

    Raises:
        ValueError, OSError: as pack and `load_safe`.
    """
    target, source = Path(folder), existing("model", model)
    if source.suffix == container.SUFFIX:
        read_model(source)
        write_whole(target / FILE, lambda p: _copy(source, p))
    else:
        pack(source, target / FILE, trust=trust)
    description = container.read(target / FILE)[1]
    write_json(target / "config.json", description)
    write_text(target / "README.md", card(description, repo))
    return target


def from_pretrained(name: str | Path, revision: str | None = None) -> YOLO:
    """Load packed weights from a local folder or file, or from the Hub; nothing is unpickled.

    Args:
        name: a folder or file here, or ``user/name`` on the Hub.
        revision: branch, tag or commit on the Hub.

    Returns:
        As `load_safe`.

    Raises:
        ImportError: the name means the Hub, and huggingface_hub is not installed.
        ConnectionError: the Hub cannot be reached, or refuses.
        FileNotFoundError, ValueError: as `load_safe`.
    """
    if Path(name).expanduser().exists():
        return load_safe(name)
    if str(name).count("/") != 1 or str(name).endswith(container.SUFFIX):
        raise FileNotFoundError(f"{name}: expected a folder or {container.SUFFIX} file here, or user/name on the Hub")
    client = _client()
    with _reaching(str(name)):
        file = client.hf_hub_download(repo_id=str(name), filename=FILE, revision=revision)
    return load_safe(file)


def card(description: dict[str, Any], repo: str) -> str:
    """The model card: what the Hub indexes, then how to load the weights."""
    head = {
        "library_name": "ultralytics",
        "pipeline_tag": "object-detection",
        "license": "agpl-3.0",
        "tags": ["object-detection", "ultralytics", "tscode"],
    }
    names = ", ".join(name for _, name in description["names"])
    training = {k: description["train_args"].get(k) for k in ("model", "data", "epochs", "imgsz", "batch", "optimizer")}
    metrics = {k: v for k, v in description["train_metrics"].items() if k.startswith("metrics/")}
    facts = "".join(f"| {k} | {v} |\n" for k, v in {**training, **metrics}.items() if v is not None)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# Object detection weights\n\nClasses: {names}.\n\n"
        f"```python\nimport tscode_yolo  # {how_to_install('hub')}\n\n"
        f'model = tscode_yolo.from_pretrained("{repo}")  # nothing is unpickled\n```\n\n'
        f"| | |\n|---|---|\n{facts}"
    )


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as e:
        raise ImportError(
            "push and from_pretrained need huggingface_hub for the Hub, which is not installed: "
            f"{how_to_install('hub')}"
        ) from e
    return huggingface_hub


@contextlib.contextmanager
def _reaching(repo: str) -> Iterator[None]:
    """Turn what the client and the HTTP library under it raise into one line; ours are ValueErrors and OSErrors.

    Which HTTP library it is depends on the client's release; its own error derives from that library's errors.
    """
    error = _client().errors.HfHubHTTPError
    known = tuple(c for c in error.__mro__ if c not in (OSError, Exception, BaseException, object))
    try:
        yield
    except known as e:
        what = " ".join(str(e).split())[:300] or type(e).__name__
        raise ConnectionError(
            f"repo={repo}: expected an answer from the Hugging Face Hub, got: {what}. Check the network, the name and "
            "the login (hf auth login)"
        ) from e


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
