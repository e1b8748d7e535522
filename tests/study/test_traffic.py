"""Operations and bytes of a forward pass, by hand where they can be counted so."""

from __future__ import annotations

import pytest
import torch

from tscode_yolo.study import traffic
from tscode_yolo.study.flops import count
from tscode_yolo.study.profile import load


def traced(call) -> list[traffic.Operation]:
    with torch.no_grad(), traffic.Trace() as found:
        call()
    return found.operations


def test_an_operation_moves_what_it_reads_and_writes():
    """A 1x1 conv from 3 to 5 channels on 4x6: 72 + 15 + 5 floats read, 120 written, 2 x 15 x 24 operations."""
    x, weight, bias = torch.zeros(1, 3, 4, 6), torch.zeros(5, 3, 1, 1), torch.zeros(5)
    (conv,) = traced(lambda: torch.nn.functional.conv2d(x, weight, bias))
    assert conv == traffic.Operation(4 * (72 + 15 + 5 + 120), 2 * 15 * 24, in_head=False)
    (add,) = traced(lambda: x.add_(x))
    assert add.bytes == 4 * 3 * 72
    (half,) = traced(lambda: x.half())
    assert half.bytes == 72 * (4 + 2)


def test_views_move_nothing_and_expanded_values_are_read_once():
    x = torch.zeros(2, 8)
    assert traced(lambda: [v.t()[1:] for v in x.view(4, 4).split(2)]) == []
    (add,) = traced(_sum_of(x, torch.zeros(1, 8)))
    assert add.bytes == 4 * (16 + 8 + 16)
    (cat,) = traced(lambda: torch.cat((x, x)))
    assert cat.bytes == 4 * (16 + 16 + 32)


def _sum_of(x, row):
    wide = row.expand_as(x)
    return lambda: x + wide


def test_a_head_is_told_from_the_model():
    found = traffic.trace(load("yolo11n-tscode.yaml", 3), 64)
    parts = traffic.summary(found)
    assert 0 < parts["head"]["operations"] < parts["operations"] == len(found)
    assert 0 < parts["head"]["bytes"] < parts["bytes"]
    assert not found[0].in_head
    assert found[-1].in_head
    convs = sum(o.flops for o in found)
    assert convs == pytest.approx(1e9 * count(load("yolo11n-tscode.yaml", 3), 64)["gflops"])
    twice = traffic.summary(traffic.trace(load("yolo11n-tscode.yaml", 3), 64, batch=2))
    assert twice["operations"] == parts["operations"]
    assert parts["bytes"] < twice["bytes"] < 2 * parts["bytes"]  # weights are read once


def test_the_model_is_left_as_it_was():
    net = load("yolo11n.yaml", 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    traffic.trace(net, 64)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert "forward" not in vars(net.model[-1])


def test_the_roofline_takes_the_slower_of_the_two_for_each_operation():
    found = [traffic.Operation(100, 10, False), traffic.Operation(10, 4000, True), traffic.Operation(50, 0, True)]
    parts = traffic.summary(found, {"bytes_per_s": 100.0, "flops_per_s": 1000.0})
    assert parts["roofline_ms"] == pytest.approx(1e3 * (1.0 + 4.0 + 0.5))
    assert parts["head"] == {"operations": 2, "bytes": 60, "roofline_ms": pytest.approx(4500.0)}
    assert traffic.summary([])["bytes"] == 0


def test_the_machine_has_rates(monkeypatch):
    monkeypatch.setattr(traffic, "COPY_BYTES", 2**20)
    monkeypatch.setattr(traffic, "SQUARE", {"cpu": 64})
    rates = traffic.machine_rates(torch.device("cpu"))
    assert rates["bytes_per_s"] > 1e6
    assert rates["flops_per_s"] > 1e6
