"""What a model costs on paper: parameters and floating-point operations, by layer, and by level of the head.

Operations are counted by `torch.utils.flop_counter`: 2 per multiply-add of convolutions, matrix products and attention;
nothing for norms, activations and additions. A second counter, thop by way of the host, checks the sum from the other
side: it knows module types and Python functions, not tensor operations. It adds norms, pooling and softmax, which a
deployed detector hardly has; versions before 2.1 miss attention.
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
        ``difference``, relative), ``blocks`` (one row a layer), ``head`` (its share, parameters by part,
        GFLOPs by part and level, and by level).
    """
    net = deployed(model)
    image = torch.zeros(1, _channels(net), imgsz, imgsz, device=next(net.parameters()).device)
    layers: Any = net.model
    head = layers[-1]
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
        for i, layer in enumerate(layers)
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
            **{k: blocks[-1][k] for k in ("parameters", "gflops")},
            "gflops_share": blocks[-1]["gflops"] * 1e9 / total,
            "parameter_share": blocks[-1]["parameters"] / parameters(net),
            "parts": _part_parameters(head),
            "rows": rows,
            "levels": _levels(rows),
        },
    }


def parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


class _Calls:
    """Records every call of every module inside a head: its operations, and the size of its result if it is one tensor.

    Attributes:
        counter: the running `FlopCounterMode`, set before the forward pass.
    """

    counter: FlopCounterMode

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.levels = int(getattr(head, "nl", 0))
        self.calls: dict[nn.Module, list[tuple[int, int | None]]] = {}

    def __enter__(self) -> _Calls:
        self.handles = [h for module in self.head.modules() for h in self._hooks(module)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def rows(self) -> list[dict[str, Any]]:
        """Part, level (0 is the finest; None: of no single one) and GFLOPs of everything the head does.

        A part is a child of the head, or a member of a child that is a ModuleList; its operations are shared out over
        the levels by looking inside it (`_walk`). What the head does outside its children is ``functions``.
        """
        sums: dict[tuple[str, int | None], int] = {}
        for name, flops, level in self._walk(self.head, "", None):
            sums[name, level] = sums.get((name, level), 0) + flops
        return [{"part": p, "level": lvl, "gflops": flops / 1e9} for (p, lvl), flops in sums.items() if flops]

    def _walk(self, module: nn.Module, name: str, level: int | None) -> Iterator[tuple[str, int, int | None]]:
        """(part, operations, level) of everything inside `module`.

        The level is the place in a ModuleList that has one member a level; or, for a module that is called as often on
        each level, the rank of the call by the size of its result, largest first. A module that gives several tensors
        at once, or that was never called itself, is taken apart.
        """
        calls = self.calls.get(module, [])
        whole = all(area is not None for _, area in calls) and module is not self.head
        if calls and whole and (level is not None or not len(calls) % max(self.levels, 2) or not _has_parts(module)):
            each = len(calls) / self.levels if self.levels > 1 and not len(calls) % self.levels else None
            ranked = sorted(calls, key=lambda c: -(c[1] or 0))
            for i, (flops, _) in enumerate(ranked):
                yield name, flops, level if level is not None or each is None else int(i // each)
            return
        inside = 0
        for child_name, child in module.named_children():
            part, place = (child_name if module is self.head else name), level
            if isinstance(module, nn.ModuleList) and sum(m is child for m in module) == 1:  # more than once: shared
                place = int(child_name) if len(module) == self.levels and level is None else level
                part = f"{name}.{child_name}" if self._is_top(module) else name
            for row in self._walk(child, part, place):
                inside += row[1]
                yield row
        own = sum(flops for flops, _ in calls) - inside
        if calls and own > 0:
            yield name or "functions", own, level

    def _is_top(self, module: nn.Module) -> bool:
        return any(child is module for child in self.head.children())

    def _hooks(self, module: nn.Module) -> Iterator[Any]:
        started: list[int] = []

        def before(_module: nn.Module, _inputs: Any) -> None:
            started.append(self.counter.get_total_flops())

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            area = output.shape[2:].numel() if isinstance(output, Tensor) else None
            self.calls.setdefault(module, []).append((self.counter.get_total_flops() - started.pop(), area))

        yield module.register_forward_pre_hook(before)
        yield module.register_forward_hook(after)


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _levels(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum of the parts' operations by level; the last row, level None, belongs to no single one."""
    keys = sorted({r["level"] for r in rows if r["level"] is not None})
    every = [*keys, *([None] if any(r["level"] is None for r in rows) else [])]
    return [{"level": lv, "gflops": sum(r["gflops"] for r in rows if r["level"] == lv)} for lv in every]


def _part_parameters(head: nn.Module) -> list[dict[str, Any]]:
    """Parameters of each child of the head, and of each member of a child that is a ModuleList."""
    parts: dict[str, nn.Module] = {}
    for name, child in head.named_children():
        shared = isinstance(child, nn.ModuleList) and len({id(m) for m in child}) < len(child)
        if isinstance(child, nn.ModuleList) and not shared:
            parts |= {f"{name}.{i}": m for i, m in enumerate(child)}
        else:
            parts[name] = child
    return [{"part": name, "parameters": n} for name, m in parts.items() if (n := parameters(m))]


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
