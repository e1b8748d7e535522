"""Time every recipe's label assignment against the host's TaskAlignedAssigner, interleaved on the same predictions.

    python examples/benchmark_assigners.py            # batch 16, 640 px, 20 objects an image
    python examples/benchmark_assigners.py --objects 500 --batch 4 --repeats 5

Writes medians and ratios as JSON, with the machine and the command, to examples/results/benchmark_assigners.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import ultralytics
from torch import Tensor
from ultralytics.utils.tal import TaskAlignedAssigner

from tscode_yolo.recipes import RECIPES, get_recipe
from tscode_yolo.recipes.contract import Grid, Moment, Preds, Targets
from tscode_yolo.recipes.geometry import make_grid

STRIDES = (8.0, 16.0, 32.0)


def make_inputs(args: argparse.Namespace) -> tuple[Preds, Targets, Grid]:
    """Predictions of a half-trained detector: boxes scattered around the objects, rare confident classes."""
    generator = torch.Generator().manual_seed(args.seed)
    grid = make_grid([(args.size // int(s), args.size // int(s)) for s in STRIDES], STRIDES)
    shape = (args.batch, len(grid.points))
    wh = torch.rand(args.batch, args.objects, 2, generator=generator).square() * 0.4 * args.size + 8
    xy = torch.rand(args.batch, args.objects, 2, generator=generator) * (args.size - wh)
    labels = torch.randint(0, args.classes, (args.batch, args.objects), generator=generator)
    targets = Targets(labels, torch.cat((xy, xy + wh), -1), torch.ones_like(labels, dtype=torch.bool))
    distance = (torch.rand(*shape, 4, generator=generator) * 6) * grid.strides[:, None]
    bboxes = torch.cat((grid.points - distance[..., :2], grid.points + distance[..., 2:]), -1)
    logits = torch.randn(*shape, args.classes, generator=generator) * 1.5 - 5
    preds = Preds(logits, bboxes, torch.randn(*shape, generator=generator))
    device = torch.device(args.device)
    grid = make_grid(grid.shapes, STRIDES, device)
    preds = Preds(preds.logits.to(device), preds.bboxes.to(device), preds.quality.to(device))  # type: ignore[union-attr]
    return preds, Targets(labels.to(device), targets.bboxes.to(device), targets.mask.to(device)), grid


def assigners(preds: Preds, targets: Targets, grid: Grid, classes: int) -> dict[str, Callable[[], object]]:
    """The host's assigner and ours, as calls without arguments."""
    host = TaskAlignedAssigner(topk=10, num_classes=classes, alpha=0.5, beta=6.0, stride=[int(s) for s in STRIDES])
    labels, mask = targets.labels.unsqueeze(-1), targets.mask.unsqueeze(-1)

    def run_host() -> tuple[Tensor, ...]:
        return host(preds.logits.sigmoid(), preds.bboxes, grid.points, labels, targets.bboxes, mask)

    calls: dict[str, Callable[[], object]] = {"host TaskAlignedAssigner": run_host}
    for name in RECIPES:
        recipe = get_recipe(name)
        state = recipe.state(classes, len(STRIDES)).to(preds.logits.device)
        state.epoch.fill_(50)  # past TOOD's warm-up
        moment = Moment(state, epochs=100, learning=True)
        calls[name] = lambda recipe=recipe, moment=moment: recipe.assign(preds, targets, grid, moment)  # type: ignore[misc]
    return calls


def measure(calls: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call, round by round so that all see the same load."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for lap in range(repeats + 1):  # the first warms up
        for name, call in calls.items():
            start = time.perf_counter()
            with torch.no_grad():
                call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if lap:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 16, "size": 640, "objects": 20, "classes": 80, "repeats": 11, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    default_out = Path(__file__).parent / "results" / "benchmark_assigners.json"
    parser.add_argument("--out", type=Path, default=default_out)
    args = parser.parse_args()
    inputs = make_inputs(args)
    times = measure(assigners(*inputs, args.classes), args.repeats, args.device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["host TaskAlignedAssigner"]
    rows = {
        name: {"median_ms": round(1e3 * value, 2), "ratio_to_host": round(value / base, 2)}
        for name, value in medians.items()
    }
    for name, row in rows.items():
        print(f"{name:<26}{row['median_ms']:>10.2f} ms{row['ratio_to_host']:>8.2f} x")
    gpu = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    report = {
        "command": " ".join(["python", "examples/benchmark_assigners.py", *sys.argv[1:]]),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "gpu": gpu},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
        },
        "results": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
