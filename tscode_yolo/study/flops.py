"""What a model costs on paper: parameters and floating-point operations, by layer, and by level of the head.

Operations are counted by `torch.utils.flop_counter`: 2 per multiply-add of convolutions, matrix products and attention;
nothing for norms, activations and additions. A second counter, thop by way of the host, checks the sum: it knows
module types only, so it misses products written as functions (attention) and adds norms, pooling and softmax.
Models are counted as deployed: norms merged, and of a head with two branches for training only the one that predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import get_flops

TOLERANCE = 0.05  # of the two counters' relative difference, above which a report says so


def deployed(model: DetectionModel) -> DetectionModel:
    """A copy as the host would predict with: in eval mode, fused."""
    return deepcopy(model).eval().fuse(verbose=False)


def count(model: DetectionModel, imgsz: int = 640) -> dict[str, Any]:
    """Parameters and GFLOPs of a detection model.

    Args:
        model: as built or loaded; it is copied, not changed.
        imgsz: side of the square input in pixels.

    Returns:
        ``parameters`` (as trained), ``deployed_parameters``, ``gflops``, ``second_counter`` (``gflops`` and
        ``difference``, relative), ``blocks`` (one row a layer), ``head`` (`_head_rows` and their share of the model).
    """
    net = deployed(model)
    image = torch.zeros(1, _channels(net), imgsz, imgsz, device=next(net.parameters()).device)
    head = net.model[-1]
    with _no_grad_eval(net), _Calls(head) as calls, FlopCounterMode(display=False) as counter:
        calls.counter = counter
        net(image)
    flops = {k: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    total = counter.get_total_flops()
    root = type(net).__name__
    blocks = [
        {
            "index": i,
            "type": getattr(layer, "type", type(layer).__name__).rpartition(".")[2],
            "parameters": parameters(layer),
            "gflops": flops.get(f"{root}.model.{i}", 0) / 1e9,
        }
        for i, layer in enumerate(net.model)
    ]
    second = get_flops(net, imgsz)
    rows = calls.rows()
    return {
        "parameters": parameters(model),
        "deployed_parameters": parameters(net),
        "gflops": total / 1e9,
        "second_counter": {"gflops": second, "difference": (second - total / 1e9) / (total / 1e9) if second else None},
        "blocks": blocks,
        "head": {
            "parameters": blocks[-1]["parameters"],
            "gflops": blocks[-1]["gflops"],
            "gflops_share": blocks[-1]["gflops"] * 1e9 / total,
            "parameter_share": blocks[-1]["parameters"] / parameters(net),
            "rows": rows,
            "levels": _levels(rows),
        },
    }


def parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


class _Calls:
    """Counts what each part of a head does, call by call.

    A part is a child of the head, or each member of a child that is a ModuleList. A part called once belongs to the
    level that its place in the list says; one shared over levels is called once a level, and the calls are told apart
    by the size of their result, largest first, which is finest first.

    Attributes:
        counter: the running `FlopCounterMode`, set before the forward pass.
    """

    counter: FlopCounterMode

    def __init__(self, head: nn.Module) -> None:
        self.levels = int(getattr(head, "nl", 0))
        self.parts: dict[str, tuple[nn.Module, int | None]] = {}
        for name, child in head.named_children():
            if isinstance(child, nn.ModuleList):
                place = len(child) == self.levels
                self.parts |= {f"{name}.{i}": (m, i if place else None) for i, m in enumerate(child)}
            else:
                self.parts[name] = (child, None)
        self.calls: dict[str, list[tuple[int, tuple[int, ...]]]] = {name: [] for name in self.parts}

    def __enter__(self) -> _Calls:
        self.handles = [h for name, (module, _) in self.parts.items() for h in self._hooks(name, module)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def rows(self) -> list[dict[str, Any]]:
        """One row a part and level: ``part``, ``level`` (from 0, finest; None: all), ``parameters``, ``gflops``, ``output``.

        Parameters of a shared part are in its first row. Parts that do nothing are left out.
        """
        rows: list[dict[str, Any]] = []
        for name, (module, place) in self.parts.items():
            calls = sorted(self.calls[name], key=lambda c: -_area(c[1]))
            shared = place is None and len(calls) == self.levels > 1
            number = parameters(module)
            for i, (flops, size) in enumerate(calls):
                level = i if shared else place
                row = {"part": name, "level": level, "parameters": 0 if i else number, "gflops": flops / 1e9}
                rows.append({**row, "output": list(size)})
        return [r for r in rows if r["parameters"] or r["gflops"]]

    def _hooks(self, name: str, module: nn.Module) -> Iterator[Any]:
        started: list[int] = []

        def before(_module: nn.Module, _inputs: Any) -> None:
            started.append(self.counter.get_total_flops())

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            size = tuple(output.shape[2:]) if isinstance(output, Tensor) else ()
            self.calls[name].append((self.counter.get_total_flops() - started.pop(), size))

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(after)


def _levels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum of the parts' operations and parameters by level; the last row, level None, belongs to no single one."""
    keys = sorted({r["level"] for r in rows if r["level"] is not None})
    return [
        {
            "level": level,
            "parameters": sum(r["parameters"] for r in rows if r["level"] == level),
            "gflops": sum(r["gflops"] for r in rows if r["level"] == level),
        }
        for level in [*keys, *([None] if any(r["level"] is None for r in rows) else [])]
    ]


def _area(size: tuple[int, ...]) -> int:
    area = 1
    for n in size:
        area *= n
    return area


def _channels(model: DetectionModel) -> int:
    return int(next(p for p in model.parameters() if p.ndim == 4).shape[1])


@contextmanager
def _no_grad_eval(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
