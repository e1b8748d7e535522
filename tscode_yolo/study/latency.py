"""How long things take, two of them side by side: timed in turns in one process, so that the ratio can be trusted.

Another process, a warmer core or a lower clock slows both of a pair alike. Milliseconds are kept for the record; what
is quoted is the ratio within each round, its median with an interval from the order statistics (David & Nagaraja,
Order Statistics, 3rd ed., section 7.1), and percentiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from scipy import stats

PERCENTILES = (5, 25, 50, 75, 95)


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 30,
    warmup: int = 5,
    settle: bool = False,
) -> dict[str, list[float]]:
    """Time each call once a round; the order turns round with every round.

    Args:
        calls: name -> what to time.
        device: where they run; CUDA is timed by events on its stream, the CPU by the clock.
        rounds: of measurements.
        warmup: rounds before, thrown away.
        settle: make each call once untimed just before it is timed. A runtime with threads of its own needs it: those
            of the other model still spin after its turn, and whoever comes second would pay for them.

    Returns:
        Name -> milliseconds of each round.
    """
    measure = _cuda_ms if device.type == "cuda" else _cpu_ms
    times: dict[str, list[float]] = {name: [] for name in calls}
    with current(device):
        for i in range(-warmup, rounds):
            for name in list(calls) if i % 2 else reversed(list(calls)):
                if settle:
                    calls[name]()
                ms = measure(calls[name])
                if i >= 0:
                    times[name].append(ms)
    return times


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: events, streams and graphs belong to that, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def timed(
    fmt: str,
    part: str,
    batch: int,
    calls: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    settle: bool = False,
) -> dict[str, Any]:
    """Time calls in turns and describe them; the second name, if any, is the baseline. `settle` as `time_in_turns`."""
    times = time_in_turns(calls, device, rounds, settle=settle)
    first, *rest = times
    row: dict[str, Any] = {"format": fmt, "part": part, "batch": batch, "device": str(device)}
    row["ms"] = {name: describe(ms) for name, ms in times.items()}
    row["ratio"] = ratio(times[first], times[rest[0]]) if rest else None
    return row


def describe(ms: list[float]) -> dict[str, Any]:
    """Median and percentiles of one thing's times, milliseconds."""
    return {"rounds": len(ms), "unit": "ms", **{f"p{p}": float(np.percentile(ms, p)) for p in PERCENTILES}}


def ratio(ms: list[float], baseline: list[float], confidence: float = 0.95) -> dict[str, Any]:
    """Candidate over baseline, round by round.

    Returns:
        ``median``, its ``low`` and ``high``, and percentiles; above 1 the candidate is slower.
    """
    ratios = np.sort(np.asarray(ms) / np.asarray(baseline))
    low, high = median_interval(ratios.tolist(), confidence)
    spread = {f"p{p}": float(np.percentile(ratios, p)) for p in PERCENTILES}
    return {"median": float(np.median(ratios)), "low": low, "high": high, "confidence": confidence, **spread}


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Distribution-free interval of the median: the two order statistics that a fair coin leaves outside rarely enough.

    Returns:
        The interval, (None, None) with too few values for the confidence (fewer than 6 for 0.95).
    """
    ordered, n = sorted(values), len(values)
    # P(fewer than k of n values lie below the median) is the binomial's lower tail; keep both tails small enough.
    k = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))
    if k and stats.binom.cdf(k - 1, n, 0.5) > (1 - confidence) / 2:
        k -= 1
    return (ordered[k - 1], ordered[n - k]) if k >= 1 else (None, None)


def _cpu_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))
