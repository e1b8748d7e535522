"""The live table of a study: every run's state, epoch and AP, and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tscode_yolo.verbs.storage import read_json

SHOWN = 24  # rows of a table; finished and waiting runs beyond it are only counted
JUDGING = 0.5  # epochs' worth of time that a run takes at the least: it is judged when its epochs are done
PRINT_S = 60.0  # between lines when nobody looks at a terminal


class Progress:
    """Shows the state of jobs while an engine calls `tick`; plain lines where the output is no terminal.

    Args:
        names: job folder -> what to call it.
        parallel: runs that go on at a time, for the time left.
        epochs: of each run.
        console: to print on.
    """

    def __init__(self, names: Mapping[Path, str], parallel: float, epochs: int, console: Console | None = None) -> None:
        self.names, self.parallel, self.epochs = names, max(parallel, 1), epochs
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.said: dict[Path, str] = {}
        self.printed = time.monotonic()

    def __enter__(self) -> Progress:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, value, trace)

    def tick(self, states: dict[Path, str]) -> None:
        """Read every run's progress and show it."""
        reports = {f: _reported(f) for f in states}
        left = time_left(states, reports, self.epochs, self.parallel)
        if self.live:
            self.live.update(self._table(states, reports, left), refresh=True)
            return
        for folder, state in states.items():
            if self.said.get(folder) != state and state != "waiting":
                ap = reports[folder].get("mAP") if state == "done" else None
                says = f"{state}, mAP {ap:.1f}" if ap is not None else state
                self.console.print(f"{self.names[folder]}: {says}", highlight=False, markup=False)
            self.said[folder] = state
        if time.monotonic() - self.printed > PRINT_S:
            self.printed = time.monotonic()
            done = sum(s == "done" for s in states.values())
            epoch = ", ".join(f"{r['epoch']}/{self.epochs}" for f, r in reports.items() if r and states[f] == "running")
            now = f"; epochs {epoch}" if epoch else ""
            self.console.print(f"{done} of {len(states)} runs done, {clock(left)} left{now}", highlight=False)

    def _table(self, states: dict[Path, str], reports: dict[Path, dict[str, Any]], left: float | None) -> Table:
        count = {s: sum(v.startswith(s) for v in states.values()) for s in ("done", "failed", "running", "waiting")}
        title = ", ".join(f"{n} {s}" for s, n in count.items() if n)
        table = Table("run", "state", "epoch", "mAP", "s/epoch", title=f"{title}; {clock(left)} left")
        rank = {"failed": 0, "running": 1, "waiting": 2, "done": 3}
        order = sorted(states, key=lambda f: rank[states[f].partition(":")[0]])
        for folder in order[:SHOWN]:
            r = reports[folder]
            epoch = f"{r['epoch']}/{r['epochs']}" if r else ""
            numbers = [f"{r[k]:.1f}" if r.get(k) is not None else "" for k in ("mAP", "seconds")]
            table.add_row(self.names[folder], Text(states[folder]), epoch, *numbers)
        if len(order) > SHOWN:
            table.caption = f"and {len(order) - SHOWN} more"
        return table


def time_left(
    states: Mapping[Path, str], reports: Mapping[Path, dict[str, Any]], epochs: int, parallel: float
) -> float | None:
    """Seconds until all runs are done, at the mean pace of the epochs seen last; None before the first.

    Args:
        states: of the runs; failed ones are over.
        reports: ``epoch`` and ``seconds`` of each run's last epoch, or nothing.
        epochs: of each run.
        parallel: runs at a time.
    """
    paces = [r["seconds"] for r in reports.values() if r.get("seconds")]
    if not paces:
        return None
    open_runs = [f for f, s in states.items() if s in ("waiting", "running")]
    todo = sum(max(epochs - reports[f].get("epoch", 0), JUDGING) for f in open_runs)
    return todo * sum(paces) / len(paces) / max(1.0, min(parallel, len(open_runs)))


def clock(seconds: float | None) -> str:
    """``2:05:09``, or ``?``."""
    if seconds is None:
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _reported(folder: Path) -> dict[str, Any]:
    """How far a run says it is; nothing if that cannot be read: the run will say what is wrong, and others go on."""
    try:
        found = read_json(folder / "train" / "progress.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"epoch", "epochs", "seconds"} <= found.keys() else {}
