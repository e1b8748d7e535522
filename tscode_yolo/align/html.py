"""The report as one HTML file: no script, no server, no second file; pictures are inside it as data.

Bars are HTML, so that their words stay readable on a phone; wide tables scroll inside their own frame.
"""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from tscode_yolo.align.pictures import Picture
from tscode_yolo.align.texts import (
    COLUMNS,
    CSS,
    DEFINITIONS,
    KEY_NUMBERS,
    LOSS_PARTS,
    LOSS_SOURCES,
    LOWER_IS_BETTER,
    MORE_COLUMNS,
    PRESS,
    SIZES_INTRO,
    TIDE_NAMES,
)
from tscode_yolo.align.verdict import findings, headline, percent, shares

Cell = dict[str, float | None]
MANY = 4  # parts of a picture that are told apart at a third of the width


def figure(picture: Picture) -> str:
    """A picture in its parts, each of which grows when it is pressed (a check box: no script), and its caption."""
    parts = []
    for text, data in picture.panels:
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        image = f'<img alt="{escape(text)}" loading="lazy" src="{source}">'
        parts.append(f'<label class=zoom><input type=checkbox aria-label="enlarge">{image}</label>')
    kind = "two" if len(picture.panels) > 1 else "one"
    kind = "many" if len(picture.panels) > MANY else kind
    inside = f"<div class='parts {kind}'>{''.join(parts)}</div>"
    return f"<figure>{inside}<figcaption>{escape(picture.caption)}</figcaption></figure>"


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
    bounds = _bounds(name, cell)
    return f"<td>{number(name, cell['value'])}{f'<small>{bounds}</small>' if bounds else ''}</td>"


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


def _bounds(name: str, cell: Cell) -> str:
    low, high = cell["low"], cell["high"]
    if low is None or high is None:
        return ""
    return f"{number(name, low).removesuffix(' %')} to {number(name, high)}"


