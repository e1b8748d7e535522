"""The report as one HTML file: no script, no server, no second file; pictures are inside it as data.

Bars are HTML, so that their words stay readable on a phone; wide tables scroll inside their own frame.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .texts import COLUMNS, CSS, DEFINITIONS, KEY_NUMBERS, LOSS_PARTS, LOWER_IS_BETTER, TIDE_NAMES
from .verdict import findings, headline, percent, shares

Cell = dict[str, float | None]


def to_jpeg(figure: Figure, quality: int = 82) -> bytes:
    """Render a figure for the page; photographs are a tenth the size of the PNG beside it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": quality})
    return buffer.getvalue()


def picture(data: bytes, text: str) -> str:
    """An ``img`` with its data inside and a text for those who cannot see it."""
    coded = base64.b64encode(data).decode()
    return f'<img alt="{escape(text)}" loading="lazy" src="data:image/jpeg;base64,{coded}">'


def number(name: str, value: float | None) -> str:
    """A value as it is read: shares in percent, ranks whole, IoUs and errors with three digits."""
    if value is None:
        return "–"
    kind = KEY_NUMBERS.get(name, ("", "", "percent"))[2]
    if kind == "percent":
        return percent(value)
    return f"{value:.0f}" if kind == "rank" else f"{value:.3f}"


def _difference(name: str, cell: Cell) -> str:
    """A difference with its interval, marked when the interval excludes zero."""
    value, low, high = cell["value"], cell["low"], cell["high"]
    if value is None:
        return "<td>–</td>"
    kind = KEY_NUMBERS[name][2]
    scale, digits = (100, 1) if kind == "percent" else (1, 0 if kind == "rank" else 3)

    def show(v: float) -> str:
        return f"{scale * v:+.{digits}f}"

    if low is None or high is None:
        return f"<td>{show(value)}</td>"
    clear = low > 0 or high < 0
    good = (value < 0) == (name in LOWER_IS_BETTER)
    mark = ("better" if good else "worse") if clear else ""
    word = f" {mark}" if mark else ""
    return f'<td class="{mark}">{show(value)}{word}<small>{show(low)} to {show(high)}</small></td>'


def _value(name: str, cell: Cell) -> str:
    low, high = cell["low"], cell["high"]
    bounds = "" if low is None or high is None else f"<small>{number(name, low)} to {number(name, high)}</small>"
    return f"<td>{number(name, cell['value'])}{bounds}</td>"


def key_table(report: dict[str, Any], names: list[str]) -> str:
    """The key numbers, a column a model, and the paired difference."""
    heads = "".join(f"<th>{escape(n)}</th>" for n in names)
    if report["difference"]:
        heads += "<th>difference</th>"
    body = []
    for key, (label, note, _) in KEY_NUMBERS.items():
        if key == "threshold":  # each class has its own
            continue
        cells = "".join(_value(key, m["overall"][key]) for m in report["models"])
        if report["difference"]:
            cells += _difference(key, report["difference"][key])
        body.append(f"<tr><th scope=row>{label}<small>{note}</small></th>{cells}</tr>")
    return f"<div class=scroll><table><tr><th>number</th>{heads}</tr>{''.join(body)}</table></div>"


def _bars(rows: list[tuple[str, str, float, str]], scale: float) -> str:
    """Labelled bars: (label, note, value, CSS class)."""
    lines = []
    for label, note, value, kind in rows:
        width = 100 * min(max(value / scale, 0), 1) if scale > 0 else 0
        lines.append(
            f"<div class=bar><span>{label}<small>{note}</small></span>"
            f'<div class=track><i class="{kind}" style="width:{width:.1f}%"></i></div><b>{percent(value)}</b></div>'
        )
    return "".join(lines)


def loss_bars(report: dict[str, Any], names: list[str]) -> str:
    """Where 1 - AP goes, a block a model."""
    blocks = []
    for model, name in zip(report["models"], names, strict=True):
        overall = model["overall"]
        if overall["ap"]["value"] is None:
            continue
        part = shares(overall)
        rows = [("reached", "AP 50–95", float(overall["ap"]["value"]), "reached")]
        rows += [(label, note, part[key], key) for key, (label, note) in LOSS_PARTS.items()]
        stack = "".join(f'<i class="{k}" style="width:{100 * max(v, 0):.2f}%"></i>' for _, _, v, k in rows)
        blocks.append(f"<h3>{escape(name)}</h3><div class=stack>{stack}</div>{_bars(rows, 1.0)}")
    return "".join(blocks)


def tide_bars(report: dict[str, Any], names: list[str]) -> str:
    """TIDE's six errors, a block a model, on one scale."""
    values = [{k: float(m["overall"][k]["value"] or 0) for k in TIDE_NAMES} for m in report["models"]]
    scale = max([max(v.values()) for v in values] + [0.01])
    blocks = []
    for v, name in zip(values, names, strict=True):
        rows = [(label, note, v[key], "classes") for key, (label, note) in TIDE_NAMES.items()]
        blocks.append(f"<div><h3>{escape(name)}</h3>{_bars(rows, scale)}</div>")
    return f"<div class=columns>{''.join(blocks)}</div>"


