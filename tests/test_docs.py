"""Links between the documents lead somewhere, and figures in tables are those of the JSON they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert not broken


def headings(document: Path) -> set[str]:
    """The anchors GitHub gives the headings of a document."""
    lines = re.findall(r"^#+ +(.*?) *$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_there_are_documents_with_links():
    """The check above looks at something."""
    assert {"README.md", "CHANGELOG.md"} <= {d.name for d in DOCUMENTS}
    assert sum(d.read_text(encoding="utf-8").count("](") for d in DOCUMENTS) > 50


RESULTS = ROOT / "examples/results"
INTERVAL = re.compile(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]")  # +1.4 [-0.2, +3.1]


def rows_of_one_report() -> list[tuple[str, Path]]:
    """Rows of tables with intervals that link to one report of a study, and its results."""
    found = []
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            links = re.findall(r"\]\(([^()\s]*/report\.md)\)", line)
            if line.startswith("|") and len(links) == 1 and INTERVAL.search(line):
                found.append((line, (document.parent / links[0]).resolve().with_name("results.json")))
    return found


def test_intervals_in_a_table_are_those_of_the_report_it_links_to():
    rows = rows_of_one_report()
    assert len(rows) >= 10
    for line, file in rows:
        comparisons = json.loads(file.read_text(encoding="utf-8"))["comparisons"]
        measured = {
            f"{m['mean']:+.1f} [{m['t']['low']:+.1f}, {m['t']['high']:+.1f}]"
            for comparison in comparisons
            for m in comparison["metrics"].values()
            if m and m["t"]
        }
        assert set(INTERVAL.findall(line)) <= measured, line


def table_cells(document: str, heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table of a document whose head line begins so."""
    text = (ROOT / document).read_text(encoding="utf-8")
    rows = text[text.index(heading) :].split("\n\n")[0].splitlines()[2:]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    return {first: rest for first, *rest in cells}


def test_the_costs_of_all_twenty_heads_are_those_of_their_json():
    measured = {r["model"]: r for r in json.loads((RESULTS / "head-cost.json").read_text(encoding="utf-8"))["rows"]}
    rows = table_cells("docs/cost.md", "| | n | s | m | l | x |")
    assert len(rows) == 4
    for name, cells in rows.items():
        for scale, cell in zip("nsmlx", cells, strict=True):
            row = measured[name.split("-")[0] + scale]
            assert cell == f"{row['gflops_ratio']:.2f} / {row['parameter_ratio']:.2f}", (name, scale)


def test_the_readmes_first_table_has_the_costs_of_their_json():
    measured = {r["model"]: r for r in json.loads((RESULTS / "head-cost.json").read_text(encoding="utf-8"))["rows"]}
    for name, cells in table_cells("README.md", "| | head GFLOPs | CPU latency").items():
        model = name.strip("`").removesuffix("-tscode")
        timed = {"yolov8n": "dense", "yolo11n": "tower", "yolo26n": "p3p4"}[model]  # when its default came about
        profile = json.loads((RESULTS / f"profile/{model}-{timed}.json").read_text(encoding="utf-8"))
        times = {r["format"]: r["ratio"]["median"] for r in profile["latency"] if r["part"] == "model"}
        assert cells[0] == f"{measured[model]['gflops_ratio']:.2f}"
        assert cells[1] == f"{times['pytorch']:.2f}, {times['onnx']:.2f}"


def test_the_times_of_larger_scales_are_those_of_their_json():
    rows = json.loads((RESULTS / "head-latency-finest.json").read_text(encoding="utf-8"))["rows"]
    measured = {(r["model"], r["format"], r["part"]): r["ratio"] for r in rows}

    def cell(key: tuple[str, str, str]) -> str:
        ratio = measured.pop(key, None)
        return "-" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"

    for name, cells in table_cells("docs/cost.md", "| | head, PyTorch | model, PyTorch |").items():
        model = name.removesuffix("-tscode")
        head = cell((model, "pytorch", "head")).split()[0]
        assert cells == [head, cell((model, "pytorch", "model")), cell((model, "onnx", "model"))], name
    assert not measured, "timed, but not in the table"
