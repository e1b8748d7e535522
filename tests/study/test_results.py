"""From records of runs to statements, with made-up records whose answers can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tscode_yolo.study.inventory import DataSet
from tscode_yolo.study.plan import Arm, Study
from tscode_yolo.study.report import verdict, write_report
from tscode_yolo.study.results import analyse, collect, settling
from tscode_yolo.verbs.storage import read_json, write_json

from .records import HARDWARE, run

ARMS = [Arm("stock", "stock.yaml"), Arm("ours", "ours.yaml", "with context")]


def study(out: Path, datasets: tuple[str, ...] = ("cells",), seeds: tuple[int, ...] = (0, 1, 2)) -> Study:
    """A settled study without files behind it."""
    sets = [
        DataSet(d, Path(f"/secret/{d}/data.yaml"), ("x",), {"train": (Path("a.png"),) * 5, "val": ()}, {}, "ab" * 32)
        for d in datasets
    ]
    optimizers = {d: {"optimizer": "SGD", "lr0": 0.01, "momentum": 0.9, "warmup_bias_lr": 0.1} for d in datasets}
    return Study("compare", ARMS, sets, {}, list(seeds), None, {"epochs": 2}, optimizers, 1, 1, "last", out)


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds 0, 1, 2: 11-10, 13-11, 15-12 = 1, 2, 3; seed 3 of ours has no partner and does not enter."""
    runs = [run("stock", s, 10 + s) for s in (2, 0, 1)] + [run("ours", s, 11 + 2 * s) for s in (0, 1, 2, 3)]
    result = analyse(study(tmp_path, seeds=(0, 1, 2, 3)), runs)
    (c,) = result["comparisons"]
    assert c["seeds"] == [0, 1, 2]
    assert c["metrics"]["AP"]["values"] == [1, 2, 3]
    assert c["metrics"]["AP"]["t"]["high"] == pytest.approx(2 + 2.48414, abs=1e-4)
    assert c["AP_p_holm"] == c["metrics"]["AP"]["t"]["p"]
    assert "APl" not in c["metrics"]
    assert "final_AP" not in c["metrics"]
    assert c["metrics"]["AP"]["seeds_needed"]["1.0"] == 10  # sd is 1: one standard deviation
    assert result["pooled"] == []


def test_pooling_takes_each_data_sets_own_pairs(tmp_path):
    runs = []
    for dataset, gain in (("cells", 1.0), ("boards", 3.0)):
        for seed in (0, 1):
            runs += [run("stock", seed, 10, dataset), run("ours", seed, 10 + gain + seed, dataset)]
    result = analyse(study(tmp_path, ("cells", "boards"), (0, 1)), runs)
    (p,) = result["pooled"]
    assert p["metrics"]["AP"]["means"] == {"cells": 1.5, "boards": 3.5}
    assert p["metrics"]["AP"]["mean"] == 2.5


def test_fairness_notices_what_differs(tmp_path):
    runs = [run(a, s, 10.0) for a in ("stock", "ours") for s in (0, 1, 2)]
    assert analyse(study(tmp_path), runs)["fairness"] == {
        **{"pairs": 3, "same_start": 3, "same_batches": 3, "same_tool": 3},
        "remarks": [],
    }
    other = [{"epoch": 1, "mAP": 1.0, "batches": "else"}]
    runs[3] = run("ours", 0, 10.0, history=other, body="another", resumed=[1], threads=2)
    found = analyse(study(tmp_path), runs)["fairness"]
    assert (found["pairs"], found["same_start"], found["same_batches"], found["same_tool"]) == (3, 2, 2, 3)
    text = " ".join(found["remarks"])
    assert "saw the same batches" not in text
    runs[1] = run("stock", 1, 10.0, history=run("stock", 0, 10.0)["history"])
    remarks = analyse(study(tmp_path), runs)["fairness"]["remarks"]
    assert "cells, stock: seeds saw the same batches, so that the intervals are too narrow." in remarks
    for part in (
        "not the baseline's batches",
        "bodies differ",
        "resumed at epoch 2, exactly",
        "2 settings of threads",
    ):
        assert part in text


def ended(seed: int, *ap: float) -> dict[str, Any]:
    """A run with this COCO AP after each of its last epochs."""
    return run("stock", seed, ap[-1], history=[{"epoch": i, "coco": {"AP": a}} for i, a in enumerate(ap)])


def test_settling_is_a_line_through_the_second_half_of_the_judged_epochs():
    """Five judged epochs, three looked at: 10, 12, 14 rises by 2, 14, 11, 14 not at all and swings by 2.45 about 13."""
    found = settling([ended(0, 0, 40, 10, 12, 14), ended(1, 0, 40, 14, 11, 14)], 5)
    assert found["epochs"] == 3
    assert found["slope"]["values"] == pytest.approx([2, 0], abs=1e-9)
    assert found["swing"]["values"] == pytest.approx([0, 6**0.5], abs=1e-9)


