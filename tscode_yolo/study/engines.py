"""Carrying out jobs: each in a fresh process, here one after another or several at a time, or over a Ray cluster.

A job is a folder with ``job.json``. An engine never raises for a job that fails: it says so and goes on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tscode_yolo.config import how_to_install
from tscode_yolo.verbs.provenance import cores
from tscode_yolo.verbs.storage import read_json

POLL_S = 0.5
PACKAGE_HOME = str(Path(__file__).resolve().parents[2])
Tick = Callable[[dict[Path, str]], None]


def command(folder: Path, lent: dict[str, Any]) -> list[str]:
    """Command line of the process that does the job in `folder`."""
    return [sys.executable, "-m", "tscode_yolo.study.run", str(folder), json.dumps(lent)]


def environment() -> dict[str, str]:
    """This process's environment, with our package importable and the host kept from installing things.

    Threads that wait let go of their core: on a machine that others use too, OpenMP's spinning made a training step
    take eighty times as long (two threads, two busy cores).
    """
    path = os.pathsep.join(p for p in (PACKAGE_HOME, os.environ.get("PYTHONPATH", "")) if p)
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": path,
        "YOLO_AUTOINSTALL": "false",
        "PYTHONUNBUFFERED": "1",
    }


def outcome(folder: Path, code: int | None = None) -> str:
    """``done`` or ``failed: why`` for a job whose process has ended."""
    if read_json(folder / "result.json") is not None:
        return "done"
    error = read_json(folder / "error.json")
    return f"failed: {error['error'] if error else f'the process ended with status {code}; see run.log'}"


def slots(workers: int, devices: Sequence[str | None], threads: int | None = None) -> list[dict[str, Any]]:
    """What each of `workers` concurrent processes is lent: a share of the cores, and one device.

    Args:
        workers: processes at a time, >= 1.
        devices: to go round; [None] leaves the choice to the host.
        threads: of torch in each; as many as its share of the cores by default.

    Raises:
        ValueError: fewer cores than workers.
    """
    mine = cores()
    share = len(mine) // workers
    if share < 1:
        raise ValueError(f"workers={workers}: expected at most one a core, got {len(mine)} cores; lower workers=")
    lent = []
    for i in range(workers):
        part = mine[i * share : (i + 1) * share]
        # A lone worker is left where the system puts it; it has all cores anyway.
        lent.append(
            {"cores": part if workers > 1 else None, "threads": threads or share, "device": devices[i % len(devices)]}
        )
    return lent


def run_local(
    folders: Sequence[Path], workers: int, devices: Sequence[str | None], tick: Tick, threads: int | None = None
) -> dict[Path, str]:
    """Do the jobs on this machine, `workers` at a time.

    Args:
        folders: jobs, in order.
        workers: processes at a time.
        devices: given to the processes in turn.
        tick: called twice a second with the state of each job (``waiting``, ``running``, ``done``, ``failed: why``).
        threads: see `slots`.

    Returns:
        Job -> ``done`` or ``failed: why``.
    """
    free = slots(workers, devices, threads)
    states = dict.fromkeys(folders, "waiting")
    running: dict[Path, tuple[subprocess.Popen[bytes], dict[str, Any]]] = {}
    try:
        while any(s in ("waiting", "running") for s in states.values()):
            for folder in [f for f, s in states.items() if s == "waiting"][: len(free)]:
                lent = free.pop(0)
                running[folder] = (_start(folder, lent), lent)
                states[folder] = "running"
            tick(states)
            time.sleep(POLL_S)
            for folder, (process, lent) in list(running.items()):
                if (code := process.poll()) is not None:
                    states[folder] = outcome(folder, code)
                    free.append(lent)
                    del running[folder]
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    tick(states)
    return states


def require_ray() -> None:
    """Raise ImportError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError(f"engine=ray: expected Ray, got none; leave engine= out, or {how_to_install('ray')}")


def run_ray(folders: Sequence[Path], cpus: float, gpus: float, address: str | None, tick: Tick) -> dict[Path, str]:
    """Do the jobs over a Ray cluster: an existing one, or one of this machine.

    Every node must see the study's folder, the data and the package under the same paths (a shared file system). A job
    whose node dies is started again by Ray elsewhere, and goes on from its last epoch.

    Args:
        folders: jobs.
        cpus: cores a run.
        gpus: GPUs a run; below one, runs share.
        address: of the cluster, ``auto`` to find it; None starts Ray on this machine.
        tick: as in `run_local`.

    Returns:
        Job -> ``done`` or ``failed: why``.

    Raises:
        ImportError: Ray is not installed.
    """
    require_ray()
    import ray

    ours = not ray.is_initialized()
    if ours:
        home = {"env_vars": {"PYTHONPATH": environment()["PYTHONPATH"]}}
        ray.init(address=address, runtime_env=home, log_to_driver=False, include_dashboard=False)
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1)(ray_job)
        ours_only = {k: v for k, v in os.environ.items() if k.startswith(("YOLO_", "ULTRALYTICS_", "TSCODE_"))}
        pending = {remote.remote(str(f), max(1, int(cpus)), gpus > 0, ours_only): f for f in folders}
        return _follow(ray, pending, tick)
    finally:
        if ours:
            ray.shutdown()


def _follow(ray: Any, pending: dict[Any, Path], tick: Tick) -> dict[Path, str]:
    """Wait for Ray's tasks, telling `tick` how they stand; one that raises, a node lost for good, is a failed job."""
    states = dict.fromkeys(pending.values(), "waiting")
    while pending:
        ready, _ = ray.wait(list(pending), timeout=POLL_S)
        for ref in ready:
            folder = pending.pop(ref)
            try:
                states[folder] = ray.get(ref)
            except ray.exceptions.RayError as e:
                states[folder] = f"failed: {type(e).__name__}: {str(e).splitlines()[0]}"
        for folder in pending.values():
            states[folder] = "running" if (folder / "run.log").exists() else "waiting"
        tick(states)
    return states


def ray_job(folder: str, threads: int, gpu: bool, settings: dict[str, str]) -> str:
    """Body of a Ray task: start the run's process on this node, wait for it, say how it ended.

    Args:
        folder: of the run.
        threads: of torch.
        gpu: whether Ray lends a GPU; it shows this worker no other, so that it is device 0 here.
        settings: environment variables of the study's process that a run should have too.
    """
    path = Path(folder)
    if not (path / "job.json").exists():
        return f"failed: this node does not see {path.name}/job.json; a study over Ray needs a shared folder for out="
    process = _start(path, {"threads": threads, "device": "0" if gpu else "cpu"}, settings)
    return outcome(path, process.wait())


def _start(folder: Path, lent: dict[str, Any], settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a run's process; what it prints goes to ``run.log`` of its folder, after what earlier attempts printed."""
    env = {**environment(), **(settings or {}), "OMP_NUM_THREADS": str(lent.get("threads") or 1)}
    (folder / "error.json").unlink(missing_ok=True)
    with (folder / "run.log").open("ab") as log:
        return subprocess.Popen(
            command(folder, lent), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env
        )