def strata_table(model: dict[str, Any], objects: dict[str, int]) -> str:
    """Sizes and classes of one model, most objects first."""
    heads = "".join(f'<th title="{escape(KEY_NUMBERS[c][1])}">{KEY_NUMBERS[c][0]}</th>' for c in COLUMNS)
    rows = [(f"<em>{size}</em>", "", cells) for size, cells in model["sizes"].items()]
    order = sorted(model["classes"], key=lambda n: -objects.get(n, 0))
    rows += [(escape(n), str(objects.get(n, 0)), model["classes"][n]) for n in order]
    body = "".join(
        f"<tr><th scope=row>{name}</th><td>{n}</td>"
        + "".join(_value(c, cells[c]) if c == "ap" else f"<td>{number(c, cells[c]['value'])}</td>" for c in COLUMNS)
        + "</tr>"
        for name, n, cells in rows
    )
    return f"<div class=scroll><table><tr><th>size or class</th><th>objects</th>{heads}</tr>{body}</table></div>"


def data_table(report: dict[str, Any]) -> str:
    """What was read, and what was wrong with it."""
    data, first = report["data"], report["models"][0]["counts"]
    skip = {"objects_per_class", "classes_without_objects", "problems"}
    rows = [(k.replace("_", " "), v) for k, v in data.items() if k not in skip]
    rows.append(("classes without objects", len(data["classes_without_objects"])))
    rows.append(("images without predictions", first["images_without_predictions"]))
    if first["rows_dropped"]:
        rows.append(("detections dropped at the memory ceiling (lowest scores)", first["rows_dropped"]))
    if first["objects_dropped"]:
        rows.append(("objects left out at the memory ceiling (random)", first["objects_dropped"]))
    body = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{v}</td></tr>" for k, v in rows)
    listed = "".join(f"<li>{escape(p)}</li>" for p in data["problems"])
    problems = f"<details><summary>what was left out</summary><ul>{listed}</ul></details>" if listed else ""
    return f"<div class=scroll><table>{body}</table></div>{problems}"


def section(title: str, intro: str, *content: str) -> str:
    """A titled part of the page; nothing if it has no content."""
    inside = "".join(content)
    return f"<section><h2>{title}</h2><p>{intro}</p>{inside}</section>" if inside else ""


def render(report: dict[str, Any], names: list[str], pictures: dict[str, list[tuple[str, bytes]]], title: str) -> str:
    """Build the page.

    Args:
        report: from :func:`report.build`.
        names: short names of the models.
        pictures: group -> (caption, JPEG) pairs; groups are plots, examples, maps, suspects, curves.
        title: what was looked at.

    Returns:
        The HTML.
    """

    def gallery(group: str, kind: str = "") -> str:
        items = pictures.get(group, [])
        drawn = (f"<figure>{picture(d, c)}<figcaption>{escape(c)}</figcaption></figure>" for c, d in items)
        inside = "".join(drawn)
        return f'<div class="gallery {kind}">{inside}</div>' if inside else ""

    said = "".join(f"<li>{escape(s)}</li>" for s in findings(report))
    tables = [
        f"<h3>{escape(n)}</h3>{strata_table(m, report['data']['objects_per_class'])}"
        for n, m in zip(names, report["models"], strict=True)
    ]
    meaning = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items())
    settings = ", ".join(f"{k}={v}" for k, v in {**report["settings"], **report["versions"]}.items())
    parts = [
        f"<header><p class=kicker>tscode align</p><h1>{escape(headline(report))}</h1><p>{escape(title)}</p></header>",
        f"<section><ul class=said>{said}</ul></section>",
        section("Where the loss goes", "AP 50–95 plus everything that is missing to 100 %.", loss_bars(report, names)),
        section(
            "Key numbers",
            f"Small figures are {percent(report['settings']['level'], 0)} intervals from resampling the images.",
            key_table(report, names),
        ),
        section("Agreement and calibration", "Full agreement puts every object at rank 1.", gallery("plots", "two")),
        section(
            "Worst disagreements",
            "Before NMS: green is the raw box with the best IoU, the other colours are the three best scores "
            "among the raw boxes with IoU 0.5 or more on the object. After NMS: ground truth in green (dashed for "
            "other objects), surviving boxes in orange.",
            gallery("examples"),
        ),
        section("What each branch looks at", "Object in green, explained box in orange.", gallery("maps")),
        section("Confident boxes on no label", "Missing labels, or false alarms? Yours to judge.", gallery("suspects")),
        section("TIDE: what each kind of error costs", "AP50 gained if it were repaired.", tide_bars(report, names)),
        section("Classification loss", "The paper's Figure 5, from results.csv.", gallery("curves", "two")),
        section("By size and class", "Sizes are COCO's: small under 32² pixels, large over 96².", *tables),
        section("The data", "What was read.", data_table(report)),
        f"<section><details><summary>What the numbers mean</summary><dl>{meaning}</dl></details>"
        f"<details><summary>How this was made</summary><p>{escape(settings)}</p></details></section>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def write(path: Path, page: str) -> None:
    """Write the page as UTF-8."""
    path.write_text(page, encoding="utf-8")