def test_settling_needs_three_judged_epochs():
    runs = [ended(0, 1, 2, 3, 4, 5)]
    assert settling(runs, 4) is None
    assert settling([ended(0, 1, 2)], 5) is None  # a shorter run
    assert settling([run("stock", 0, 10.0)], 5) is None  # nothing judged
    assert settling(runs, 5) is not None


def test_the_report_says_whether_training_had_come_to_rest(tmp_path):
    s = replace(study(tmp_path, seeds=(0, 1)), last=5)
    runs = [{**ended(i, 0, 0, 10, 12, 14 + i), "arm": a} for a in ("stock", "ours") for i in (0, 1)]
    for r in runs:
        r["history"] = [{"mAP": 1.0, "train/cls_loss": 1.0, "batches": f"{r['seed']}", **h} for h in r["history"]]
    write_report(s, results_of(s, runs))
    text = (tmp_path / "report.md").read_text()
    assert "Had training come to rest?" in text
    assert "| cells | with context | 3 | +2.25 ± 0.35 | 0.20 ± 0.29 |" in text


def test_collect_names_the_missing_and_why(tmp_path):
    s = study(tmp_path, seeds=(0, 1))
    write_json(s.folder(s.datasets[0], ARMS[0], 0) / "result.json", run("stock", 0, 10.0))
    write_json(s.folder(s.datasets[0], ARMS[1], 0) / "error.json", {"error": "ValueError: no"})
    runs, missing = collect(s)
    assert [r["arm"] for r in runs] == ["stock"]
    assert {(m["arm"], m["seed"]): m["why"] for m in missing} == {
        ("stock", 1): "not run",
        ("ours", 0): "ValueError: no",
        ("ours", 1): "not run",
    }