def _bars(rows: list[tuple[str, str, float, str, str]], scale: float) -> str:
    """Labelled bars: (label, note, value, CSS class, interval)."""
    lines = []
    for label, note, value, kind, bounds in rows:
        width = 100 * min(max(value / scale, 0), 1) if scale > 0 else 0
        small = f"<small>{bounds}</small>" if bounds else ""
        lines.append(
            f"<div class=bar><span>{label}<small>{note}</small></span>"
            f'<div class=track><i class="{kind}" style="width:{width:.1f}%"></i></div>'
            f"<b>{percent(value)}{small}</b></div>"
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
        reached = _bounds("ap", overall["ap"])
        rows = [("reached", "AP 50–95", float(overall["ap"]["value"]), "reached", reached)]
        for key, (label, note) in LOSS_PARTS.items():
            rows.append((label, note, part[key], key, _bounds(LOSS_SOURCES[key], overall[LOSS_SOURCES[key]])))
        stack = "".join(f'<i class="{k}" style="width:{100 * max(v, 0):.2f}%"></i>' for _, _, v, k, _ in rows)
        blocks.append(f"<h3>{escape(name)}</h3><div class=stack>{stack}</div>{_bars(rows, 1.0)}")
    return "".join(blocks)


def tide_bars(report: dict[str, Any], names: list[str]) -> str:
    """TIDE's six errors, a block a model, on one scale."""
    values = [{k: float(m["overall"][k]["value"] or 0) for k in TIDE_NAMES} for m in report["models"]]
    scale = max([max(v.values()) for v in values] + [0.01])
    blocks = []
    for v, model, name in zip(values, report["models"], names, strict=True):
        rows = [
            (label, note, v[key], "classes", _bounds(key, model["overall"][key]))
            for key, (label, note) in TIDE_NAMES.items()
        ]
        blocks.append(f"<div><h3>{escape(name)}</h3>{_bars(rows, scale)}</div>")
    return f"<div class=columns>{''.join(blocks)}</div>"


def strata_table(model: dict[str, Any], objects: dict[str, int], columns: dict[str, tuple[str, str]]) -> str:
    """Sizes and classes of one model, most objects first, with the given columns (name -> label, note)."""
    heads = "".join(f'<th title="{escape(note)}">{label}</th>' for label, note in columns.values())
    rows = [(f"<em>{size}</em>", "", cells) for size, cells in model["sizes"].items()]
    order = sorted(model["classes"], key=lambda n: -objects.get(n, 0))
    rows += [(escape(n), str(objects.get(n, 0)), model["classes"][n]) for n in order]
    body = "".join(
        f"<tr><th scope=row>{name}</th><td>{n}</td>{''.join(_value(c, cells[c]) for c in columns)}</tr>"
        for name, n, cells in rows
    )
    return f"<div class=scroll><table><tr><th>size or class</th><th>objects</th>{heads}</tr>{body}</table></div>"


def strata_tables(report: dict[str, Any], names: list[str]) -> str:
    """For each model the table of agreement, and folded away the one of errors and calibration."""
    first = {c: KEY_NUMBERS[c][:2] for c in COLUMNS}
    more = {c: KEY_NUMBERS[c][:2] if c in KEY_NUMBERS else TIDE_NAMES[c] for c in MORE_COLUMNS}
    objects, out = report["data"]["objects_per_class"], []
    for name, model in zip(names, report["models"], strict=True):
        out.append(f"<h3>{escape(name)}</h3>{strata_table(model, objects, first)}")
        table = strata_table(model, objects, more)
        out.append(f"<details><summary>TIDE, LRP and calibration of {escape(name)}</summary>{table}</details>")
    return "".join(out)


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
    if data["problems_not_listed"]:
        listed += f"<li>and {data['problems_not_listed']} more</li>"
    problems = f"<details><summary>what was left out</summary><ul>{listed}</ul></details>" if listed else ""
    return f"<div class=scroll><table>{body}</table></div>{problems}"


def section(title: str, intro: str, *content: str) -> str:
    """A titled part of the page; nothing if it has no content."""
    inside = "".join(content)
    return f"<section><h2>{title}</h2><p>{intro}</p>{inside}</section>" if inside else ""


def _foot(report: dict[str, Any]) -> str:
    """What the numbers mean, and how they were made, folded away."""
    meaning = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items())
    settings = ", ".join(f"{k}={v}" for k, v in {**report["settings"], **report["versions"]}.items())
    return (
        f"<section><details><summary>What the numbers mean</summary><dl>{meaning}</dl></details>"
        f"<details><summary>How this was made</summary><p>{escape(settings)}</p></details></section>"
    )


def render(report: dict[str, Any], names: list[str], pictures: list[tuple[str, Picture]], title: str) -> str:
    """Build the page.

    Args:
        report: from :func:`report.build`.
        names: short names of the models.
        pictures: (group, picture) pairs; groups are plots, examples, maps, suspects, curves.
        title: what was looked at.

    Returns:
        The HTML.
    """

    def gallery(group: str, kind: str = "") -> str:
        inside = "".join(figure(p) for g, p in pictures if g == group)
        return f'<div class="gallery {kind}">{inside}</div>' if inside else ""

    said = "".join(f"<li>{escape(s)}</li>" for s in findings(report))
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
            "Before NMS: green is the raw box with the best IoU, the other colours are the three best scores among "
            "the raw boxes about the object (IoU 0.1 or more with it, less with any other object of its class). "
            "If all three lie beside the box that the winner gap is measured from, the best score with IoU 0.5 or "
            "more, that one is dashed in violet. A high score on a badly placed box may also be a neighbour that "
            "nobody labelled: the numbers leave these out. After NMS: ground truth in green (dashed for other "
            "objects), surviving boxes in orange. " + PRESS,
            gallery("examples"),
        ),
        section("What each branch looks at", "Object in green, explained box in orange. " + PRESS, gallery("maps")),
        section("Confident boxes on no label", "Missing labels, or false alarms? Yours to judge.", gallery("suspects")),
        section(
            "TIDE: what each kind of error costs",
            "AP50 gained if it were repaired, with its interval.",
            tide_bars(report, names),
        ),
        section("Classification loss", "The paper's Figure 5, from results.csv.", gallery("curves", "two")),
        section("By size and class", SIZES_INTRO, strata_tables(report, names)),
        section("The data", "What was read.", data_table(report)),
        _foot(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )
