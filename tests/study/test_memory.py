"""Peak memory of tensors: sizes that can be worked out by hand."""

from __future__ import annotations

import torch

from tscode_yolo.study.memory import peak_memory

CPU = torch.device("cpu")


def test_peak_counts_what_lives_at_the_same_time():
    """Floats of 4 bytes: 1000, then 3000 while the first lives, then 500 after both are gone."""

    def call() -> None:
        a = torch.zeros(1000)
        b = torch.zeros(3000)
        del a, b
        torch.zeros(500)

    assert peak_memory(call, iter([]), CPU) == 4 * 4000


def test_views_and_tensors_that_were_there_cost_nothing():
    weight = torch.zeros(100, 100)

    def call() -> torch.Tensor:
        view = weight.t().reshape(-1)[:10]  # the transpose is copied by reshape: 100 x 100 floats
        return view.view(2, 5)

    assert peak_memory(call, iter([weight]), CPU) == 4 * 100 * 100
    assert peak_memory(lambda: weight.t()[:5], iter([weight]), CPU) == 0


def test_what_the_backward_pass_keeps_is_seen():
    """y = x.exp() keeps y (400 bytes) for the backward pass; without gradients it goes after the sum."""
    x = torch.zeros(100, requires_grad=True)

    def forward() -> None:
        y = x.exp()
        z = y * 2
        del y
        z.exp().sum()

    with_grad = peak_memory(forward, iter([x]), CPU)
    with torch.no_grad():
        without = peak_memory(forward, iter([x]), CPU)
    assert with_grad - without == 400