def results_of(s: Study, runs: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What `compare.carry_out` puts together, with made-up provenance and cost."""
    cost = {a.name: {"parameters": 1000, "gflops": 1.0 + i, "head_share": 0.25} for i, a in enumerate(s.arms)}
    cost["ours"]["latency_ratio"] = {"median": 1.2, "low": 1.1, "high": 1.3}
    provenance = {"command": "tscode compare", "packages": {}, "python": "3", "git": None, "hardware": HARDWARE}
    head = {"kind": s.kind, "weights": s.weights, "init": None, "train": s.train, "imgsz": 64, "tool": "t"}
    head |= {"notes": [], "warnings": ["cells: 2 of 4 val images are doubtful."]}
    head |= {"arms": [{"name": a.name, "label": a.label} for a in s.arms]}
    head |= {"datasets": [d.as_dict() for d in s.datasets], "seeds": s.seeds, "optimizers": s.optimizers}
    head |= {"provenance": provenance, "cost": cost, "missing": [], "runs": runs, **analyse(s, runs)}
    return {**head, **changes}


def test_the_report_says_it_all_and_no_path(tmp_path):
    s = study(tmp_path, ("cells", "boards"))
    runs = [
        run(a, i, 10 + (i + 1) * k + i, d)
        for d in ("cells", "boards")
        for k, a in enumerate(("stock", "ours"))
        for i in range(3)
    ]
    missing = [{"dataset": "cells", "arm": "ours", "seed": 9, "why": "OSError: disk | full"}]
    write_report(
        s, results_of(s, runs, missing=missing), layout=[("base", "stock"), ("both", "ours"), ("again", "ours")]
    )
    text = (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    for part in (
        "+2.00 AP",
        "[-0.48, +4.48]",
        "3 of 3 seeds above",
        "could have resolved",
        "no significant difference",
        "disk",
        "doubtful",
    ):
        assert part in text
        assert part in page
    assert text.index("| base |") < text.index("| both |") < text.index("| again |")
    assert page.count("data:image/png;base64,") == text.count(".png)") == 5
    assert "http" not in page.replace("https://www.w3.org", "")
    assert "<script" not in page
    for file in ("results.json", "report.md", "report.html"):
        assert "/secret" not in (tmp_path / file).read_text()
    assert read_json(tmp_path / "results.json")["comparisons"][0]["metrics"]["AP"]["values"] == [1, 2, 3]
    assert {p.name for p in tmp_path.glob("*.png")} >= {"difference.png", "cls_loss_over_epochs.png"}


def test_runs_of_different_software_are_pointed_out(tmp_path):
    made_by = {"ultralytics": "8.4.1", "code": "0a"}
    runs = [run("stock", 0, 10.0, software=made_by), run("ours", 0, 12.0, software={**made_by, "ultralytics": "8.4.2"})]
    (remark,) = analyse(study(tmp_path, seeds=(0,)), runs)["fairness"]["remarks"]
    assert remark == "Runs were made by different software: ultralytics 8.4.1, code 0a; ultralytics 8.4.2, code 0a."
    older = run("stock", 0, 10.0)  # records of before have no such entry
    (remark,) = analyse(study(tmp_path, seeds=(0,)), [older, runs[1]])["fairness"]["remarks"]
    assert remark.endswith("ultralytics 8.4.2, code 0a; versions not recorded.")


def test_a_run_of_several_processes_is_credited_to_each_of_them(tmp_path):
    place = {"threads": 1, "device": "cpu", "hardware": HARDWARE, "software": {"ultralytics": "8.4.1", "code": "0a"}}
    later = {**place, "device": "cuda:0", "software": {"ultralytics": "8.4.1", "code": "0b"}}
    runs = [run("stock", 0, 10.0, **place, places=[place]), run("ours", 0, 12.0, **later, places=[place, later])]
    places, software = analyse(study(tmp_path, seeds=(0,)), runs)["fairness"]["remarks"]
    assert "2 settings of threads, device and processor" in places
    assert "ultralytics 8.4.1, code 0a; ultralytics 8.4.1, code 0b" in software


def test_the_report_says_where_the_runs_were_made_not_where_it_was_written(tmp_path):
    gpu = {"cpu": "a big cpu", "cores": 16, "memory_gib": 125.9, "gpus": ["a gpu"]}
    made = {"device": "cuda:0", "hardware": gpu, "software": {"torch": "2.11.0", "code": "0a"}}
    s = study(tmp_path, seeds=(0, 1))
    runs = [run("stock", 0, 10.0), *(run(a, i, 11.0 + i, **made) for a, i in (("stock", 1), ("ours", 0), ("ours", 1)))]
    write_report(s, results_of(s, runs))
    text = (tmp_path / "report.md").read_text()
    assert "3 of 4 runs were trained on a big cpu (16 cores, 125.9 GiB, GPUs: a gpu), device cuda:0" in text
    assert "with torch 2.11.0, code 0a." in text
    assert "1 of 4 runs were trained on a cpu (2 cores" in text
    assert "Latency was not measured" not in text


def test_one_seed_is_not_made_to_say_anything(tmp_path):
    s = study(tmp_path, seeds=(0,))
    write_report(s, results_of(s, [run("stock", 0, 10.0), run("ours", 0, 12.0)]))
    assert "+2.00 AP from one seed, which says nothing about chance" in (tmp_path / "report.md").read_text()


def test_arms_are_called_by_their_labels(tmp_path):
    s = study(tmp_path, seeds=(0,))
    s.arms = [*ARMS, Arm("third", "third.yaml", "with context"), Arm("fourth", "fourth.yaml", "wide")]
    runs = [run(a.name, 0, 10.0 + i) for i, a in enumerate(s.arms)]
    results = results_of(s, runs)
    assert results["fairness"]["pairs"] == results["fairness"]["same_start"] == 3
    write_report(s, results)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# compare: with context (ours), with context (third), wide against stock")
    assert "| cells | wide | 1 | 13.00" in text
    assert "fourth" not in text.replace("wide: `fourth`", "")
    assert text.count("say nothing about chance") == 1
    stored = read_json(tmp_path / "results.json")
    assert [g["arm"] for g in stored["groups"]] == ["stock", "ours", "third", "fourth"]


def test_a_label_is_no_html(tmp_path):
    from tscode_yolo.study.document import Document

    document = Document("<b>a</b>")
    document.table(["x"], [["<i> | `a<b`"]])
    assert document.markdown() == "# &lt;b>a&lt;/b>\n\n| x |\n| --- |\n| &lt;i> \\| `a<b` |\n"
    assert "<b>a" not in document.html()


def test_arms_without_labels_are_called_by_name(tmp_path):
    s = study(tmp_path)
    s.arms = [Arm("stock", "stock.yaml"), Arm("ours", "ours.yaml")]
    write_report(s, results_of(s, [run(a, i, 10.0 + i) for a in ("stock", "ours") for i in range(3)]))
    assert (tmp_path / "report.md").read_text().startswith("# compare: ours against stock")


def test_a_picked_epoch_is_confessed(tmp_path):
    s = study(tmp_path)
    s.weights = "best"
    write_report(s, results_of(s, [run(a, i, 10.0 + i) for a in ("stock", "ours") for i in range(3)]))
    assert "biased upwards" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("values", "word"),
    [([1.0, 1.1, 0.9], "better"), ([-1.0, -1.1, -0.9], "worse"), ([1, -1, 0.2], "no significant difference")],
)
def test_verdict_follows_the_interval(values, word):
    from tscode_yolo.study.statistics import paired

    assert f": {word}." in verdict(paired(values))
