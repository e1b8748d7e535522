"""The tables that ``tscode profile`` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tscode_yolo.study.flops import TOLERANCE


def show(report: dict[str, Any], console: Console) -> None:
    """Print a `profile.profile` report."""
    console.print(
        f"GFLOPs: 1e9 operations, 2 per multiply-add, at {report['imgsz']}x{report['imgsz']}, model as deployed"
    )
    console.print(_totals(report))
    console.print(_traffic(report))
    for name, cost in report["models"].items():
        console.print(_blocks(name, cost))
        console.print(_head(name, cost))
    if report["latency"] or report["training"]:
        console.print(_times(report))
    for fmt, why in report["skipped"].items():
        console.print(f"{fmt}: skipped, {why}")


def _totals(report: dict[str, Any]) -> Table:
    table = Table("model", "parameters", "GFLOPs", "second counter", "head GFLOPs", "head share", title="Cost")
    for name, cost in report["models"].items():
        second = cost["second_counter"]
        apart = second["difference"]
        check = "none" if apart is None else f"{second['gflops']:.3f} ({apart:+.2%})"
        if apart is not None and abs(apart) > TOLERANCE:
            check += " COUNTERS DISAGREE"
        head = cost["head"]
        share = f"{head['gflops_share']:.1%} of GFLOPs, {head['parameter_share']:.1%} of parameters"
        table.add_row(name, f"{cost['parameters']:,}", f"{cost['gflops']:.3f}", check, f"{head['gflops']:.3f}", share)
    return table


def _traffic(report: dict[str, Any]) -> Table:
    """Of the model and of its head: kernels, bytes, and the time of both at full rate; see `traffic`."""
    rates = report["rates"]
    table = Table("model", "part", "operations", "MB moved", "ms at full rate", title="Traffic of one image, batch 1")
    table.caption = f"full rate: {rates['bytes_per_s'] / 1e9:.0f} GB/s copied, {rates['flops_per_s'] / 1e9:.0f} GFLOP/s"
    for name, cost in report["models"].items():
        moved = cost["traffic"]
        for part, of in (("model", moved), ("head", moved["head"])):
            table.add_row(name, part, str(of["operations"]), f"{of['bytes'] / 1e6:.1f}", f"{of['roofline_ms']:.3f}")
    return table


def _blocks(name: str, cost: dict[str, Any]) -> Table:
    table = Table("layer", "type", "parameters", "GFLOPs", title=f"{name}: by block")
    for b in cost["blocks"]:
        table.add_row(str(b["index"]), b["type"], f"{b['parameters']:,}", f"{b['gflops']:.4f}")
    return table


def _head(name: str, cost: dict[str, Any]) -> Table:
    """By part and level; a part's parameters stand in its first row, whichever level that is."""
    table = Table("part", "level", "parameters of the part", "GFLOPs", title=f"{name}: head (level 0 is the finest)")
    numbers = {r["part"]: f"{r['parameters']:,}" for r in cost["head"]["parts"]}
    for r in cost["head"]["rows"]:
        table.add_row(r["part"], _level(r["level"]), numbers.pop(r["part"], ""), f"{r['gflops']:.4f}")
    for part, number in numbers.items():
        table.add_row(part, "", number, "not run")
    table.add_section()
    for r in cost["head"]["levels"]:
        table.add_row("sum", _level(r["level"]), "", f"{r['gflops']:.4f}")
    return table


def _times(report: dict[str, Any]) -> Table:
    """Ratios where there is a baseline; without one, milliseconds, for this machine only."""
    paired = report["baseline"] is not None
    precision = ", half precision, training mixed" if report["amp"] else ""
    place = f"{report['device']}, {report['threads']} threads{precision}"
    title = f"{report['model']} over {report['baseline']}" if paired else f"{report['model']}, milliseconds"
    table = Table("what", "format", "batch", "median", "interval" if paired else "p25-p75", "p5-p95", "peak memory")
    table.title = f"{title} ({place})"
    for row in [*report["latency"], report["training"], report["loss"]]:
        if paired:
            r = row["ratio"]
            low_high = "too few rounds" if r["low"] is None else f"{r['low']:.3f}-{r['high']:.3f}"
            cells = [f"{r['median']:.3f}", low_high, f"{r['p5']:.3f}-{r['p95']:.3f}"]
            memory = f"{row['peak_ratio']:.3f}" if "peak_ratio" in row else ""
        else:
            r = next(iter(row["ms"].values()))
            cells = [f"{r['p50']:.2f}", f"{r['p25']:.2f}-{r['p75']:.2f}", f"{r['p5']:.2f}-{r['p95']:.2f}"]
            memory = f"{next(iter(row['peak_bytes'].values())) / 2**20:.1f} MiB" if "peak_bytes" in row else ""
        elsewhere = report["amp"] and row["device"] == "cpu"  # runtimes that are timed on the CPU whatever torch uses
        fmt = f"{row['format']} (CPU, float32)" if elsewhere else row["format"]
        table.add_row(row["part"], fmt, str(row["batch"]), *cells, memory)
    return table


def _level(level: int | None) -> str:
    return "all" if level is None else str(level)
