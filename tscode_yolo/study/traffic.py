"""What a forward pass launches and moves: operations, bytes, and the time they need at the machine's own rates.

Few operations on small maps are bound by multiply-adds. Depthwise convs, sums and activations are bound by the bytes
they read and write, and on a GPU that is faster than its host can launch kernels by how many there are. A roofline
(Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009) of every operation, summed, says how long a model takes if
each does its multiply-adds and moves its bytes at full rate, one after another. Maps that stay in a cache from one
operation to the next can make it faster than that; launches and small kernels make it slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.flops import deployed
from tscode_yolo.study.latency import time_in_turns
from tscode_yolo.study.memory import tensors_in

COPY_BYTES = 256 * 2**20  # beyond any cache of last level, so that memory is measured
SQUARE = {"cpu": 1024, "cuda": 8192}  # side of the matrices whose product gives the rate of multiply-adds
ROUNDS = 7


class Operation(NamedTuple):
    """One operation that runs a kernel.

    Attributes:
        bytes: of the tensors it reads and of those it writes.
        flops: floating-point operations, 2 per multiply-add; of convs, matrix products and attention.
        in_head: whether the head runs it.
    """

    bytes: int
    flops: int
    in_head: bool


class Trace(TorchDispatchMode):
    """Lists the operations that run while it is entered; views move nothing and are left out.

    Attributes:
        operations: in the order they ran.
        in_head: set while the head runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.in_head = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it moved."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not _is_view(func):
            read, written = (sum(map(_bytes, tensors_in(v))) for v in ((args, list(kwargs.values())), result))
            counted = flop_registry.get(func._overloadpacket)
            flops = counted(*args, **kwargs, out_val=result) if counted else 0
            self.operations.append(Operation(read + written, flops, self.in_head))
        return result


def trace(model: DetectionModel, imgsz: int = 640, batch: int = 1) -> list[Operation]:
    """Operations of one forward pass of a detection model as deployed, in half precision on CUDA.

    Args:
        model: as built or loaded; it is copied, not changed.
        imgsz: side of the square input in pixels.
        batch: images.
    """
    device = next(model.parameters()).device
    dtype = torch.half if device.type == "cuda" else torch.float
    net = deployed(model).to(dtype)
    layers: Any = net.model
    channels = next(p for p in net.parameters() if p.ndim == 4).shape[1]
    image = torch.zeros(batch, channels, imgsz, imgsz, device=device, dtype=dtype)
    with torch.no_grad():
        net(image)  # anchors of this size are made once, not in every pass
        with Trace() as found, _inside(layers[-1], found):
            net(image)
    return found.operations


def summary(operations: Sequence[Operation], rates: dict[str, float] | None = None) -> dict[str, Any]:
    """Number of operations and bytes they move, of the model and of its head; with `rates` their roofline too.

    Returns:
        ``operations``, ``bytes``, with rates ``roofline_ms``; ``head`` with the same.
    """
    parts = {"model": operations, "head": [o for o in operations if o.in_head]}
    found: dict[str, dict[str, Any]] = {}
    for part, members in parts.items():
        found[part] = {"operations": len(members), "bytes": sum(o.bytes for o in members)}
        if rates:
            found[part]["roofline_ms"] = 1e3 * sum(
                max(o.bytes / rates["bytes_per_s"], o.flops / rates["flops_per_s"]) for o in members
            )
    return {**found["model"], "head": found["head"]}


def machine_rates(device: torch.device) -> dict[str, float]:
    """Bytes a second of a large copy (read and written) and operations a second of a large matrix product.

    Median of a few, with the threads torch has now; half precision on CUDA, as `trace`.
    """
    dtype = torch.half if device.type == "cuda" else torch.float
    source = torch.ones(COPY_BYTES // dtype.itemsize, device=device, dtype=dtype)
    target, side = torch.empty_like(source), SQUARE.get(device.type, SQUARE["cpu"])
    a = torch.rand(side, side, device=device, dtype=dtype)
    calls = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    ms = {name: statistics.median(t) for name, t in time_in_turns(calls, device, ROUNDS, warmup=2).items()}
    return {
        "bytes_per_s": 2 * COPY_BYTES / (1e-3 * ms["copy"]),
        "flops_per_s": 2 * side**3 / (1e-3 * ms["product"]),
    }


class _inside:
    """Says `trace.in_head` while the head's forward runs; not by a hook, which a head may answer in its own way."""

    def __init__(self, head: nn.Module, found: Trace) -> None:
        self.head, self.found, self.forward = head, found, head.forward

    def __enter__(self) -> None:
        self.head.forward = self._forward  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.head.forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self.found.in_head = True
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.found.in_head = False


def _is_view(func: Any) -> bool:
    """Whether an operation's results alias its inputs without being written."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _bytes(tensor: Tensor) -> int:
    """Bytes that hold a tensor's values; an expanded one repeats them."""
    if tensor.numel() == 0:
        return 0
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= size if stride else 1
    return distinct * tensor.element_size()
