"""Peak memory of one call: what CUDA's allocator reports, or on the CPU the bytes of all tensors alive at once.

The CPU figure counts every storage from the operation that makes it until it is freed, so it repeats exactly and does
not depend on the allocator; scratch space inside a kernel is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveTensors(TorchDispatchMode):
    """Follows the bytes of tensors made while it is entered.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages that are new in its result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._count(tensor)
        return result

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Leave out storages that were there before: weights, say, of which a view may come out of an operation."""
        for tensor in tensors:
            self._watch(tensor, counted=False)

    def _count(self, tensor: Tensor) -> None:
        self._watch(tensor, counted=True)
        self.peak = max(self.peak, self.live)

    def _watch(self, tensor: Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak_memory(call: Callable[[], object], existing: Iterator[Tensor], device: torch.device) -> int:
    """Bytes that `call` needs at its peak, beyond what is there before it.

    Args:
        call: runs once.
        existing: tensors that exist already, parameters and inputs.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as live:
        live.ignore(existing)
        call()
    return live.peak


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a result of nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
