"""Engines: fresh processes, failures that stay alone, cores that are shared out, and Ray."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tscode_yolo.study import engines, progress
from tscode_yolo.verbs.storage import read_json, write_json

GOOD = """
import json, os, pathlib, sys, time
folder, lent = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
time.sleep(0.3)
if folder.name == "bad": sys.exit("no")
if folder.name == "worse": os.kill(os.getpid(), 9)
(folder / "result.json").write_text(json.dumps({"pid": os.getpid(), "lent": lent}))
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(
        engines, "command", lambda f, lent: [sys.executable, "-S", "-c", GOOD, str(f), json.dumps(lent)]
    )
    monkeypatch.setattr(engines, "POLL_S", 0.02)
    made = []
    for name in ("one", "bad", "two", "worse", "three"):
        write_json(tmp_path / name / "job.json", {"name": name})
        made.append(tmp_path / name)
    return made


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_run_in_processes_of_their_own_and_failures_stay_alone(folders, workers, monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: sorted(os.sched_getaffinity(0)) * 2)
    most = 0

    def tick(states):
        nonlocal most
        most = max(most, sum(s == "running" for s in states.values()))

    states = engines.run_local(folders, workers, [None], tick)
    assert [s.partition(":")[0] for s in states.values()] == ["done", "failed", "done", "failed", "done"]
    assert "status 1" in states[folders[1]]
    assert "status -9" in states[folders[3]]
    pids = {read_json(f / "result.json")["pid"] for f in (folders[0], folders[2], folders[4])}
    assert len(pids) == 3
    assert os.getpid() not in pids
    assert most == workers


def test_cores_and_devices_are_shared_out(monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: [0, 1, 2, 3, 4])
    assert engines.slots(2, ["0", "1"]) == [
        {"cores": [0, 1], "threads": 2, "device": "0"},
        {"cores": [2, 3], "threads": 2, "device": "1"},
    ]
    assert engines.slots(1, [None]) == [{"cores": None, "threads": 5, "device": None}]
    assert engines.slots(1, [None], threads=1)[0]["threads"] == 1
    with pytest.raises(ValueError, match="at most one a core, got 5 cores"):
        engines.slots(6, [None])


def test_a_run_says_why_it_failed(tmp_path):
    """The real command on a job whose folder is empty: a process, an error file, and one line."""
    states = engines.run_local([tmp_path], 1, [None], lambda _s: None)
    assert states[tmp_path].startswith("failed: ")
    assert "traceback" in read_json(tmp_path / "error.json")


def test_an_orphaned_run_stops_by_itself(tmp_path):
    """Its parent is killed with -9: the child, which would wait forever, must be gone soon after."""
    child = "import time; from tscode_yolo.study.run import _stop_with_parent as watch; watch(); "
    child += "print('up', flush=True); time.sleep(99)"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    parent += "print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=engines.environment()
    )
    pid = int(process.stdout.readline())
    assert process.stdout.readline().strip() == "up"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody has fetched yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ray_is_asked_for_by_name_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r"pip install '\.\[ray\]'"):
        engines.run_ray([tmp_path], 1, 0, None, lambda _s: None)


@pytest.mark.slow
def test_ray_runs_four_jobs_and_reports_the_one_that_fails(drawn, tmp_path):
    pytest.importorskip("ray")
    from .test_trainer import _job

    folders = [_job(tmp_path / f"job{i}", drawn, "yolo11n.yaml", epochs=1) for i in range(4)]
    write_json(folders[2] / "job.json", {**read_json(folders[2] / "job.json"), "data": str(tmp_path / "none.yaml")})
    said: list[set[str]] = []
    states = engines.run_ray(folders, 1, 0, None, lambda s: said.append({v.partition(":")[0] for v in s.values()}))
    assert [s.partition(":")[0] for s in states.values()] == ["done", "done", "failed", "done"]
    assert "none.yaml" in states[folders[2]]
    assert any("running" in s for s in said)
    for i in (0, 1, 3):
        assert len(read_json(folders[i] / "result.json")["history"]) == 1
    again = engines.run_ray(folders[:1], 1, 0, None, lambda _s: None)
    assert again == {folders[0]: "done"}


def test_a_run_whose_progress_cannot_be_read_does_not_end_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PRINT_S", -1.0)
    good, bad, junk = (tmp_path / name for name in ("good", "bad", "junk"))
    bad.mkdir()
    (bad / "train").touch()  # a file where a folder should be
    write_json(good / "train" / "progress.json", {"epoch": 1, "epochs": 3, "mAP": None, "seconds": 2.0})
    (junk / "train").mkdir(parents=True)
    (junk / "train" / "progress.json").write_text("{")
    console = Console(file=io.StringIO())
    with progress.Progress({good: "good", bad: "bad", junk: "junk"}, 1, 3, console) as shown:
        shown.tick({good: "running", bad: "running", junk: "failed: why"})
        write_json(good / "train" / "progress.json", {"epoch": 3, "epochs": 3, "mAP": 54.32, "seconds": 2.0})
        shown.tick({good: "done", bad: "running", junk: "failed: why"})
    lines = console.file.getvalue().splitlines()
    assert "0 of 3 runs done, 0:00:10 left; epochs 1/3" in lines
    assert "good: done, mAP 54.3" in lines
