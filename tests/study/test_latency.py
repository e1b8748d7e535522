"""Timing in turns and what is made of it; no test looks at a clock."""

from __future__ import annotations

import itertools

import pytest
import torch

from tscode_yolo.study import latency


def test_calls_take_turns_and_the_order_turns_round():
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    times = latency.time_in_turns(calls, torch.device("cpu"), rounds=4, warmup=2)
    assert {k: len(v) for k, v in times.items()} == {"a": 4, "b": 4}
    rounds = ["".join(log[i : i + 2]) for i in range(0, len(log), 2)]
    assert len(rounds) == 6
    assert all(a != b for a, b in itertools.pairwise(rounds))


@pytest.mark.parametrize(("n", "ranks"), [(5, None), (6, (1, 6)), (9, (2, 8)), (12, (3, 10)), (30, (10, 21))])
def test_median_interval_has_the_ranks_of_published_tables(n, ranks):
    """Ranks of the 95 % interval of a median, e.g. Conover, Practical Nonparametric Statistics: n = 12 -> 3rd, 10th."""
    low, high = latency.median_interval([float(i) for i in range(1, n + 1)])
    assert (low, high) == (ranks or (None, None))


def test_ratio_is_taken_round_by_round():
    """Both slow down together in round 2: the ratio does not."""
    result = latency.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert result["median"] == result["p5"] == result["p95"] == pytest.approx(2.0)


def test_describe_gives_percentiles_in_milliseconds():
    result = latency.describe([float(i) for i in range(101)])
    assert (result["p5"], result["p50"], result["p95"], result["unit"]) == (5, 50, 95, "ms")


def test_a_settled_call_is_made_twice_a_turn_and_timed_once():
    made: list[str] = []
    times = latency.time_in_turns(
        {n: lambda n=n: made.append(n) for n in ("a", "b")}, torch.device("cpu"), rounds=2, warmup=1, settle=True
    )
    assert [len(v) for v in times.values()] == [2, 2]
    assert made == ["a", "a", "b", "b", "b", "b", "a", "a", "a", "a", "b", "b"]
