"""Only the network is replaced: the client's upload copies into a local folder, its download reads from one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import tscode_yolo
from tscode_yolo import cli
from tscode_yolo.safe.hub import from_pretrained, push, save_pretrained

from .conftest import NAMES

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.errors")


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the Hub, below the client's own upload and download calls."""
    folder = tmp_path / "remote"

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            (folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            (folder / f"{repo_id}.private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/commit/1?{commit_message}"

    def hf_hub_download(repo_id, filename, *, revision=None):
        return str(folder / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return folder


def test_a_local_folder_in_the_hubs_layout_loads(checkpoint, tmp_path):
    folder = save_pretrained(checkpoint, tmp_path / "repo")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert dict(config["names"]) == NAMES
    front = (folder / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["pipeline_tag"] == "object-detection"
    assert tscode_yolo.from_pretrained(folder).names == NAMES


def test_push_then_from_pretrained(packed, remote, capsys):
    assert cli.main(["push", f"model={packed}", "repo=me/cells"]) == 0
    assert capsys.readouterr().out.strip() == "pushed to https://hub/me/cells/commit/1?Add TSCODE weights"
    assert (remote / "me/cells.private").read_text() == "True"
    assert (remote / "me/cells/model.safetensors").read_bytes() == packed.read_bytes()
    assert 'from_pretrained("me/cells")' in (remote / "me/cells/README.md").read_text()
    assert from_pretrained("me/cells").names == NAMES


@pytest.mark.parametrize("fault", ["unreachable", "refused"])
def test_a_hub_that_does_not_answer_ends_in_one_line(packed, monkeypatch, capsys, fault):
    kind = huggingface_hub.errors.HfHubHTTPError
    http = sys.modules[kind.__mro__[1].__module__.partition(".")[0]]  # httpx, or requests under older clients
    unreachable = getattr(http, "ConnectError", None) or http.ConnectionError
    answer = (
        http.Response(401, request=http.Request("POST", "https://hub/api")) if hasattr(http, "ConnectError") else None
    )
    errors = {
        "unreachable": unreachable("[Errno 111] Connection refused"),
        "refused": kind("401 Client Error.\n\nInvalid username", response=answer),
    }

    def fail(*args, **kwargs):
        raise errors[fault]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    assert cli.main(["push", f"model={packed}", "repo=me/cells"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tscode: repo=me/cells: expected an answer from the Hugging Face Hub, got: ")
    with pytest.raises(ConnectionError, match="repo=me/cells: expected an answer"):
        from_pretrained("me/cells")


def test_what_we_ask_of_the_client_is_in_its_signatures():
    """The stub above could outlive the client's interface: hold our keywords against the real one."""
    import inspect

    api = huggingface_hub.HfApi
    for call, keywords in (
        (api.create_repo, {"repo_id", "private", "exist_ok"}),
        (api.upload_folder, {"repo_id", "folder_path", "commit_message"}),
        (huggingface_hub.hf_hub_download, {"repo_id", "filename", "revision"}),
    ):
        assert keywords <= set(inspect.signature(call).parameters)


def test_names_that_are_nothing_are_answered(packed, monkeypatch):
    with pytest.raises(ValueError, match="expected user/name"):
        push(packed, "cells")
    with pytest.raises(FileNotFoundError, match=r"expected a folder or \.safetensors file here, or user/name"):
        from_pretrained("nowhere.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[hub\]'"):
        from_pretrained("me/cells")
