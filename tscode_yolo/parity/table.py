"""Reports put together and shown: one row a format and variant, as Markdown or on the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from tscode_yolo.parity.judge import NOT_RUN

HEADER = (
    "format",
    "variant",
    "boxes px max (median)",
    "scores max (median)",
    "detections",
    "AP",
    "MB",
    "time",
    "verdict",
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of one row, in the order of `HEADER`."""
    side, other = row["model"] or {}, row["baseline"] or {}
    speed = row["latency"] or {}
    ratios = [f"{speed[k]['median']:.2f}" for k in ("to_pytorch", "to_stock") if speed.get(k)]
    verdict = f"{row['verdict']}: {row['reason']}" if row["reason"] else row["verdict"]
    return [
        row["format"],
        row["variant"],
        _difference(side.get("boxes")),
        _difference(side.get("scores")),
        _detections(side.get("detections")),
        " / ".join(filter(None, (_ap(side), _ap(other)))),
        f"{side['bytes'] / 1e6:.1f}" if side.get("bytes") else "",
        " / ".join(ratios),
        verdict,
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown document."""
    model, baseline = report["model"], report["baseline"]
    limits = report["tolerances"]
    lines = [
        f"# Exports of {model} against PyTorch",
        "",
        f"{len(report['images'])} real images, {report['imgsz']} px unless a variant names another size"
        + (f", AP on {report['data']}" if report["data"] else "")
        + (f"; stock head: {baseline}" if baseline else "")
        + ".",
        "",
        f"Float32 passes within {limits['boxes']:g} px and {limits['scores']:g}, before NMS or, where NMS or top-k is "
        f"in the file, between paired detections, with every detection above {report['conf']:g} found again (IoU > "
        f"0.99, same class); coarser arithmetic passes if it costs at most "
        f"{limits['ap']:g} AP points more than it costs the stock head.",
        "",
        "Detections: matched / in PyTorch. AP: PyTorch -> exported, then the stock head's. Time: exported / PyTorch, "
        "then exported / stock head exported; batch as in the variant, CPU.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells(row)) + " |" for row in report["rows"]]
    lines += ["", "Versions:", ""]
    found: dict[str, dict[str, str]] = {}
    for row in report["rows"]:
        if row["verdict"] != NOT_RUN and row.get("packages"):
            found.setdefault(row["format"], row["packages"])
    lines += [f"- {fmt}: " + ", ".join(f"{k} {v}" for k, v in packages.items()) for fmt, packages in found.items()]
    return "\n".join(lines) + "\n"


def console_table(report: Mapping[str, Any]) -> Table:
    """The same for the terminal."""
    table = Table(*HEADER)
    for row in report["rows"]:
        table.add_row(*cells(row))
    return table


def merge(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports of the same study from several environments as one.

    A row that ran takes the place of one that could not; otherwise the first of each format and variant stays.

    Raises:
        ValueError: no reports, or reports of different studies.
    """
    first, *others = reports
    keys = ("model", "baseline", "imgsz", "conf", "data", "images", "tolerances")
    rows = {(r["format"], r["variant"]): r for r in first["rows"]}
    for report in others:
        if different := [k for k in keys if report[k] != first[k]]:
            raise ValueError(f"expected reports of one study, got different {', '.join(different)}")
        for row in report["rows"]:
            place = row["format"], row["variant"]
            if place not in rows or rows[place]["verdict"] == NOT_RUN:
                rows[place] = row
    return {**first, "rows": list(rows.values()), "provenance": [p for r in (first, *others) for p in _listed(r)]}


def _listed(report: Mapping[str, Any]) -> list[Any]:
    given = report["provenance"]
    return given if isinstance(given, list) else [given]


def _difference(found: Mapping[str, float] | None) -> str:
    return f"{found['max']:.1e} ({found['median']:.0e})" if found and found["max"] is not None else ""


def _detections(counts: Mapping[str, int] | None) -> str:
    if not counts:
        return ""
    near = f" (+{counts['borderline']} at the threshold)" if counts["borderline"] else ""
    return f"{counts['matched']} / {counts['reference']}{near}"


def _ap(side: Mapping[str, Any]) -> str:
    found = side.get("ap")
    return f"{found['pytorch']:.2f} -> {found['exported']:.2f}" if found else ""
