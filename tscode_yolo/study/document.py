"""A report written once, rendered twice: Markdown beside its pictures, and one HTML file with everything inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tscode_yolo.verbs.storage import write_bytes, write_text

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid #ccc;padding:.3rem .7rem;text-align:right}th:first-child,td:first-child{text-align:left}
th{border-bottom:2px solid #666}.scroll{overflow-x:auto}img{max-width:100%}code{background:#f2f2f2;padding:0 .2rem}"""


@dataclass
class Document:
    """A title and blocks.

    Attributes:
        title: of the whole.
        blocks: (kind, content...), in order; the methods add them.
    """

    title: str
    blocks: list[tuple] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.blocks.append(("heading", text))

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.blocks.append(("text", text))

    def items(self, items: Sequence[str]) -> None:
        """Add a list."""
        self.blocks.append(("list", list(items)))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table of text cells."""
        self.blocks.append(("table", list(header), [list(r) for r in rows]))

    def image(self, name: str, caption: str, png: bytes) -> None:
        """Add a picture; `name` is its file beside the Markdown."""
        self.blocks.append(("image", name, caption, png))

    def write(self, folder: Path, stem: str = "report") -> None:
        """Write ``stem.md``, its pictures and ``stem.html`` into `folder`."""
        for block in self.blocks:
            if block[0] == "image":
                write_bytes(folder / block[1], block[3])
        for suffix, text in ((".md", self.markdown()), (".html", self.html())):
            write_text(folder / f"{stem}{suffix}", text)

    def markdown(self) -> str:
        """The document as Markdown."""
        parts = [f"# {_no_tags(self.title)}"]
        for kind, *body in self.blocks:
            if kind == "heading":
                parts.append(f"## {_no_tags(body[0])}")
            elif kind == "text":
                parts.append(_no_tags(body[0]))
            elif kind == "list":
                parts.append("\n".join(f"- {_no_tags(item)}" for item in body[0]))
            elif kind == "image":
                parts.append(f"![{body[1]}]({body[0]})")
            else:
                header, rows = body
                cells = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
                safe = ([_no_tags(c).replace("|", "\\|") for c in row] for row in cells)
                parts.append("\n".join(f"| {' | '.join(row)} |" for row in safe))
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """The document as one HTML file that needs nothing else."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for kind, *body in self.blocks:
            if kind == "heading":
                parts.append(f"<h2>{html.escape(body[0])}</h2>")
            elif kind == "text":
                parts.append(f"<p>{_inline(body[0])}</p>")
            elif kind == "list":
                parts.append("<ul>" + "".join(f"<li>{_inline(i)}</li>" for i in body[0]) + "</ul>")
            elif kind == "image":
                data = base64.b64encode(body[2]).decode()
                parts.append(f'<p><img alt="{html.escape(body[1])}" src="data:image/png;base64,{data}"></p>')
            else:
                parts.append(_html_table(*body))
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        return f"{head}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"


def _no_tags(text: str) -> str:
    """Markdown that shows a ``<`` instead of taking it for HTML; between backticks it does so anyway."""
    pieces = text.split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(pieces))


def _inline(text: str) -> str:
    """Escape, and turn the two marks that reports use, `code` and **bold**, into tags."""
    out = html.escape(text)
    for mark, tag in (("**", "b"), ("`", "code")):
        pieces = out.split(mark)
        if len(pieces) % 2:  # every mark has its partner
            out = "".join(p if i % 2 == 0 else f"<{tag}>{p}</{tag}>" for i, p in enumerate(pieces))
    return out


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{_inline(c)}</th>" for c in header)
    body = "".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
