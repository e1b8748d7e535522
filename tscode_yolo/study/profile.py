"""``tscode profile model=A [baseline=B]``: what a model costs, on paper and on this machine, and how much is head.

Milliseconds depend on the machine and on what else it does; with a baseline, both are run in turns and the ratio is
what is quoted. ``json=FILE`` keeps the numbers. See `flops`, `latency` and `memory` for how each comes about.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from tscode_yolo.study import flops, traffic
from tscode_yolo.study.detects import refusal
from tscode_yolo.study.latency import current, timed
from tscode_yolo.study.profile_tables import show
from tscode_yolo.study.training import loss_cost, training_cost
from tscode_yolo.verbs.arguments import (
    as_count,
    as_device,
    as_list,
    as_side,
    as_text,
    one_of,
    take_only,
    weights_file,
    writable,
)
from tscode_yolo.verbs.loading import built, checkpoint
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json

GRAPH = "cudagraph"  # PyTorch's kernels as one CUDA graph: their own time, without that of launching them one by one
FORMATS = {  # format -> modules it needs
    "pytorch": (),
    GRAPH: (),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
}
GRAPH_WARMUP = 3  # calls before the capture: anchors and cuDNN's choices are made in the first
ARGUMENTS = {
    "model": "YAML or checkpoint of a detection model",
    "baseline": "another one, measured in turns with it, for the ratios",
    "imgsz": "side of the square input in pixels, a multiple of 32; 640",
    "formats": f"{', '.join(FORMATS)}; pytorch. One whose packages are missing is reported as skipped",
    "json": "file to keep the numbers in",
    "nc": "number of classes of models built from YAML; theirs",
    "device": "cpu, mps or a GPU's number; the first GPU if there is one",
    "rounds": "of timing; 30",
    "batches": "batch sizes of the latencies; 1,8",
    "train_batch": "batch size of the training step; 4",
}


def main(args: dict[str, Any]) -> int:
    """Run the verb: print the tables, write ``json=FILE`` if asked."""
    given = take_only(args, ARGUMENTS, required=("model",))
    file = writable("json", name) if (name := given.pop("json", None)) else None
    report = profile(**given, say=lambda stage: print(f"profile: {stage} ...", file=sys.stderr, flush=True))
    console = Console()
    show(report, console if console.is_terminal else Console(width=120))
    if file:
        write_json(file, report)
    return 0


def profile(
    model: str,
    baseline: str | None = None,
    *,
    imgsz: int = 640,
    formats: str | list[str] = "pytorch",
    nc: int | None = None,
    device: str | int | None = None,
    rounds: int = 30,
    batches: Any = (1, 8),
    train_batch: int = 4,
    say: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Measure one model, or two in turns.

    Args:
        model: YAML or checkpoint of a detection model.
        baseline: another one to compare with.
        imgsz: side of the square input in pixels.
        formats: among `FORMATS`; those whose packages are missing are reported as skipped.
        nc: number of classes of models built from YAML; theirs by default.
        device: of torch; CUDA if there is one, else the CPU.
        rounds: of timing.
        batches: batch sizes of the latencies.
        train_batch: batch size of the training step.
        say: told what is measured next.

    Returns:
        ``models``: name -> `flops.count` and ``traffic`` (`traffic.summary`, at this machine's ``rates``); ``latency``:
        one row for each format, batch and part (model or head); ``training``: time and peak memory of a step; ``loss``:
        time of the assignment and losses in it; ``skipped``; ``provenance``. No path of this machine.

    Raises:
        ValueError: an argument that makes no sense, or a model that does not detect.
    """
    wanted = [one_of("formats", f, tuple(FORMATS)) for f in as_list(formats)]
    if not wanted:
        raise ValueError(f"formats=: expected one or more of {', '.join(FORMATS)}")
    as_side(imgsz)
    as_count("rounds", rounds, 2)
    if as_count("train_batch", train_batch) == 1 and imgsz < 128:
        raise ValueError(f"train_batch=1: expected 2 or more at imgsz={imgsz}, for a norm needs more than one value")
    files = {k: as_text(k, v) for k, v in (("model", model), ("baseline", baseline)) if v}
    if nc is not None:
        as_count("nc", nc)
        if all(f.endswith(".pt") for f in files.values()):
            raise ValueError(f"nc={nc}: expected a model YAML, a checkpoint has the classes it was trained on")
    where = as_device("cuda:0" if torch.cuda.is_available() else "cpu") if device is None else as_device(device)
    sizes = [as_count("batches", b) for b in as_list(batches)]
    if not sizes:
        raise ValueError("batches=: expected one or more batch sizes")
    names = [Path(n).stem for n in files.values()]
    if baseline and names[0] == names[1]:
        names[1] += " (baseline)"
    nets = {n: load(f, nc, key).to(where) for n, (key, f) in zip(names, files.items(), strict=True)}
    say(f"parameters, FLOPs and memory traffic of {' and '.join(nets)}")
    report = _head_of_report(nets, names, imgsz, where)
    timing = f"batch {', '.join(map(str, sizes))}, {rounds} rounds"
    if "pytorch" in wanted:
        say(f"latency in PyTorch, {timing}")
        report["latency"] += pytorch_latency(nets, imgsz, sizes, where, rounds)
    for fmt in (f for f in wanted if f != "pytorch"):
        if fmt == GRAPH:
            if where.type == "cuda":
                say(f"latency as CUDA graphs, {timing}")
                report["latency"] += pytorch_latency(nets, imgsz, sizes, where, rounds, graph=True)
            else:
                report["skipped"][fmt] = f"needs a CUDA device, got device={where}"
        elif missing := [m for m in FORMATS[fmt] if find_spec(m) is None]:
            report["skipped"][fmt] = f"not installed: {', '.join(missing)}; pip install {' '.join(missing)}"
        else:
            say(f"latency in {fmt}, {timing}")
            report["latency"] += exported_latency(nets, fmt, imgsz, sizes, rounds)
    say(f"training step and loss, batch {train_batch}")
    report["training"] = training_cost(nets, imgsz, train_batch, where, max(rounds // 3, 6))
    report["loss"] = loss_cost(nets, imgsz, train_batch, where, max(rounds // 3, 6))
    return {**report, "provenance": provenance()}


def _head_of_report(
    nets: dict[str, DetectionModel], names: list[str], imgsz: int, where: torch.device
) -> dict[str, Any]:
    """What was measured, where, and everything that is counted rather than timed."""
    rates = traffic.machine_rates(where)
    counted = {n: flops.count(net, imgsz) for n, net in nets.items()}
    for name, net in nets.items():
        counted[name]["traffic"] = traffic.summary(traffic.trace(net, imgsz), rates)
    return {
        "imgsz": imgsz,
        "model": names[0],
        "baseline": names[1] if len(names) > 1 else None,
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "amp": where.type == "cuda",
        "rates": rates,
        "models": counted,
        "latency": [],
        "skipped": {},
    }


def load(name: str, nc: int | None = None, key: str = "model") -> DetectionModel:
    """A detection model from a YAML (random weights) or a checkpoint.

    Raises:
        ValueError: it is a model of another task.
    """
    if name.endswith((".yaml", ".yml")):
        net: Any = built(name, nc, key)
    else:
        net = checkpoint(weights_file(key, name), key).float()
    if why := refusal(net):
        raise ValueError(f"{name}: {why}; give a detect YAML or weights")
    net.args = get_cfg()
    return net


def pytorch_latency(
    nets: dict[str, DetectionModel],
    imgsz: int,
    batches: list[int],
    device: torch.device,
    rounds: int,
    graph: bool = False,
) -> list[dict[str, Any]]:
    """Time of model and head alone, fused and in eval mode, as `timed` rows; the head gets maps that the model made.

    On CUDA weights and images are in half precision, as in the host's ``half=True``.

    Args:
        nets: name -> model, on `device`.
        imgsz: side of the square input in pixels.
        batches: batch sizes.
        device: of the models.
        rounds: of timing.
        graph: replay each call as one CUDA graph; CUDA only.
    """
    dtype = torch.half if device.type == "cuda" else torch.float
    ready = {name: flops.deployed(net).to(dtype) for name, net in nets.items()}
    fmt, wrap = (GRAPH, partial(_captured, device=device)) if graph else ("pytorch", _same)
    rows = []
    for batch in batches:
        image = torch.rand(batch, 3, imgsz, imgsz, device=device, dtype=dtype)
        whole = {name: wrap(_inference(net, partial(_same, image))) for name, net in ready.items()}
        heads = {n: wrap(_inference(_head(net), _head_input(net, image))) for n, net in ready.items()}
        rows.append(timed(fmt, "model", batch, whole, device, rounds))
        rows.append(timed(fmt, "head", batch, heads, device, rounds))
    return rows


def _captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The kernels of a call as one CUDA graph, to be replayed on the same inputs."""
    with current(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARMUP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()

    def replay(_kept: Any = call) -> None:  # the tensors that the graph reads live as long as the call does
        graph.replay()

    return replay


def exported_latency(
    nets: dict[str, DetectionModel], fmt: str, imgsz: int, batches: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Time of the exported models in their runtime, on the CPU, through the host's own backend."""
    device, rows = torch.device("cpu"), []
    with quiet_host(), tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            calls = {}
            for i, (name, net) in enumerate(nets.items()):
                weights = Path(folder) / f"m{i}b{batch}.pt"
                torch.save({"model": deepcopy(net).cpu().float(), "train_args": {"task": "detect"}}, weights)
                exported = YOLO(str(weights)).export(format=fmt, imgsz=imgsz, batch=batch, device="cpu", verbose=False)
                image = torch.rand(batch, 3, imgsz, imgsz)
                calls[name] = _inference(AutoBackend(exported, device=device), partial(_same, image))
            rows.append(timed(fmt, "model", batch, calls, device, rounds, settle=True))
    return rows


@contextmanager
def quiet_host() -> Iterator[None]:
    """Keep the host's own talk out of our tables; warnings pass."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _inference(net: nn.Module, make_input: Callable[[], Any]) -> Callable[[], object]:
    """A forward pass without gradients as a call without arguments."""

    def run() -> object:
        with torch.inference_mode():
            return net(make_input())

    return run


def _same(value: Any) -> Any:
    return value


def _head(net: DetectionModel) -> nn.Module:
    layers: Any = net.model
    return layers[-1]


def _head_input(net: DetectionModel, image: Tensor) -> Callable[[], list[Tensor]]:
    """The maps that reach the head for `image`, in a new list each time, for heads write into theirs.

    Not by a hook: a head may show its hooks fewer maps than it reads (ours hides C2 from the host's trackers).
    """
    caught: list[Tensor] = []
    head = _head(net)
    forward = head.forward

    def catch(maps: list[Tensor]) -> Any:
        caught.extend(maps)
        return forward(maps)

    head.forward = catch  # type: ignore[method-assign]
    try:
        with torch.inference_mode():
            net(image)
    finally:
        del head.forward
    return lambda: list(caught)
