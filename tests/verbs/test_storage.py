"""Files are whole or absent, and a folder has one owner at a time."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import signal
import time

import numpy as np
import pytest

from tscode_yolo.verbs.storage import read_json, sole_owner, without_folders, write_json, write_whole


def test_json_round_trip_turns_what_json_lacks_into_what_it_has(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"nan": float("nan"), "n": np.float32(0.5), "t": (1, 2), 3: None})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"nan": None, "n": 0.5, "t": [1, 2], "3": None}
    assert read_json(tmp_path / "none.json") is None


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"old": 1})

    def half(path):
        path.write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, half)
    assert read_json(file) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_can_be_read_by_whom_any_new_file_can(tmp_path):
    def private(path):
        path.unlink()
        path.touch(mode=0o600)

    (tmp_path / "any").touch()
    write_whole(tmp_path / "x", private)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"x\.json: expected JSON"):
        read_json(tmp_path / "x.json")


def _write_forever(file):
    i = 0
    while True:
        write_json(file, {"number": i, "filler": ["x" * 100] * 2000})
        i += 1


def test_a_kill_while_writing_never_leaves_half_a_file(tmp_path):
    file = tmp_path / "x.json"
    for attempt in range(5):
        process = mp.get_context("spawn").Process(target=_write_forever, args=(file,))
        process.start()
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(read_json(file)["filler"]) == 2000


def _hold(folder, ready):
    with sole_owner(folder):
        ready.set()
        time.sleep(60)


def test_a_folder_has_one_owner_until_that_dies(tmp_path):
    context = mp.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(BlockingIOError, match="got another one at work"), sole_owner(tmp_path, patience=0.3):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with sole_owner(tmp_path, patience=5):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no images in /home/me/data/cells/labels.cache. See", "no images in cells/labels.cache. See"),
        (r"open C:\Users\me\cells\a.txt: no", r"open cells\a.txt: no"),
        ("a/b, 1/2 and https://docs.site/a/b/c stay", "a/b, 1/2 and https://docs.site/a/b/c stay"),
    ],
)
def test_a_message_keeps_the_end_of_a_path_only(text, said):
    assert without_folders(text) == said
