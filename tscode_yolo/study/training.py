"""What training costs: a whole step with its peak of memory, and the loss in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.study.latency import timed
from tscode_yolo.study.memory import peak_memory

OBJECTS = 8  # drawn boxes an image


def training_cost(
    nets: dict[str, DetectionModel], imgsz: int, batch: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Time and peak memory of a training step (forward, loss, backward, SGD) on drawn boxes, models in turns."""
    steps = {name: training_step(net, imgsz, batch, device) for name, net in nets.items()}
    for step in steps.values():
        step()  # the first step makes gradients, momentum and the loss object
    peaks = {
        name: peak_memory(step, iter([*nets[name].parameters(), *nets[name].buffers()]), device)
        for name, step in steps.items()
    }
    row = timed("pytorch", "training step", batch, steps, device, rounds)
    first, *rest = peaks
    row["peak_bytes"] = peaks
    row["peak_ratio"] = peaks[first] / peaks[rest[0]] if rest else None
    return row


def loss_cost(
    nets: dict[str, DetectionModel], imgsz: int, batch: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Time of label assignment and losses, forward and back to the head's outputs, models in turns."""
    return timed(
        "pytorch", "loss", batch, {n: loss_step(net, imgsz, batch, device) for n, net in nets.items()}, device, rounds
    )


def loss_step(net: DetectionModel, imgsz: int, batch: int, device: torch.device) -> Callable[[], object]:
    """The criterion on the outputs of one forward pass, and its gradient there, as a call without arguments."""
    net.train()
    data = drawn_batch(imgsz, batch, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=device.type == "cuda"):
        outputs = net(data["img"])

    def step() -> None:
        preds = _leaves(outputs)
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss: Any = net.loss(data, preds)[0]
        loss.sum().backward()

    return step


def _leaves(outputs: Any) -> Any:
    """Nested outputs as fresh tensors that take gradients."""
    if isinstance(outputs, dict):
        return {k: _leaves(v) for k, v in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_leaves(v) for v in outputs)
    return outputs.detach().requires_grad_() if isinstance(outputs, Tensor) else outputs


def training_step(net: DetectionModel, imgsz: int, batch: int, device: torch.device) -> Callable[[], object]:
    """One optimiser step as a call without arguments; mixed precision on CUDA."""
    net.train().requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    data = drawn_batch(imgsz, batch, device)

    def step() -> None:
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss = net(data)[0].sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def drawn_batch(imgsz: int, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A batch as the host's loader gives it: (batch, 3, imgsz, imgsz) of noise, `OBJECTS` boxes an image in 0..1."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(batch * OBJECTS, 2, generator=generator) * 0.6 + 0.2
    size = torch.rand(batch * OBJECTS, 2, generator=generator) * 0.3 + 0.05
    return {
        "img": torch.rand(batch, 3, imgsz, imgsz, generator=generator).to(device),
        "cls": torch.zeros(batch * OBJECTS, 1, device=device),
        "bboxes": torch.cat([centre, size], 1).to(device),
        "batch_idx": torch.arange(batch, device=device).repeat_interleave(OBJECTS).float(),
    }
