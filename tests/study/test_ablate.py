"""Grids: the paper's rows in the paper's order, and models that differ as the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.shipped import cfg_dir
from tscode_yolo.study import flops
from tscode_yolo.study.ablate import GRIDS, main, read_grid, write_arms
from tscode_yolo.verbs.loading import with_options


def parameters(arm) -> int:
    return flops.parameters(DetectionModel(arm.model, nc=3, verbose=False))


def test_table1_is_the_four_combinations_and_its_first_row_the_stock_head(tmp_path):
    base, rows = read_grid("table1")
    assert [(r["options"]["sce"], r["options"]["dpe"]) for r in rows] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    arms, layout = write_arms(base, rows, tmp_path)
    assert [name for _, name in layout] == [a.name for a in arms]
    stock = DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    assert parameters(arms[0]) == flops.parameters(stock)
    assert len({parameters(a) for a in arms}) == 4


def test_table2_runs_the_row_that_stands_twice_once(tmp_path):
    """Rows of the paper: none; conv alone; avg; max; conv; then conv again with kernels 3, 5, 7."""
    base, rows = read_grid("table2")
    arms, layout = write_arms(base, rows, tmp_path)
    assert (len(rows), len(arms)) == (8, 7)
    assert layout[4][1] == layout[5][1]
    content = {a.name: yaml.safe_load(open(a.model))["tscode"] for a in arms}  # noqa: PTH123, SIM115
    kinds = [
        (o.get("sce_down"), o.get("sce_kernel"), o.get("sce_coarser", True)) for o in (content[n] for _, n in layout)
    ]
    assert kinds[1:] == [
        ("conv", 3, False),
        ("avg", None, True),
        ("max", 3, True),
        ("conv", 3, True),
        ("conv", 3, True),
        ("conv", 5, True),
        ("conv", 7, True),
    ]


def test_table3_names_the_levels_in_the_papers_order(tmp_path):
    _, rows = read_grid("table3")
    levels = [r["options"].get("dpe_levels", [0]) for r in rows]
    assert levels == [[0], [0, 1], [-1, 0], [-1], [-1, 0, 1], [-1, 0, 1, 2]]
    assert all(r["options"]["sce"] for r in rows)
    arms, _ = write_arms("yolo11n-tscode.yaml", rows, tmp_path)
    assert len({parameters(a) for a in arms}) == 6


@pytest.mark.parametrize("base", ["yolov8n-tscode.yaml", "yolo26s-tscode.yaml"])
def test_the_scale_letter_survives_in_the_copy(base, tmp_path):
    arms, _ = write_arms(
        base, [{"label": "as it is", "options": {}}, {"label": "x", "options": {"sce": False}}], tmp_path
    )
    assert parameters(arms[0]) == flops.parameters(DetectionModel(base, nc=3, verbose=False))


def test_a_file_may_hold_options_and_other_models(tmp_path):
    file = tmp_path / "grid.yaml"
    rows = [{"label": "stock", "model": "yolo11n.yaml"}, {"label": "avg", "options": {"sce_down": "avg"}}]
    file.write_text(yaml.safe_dump({"base": "yolo11n-tscode.yaml", "rows": rows}))
    base, read = read_grid(str(file))
    arms, layout = write_arms(base, read, tmp_path / "models")
    assert [label for label, _ in layout] == ["stock", "avg"]
    assert arms[0].model == "yolo11n.yaml"
    assert read_grid(str(file), "yolo11s-tscode.yaml")[0] == "yolo11s-tscode.yaml"


def test_what_rows_have_in_common_may_be_an_anchor(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "rows:\n- {label: a, options: &mine {sce_kernel: 5}}\n- {label: b, options: {<<: *mine, dpe: false}}"
    )
    arms, _ = write_arms(*read_grid(str(tmp_path / "grid.yaml")), tmp_path / "models")
    built = [DetectionModel(arm.model, nc=3, verbose=False).model[-1].options for arm in arms]
    assert [(o["sce_kernel"], o["dpe"]) for o in built] == [(5, True), (5, False)]


def test_options_in_the_heads_row_are_changed_too(tmp_path):
    """They win over those of the YAML's mapping, and would over a grid's."""
    content = yaml.safe_load((cfg_dir() / "yolo11-tscode.yaml").read_text())
    *row, arguments = content["head"][-1]
    content["head"][-1] = [*row, [*arguments[:1], {"sce_kernel": 5, "sce_width": 1.0}]]
    (tmp_path / "mine11n.yaml").write_text(yaml.safe_dump(content))
    rows = [{"label": "base", "options": {}}, {"label": "7", "options": {"sce_kernel": 7}}]
    arms, _ = write_arms(str(tmp_path / "mine11n.yaml"), rows, tmp_path / "models")
    built = [DetectionModel(arm.model, nc=3, verbose=False).model[-1].options for arm in arms]
    assert [(o["sce_kernel"], o["sce_width"], o["finer"]) for o in built] == [(5, 1.0, True), (7, 1.0, True)]
    changed = with_options(str(tmp_path / "mine11n.yaml"), {"sce": False})
    assert DetectionModel(changed, nc=3, verbose=False).model[-1].options["sce"] is False


def test_rows_that_say_the_same_are_one_model(tmp_path):
    rows = [{"label": x, "options": o} for x, o in (("a", {}), ("b", {"sce_kernel": 3}), ("c", {"sce_kernel": 5}))]
    arms, layout = write_arms("yolo11n-tscode.yaml", rows, tmp_path)
    assert len(arms) == 2
    assert [name for _, name in layout] == [arms[0].name, arms[0].name, arms[1].name]


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (["nc", {"finer": True}, {"sce": False}], {}, r"are \[nc\] or \[nc, \{option: value"),
        (["nc"], {"tscode": ["finer"]}, "expected a mapping like"),
        (None, {}, r"expected a row \[\[16, 19, 22\], 1, TSCODEDetect, \[nc\]\], got"),
    ],
)
def test_a_base_that_training_would_refuse_is_refused(drawn, tmp_path, row, changes, message):
    content = {**yaml.safe_load((cfg_dir() / "yolo11-tscode.yaml").read_text()), **changes}
    content["head"][-1] = content["head"][-1][:3] + ([row] if row else [])
    (tmp_path / "mine11n.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "grid.yaml").write_text("rows: [{label: a, options: {}}, {label: b, options: {sce_kernel: 5}}]")
    args = {"data": str(drawn), "grid": str(tmp_path / "grid.yaml"), "base": str(tmp_path / "mine11n.yaml")}
    with pytest.raises(ValueError, match=message):
        main({**args, "out": str(tmp_path / "new/out"), "epochs": 1, "imgsz": 64, "batch": 4})
    assert not (tmp_path / "new").exists()


def test_a_base_without_our_head_is_named():
    with pytest.raises(ValueError, match=r"base=yolo11n\.yaml: expected .* head is a TSCODEDetect, .* got a Detect"):
        write_arms("yolo11n.yaml", [], Path())


def test_the_models_of_a_study_may_be_corrected_until_a_run_has_begun(tmp_path):
    folder = tmp_path / "models"
    rows = [{"label": "a", "options": {}}, {"label": "b", "options": {"sce": False}}]
    arms, _ = write_arms("yolo11n-tscode.yaml", rows, folder)
    assert write_arms("yolo11n-tscode.yaml", rows, folder)[0] == arms
    before = Path(arms[1].model).read_bytes()
    rows[1] = {"label": "b", "options": {"dpe": False}}
    write_arms("yolo11n-tscode.yaml", rows, folder)
    assert (after := Path(arms[1].model).read_bytes()) != before
    begun = tmp_path / "runs/drawn" / arms[1].name / "seed0/train/weights/resume.pt"
    begun.parent.mkdir(parents=True)
    begun.touch()
    with pytest.raises(ValueError, match="of a study with another grid or base"):
        write_arms("yolo11n-tscode.yaml", [rows[0], {"label": "b", "options": {"finer": False}}], folder)
    assert Path(arms[1].model).read_bytes() == after


def test_a_grid_of_one_model_is_no_study(drawn, tmp_path):
    file = tmp_path / "same.yaml"
    file.write_text("rows: [{label: a, options: {sce: true}}, {label: b, options: {sce: true}}]")
    with pytest.raises(ValueError, match="every row of a grid is the same"):
        main({"data": str(drawn), "grid": str(file), "out": str(tmp_path / "out")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: [{label: a, options: {}}]", "at least two"),
        ("- a\n- b", "expected a mapping"),
        ("bas: y.yaml\nrows: [{label: a, options: {}}, {label: b, options: {}}]", "did you mean base="),
        (
            "rows: [{label: a, options: }, {label: b, options: {}}]",
            "expected a mapping from names of options in row 'a'",
        ),
        ("rows: [{label: a, options: {1: 2, x: 3}}, {label: b, options: {}}]", "from names of options in row 'a'"),
        ("rows: [{label: a, options: {}, 1: 2, z: 3}, {label: b, options: {}}]", r"unknown key \['1', 'z'\]"),
        ("rows: [{label: [x], options: {}}, {label: b, options: {}}]", r"expected a text as label, got \['x'\]"),
        ("base: [1, 2]\nrows: [{label: a, options: {}}, {label: b, options: {}}]", r"as base, got \[1, 2\]"),
        ("rows: [", "expected YAML, got"),
        ("rows: [{label: a, options: {}}, {label: a, options: {sce: false}}]", "of its own .* got 'a' more than once"),
        ("rows: [{label: a, options: {}}, {options: {}}]", "expected a row with 'label'"),
        ("rows: [{label: a, options: {}}, {label: b, options: {}, model: m}]", "either 'options' or 'model'"),
        ("rows: [{label: a, options: {}}, {label: b, option: {}, model: m}]", "unknown key"),
    ],
)
def test_a_bad_grid_is_explained(tmp_path, content, message):
    (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_grid(str(tmp_path / "grid.yaml"))


def test_a_row_whose_options_do_nothing_is_no_row(tmp_path):
    rows = [{"label": "base", "options": {}}, {"label": "wide", "options": {"cls_width": 2.0}}]
    with pytest.raises(
        ValueError, match=r"row 2 of the grid, 'wide': .* without effect: cls_width \(of a head with sce: true\)"
    ):
        write_arms("yolo26n-tscode.yaml", rows, tmp_path)


def test_a_wrong_option_names_its_row(tmp_path):
    rows = [{"label": "base", "options": {}}, {"label": "typo", "options": {"sce_kernal": 5}}]
    with pytest.raises(ValueError, match=r"row 2 of the grid, 'typo': unknown tscode option .* 'sce_kernel'"):
        write_arms("yolo11n-tscode.yaml", rows, tmp_path)
    rows[1] = {"label": "typo", "model": "yolo11n-tscod.yaml"}
    with pytest.raises(FileNotFoundError, match=r"row 2 of the grid, 'typo': model=.*did you mean"):
        write_arms("yolo11n-tscode.yaml", rows, tmp_path)


def test_a_refused_study_leaves_no_folder(drawn, tmp_path):
    (tmp_path / "grid.yaml").write_text("rows: [{label: a, options: {}}, {label: b, options: {sce_kernal: 5}}]")
    (tmp_path / "good.yaml").write_text("rows: [{label: a, options: {}}, {label: b, options: {sce: false}}]")
    out = tmp_path / "out"
    args = {"data": str(drawn), "out": str(out), "epochs": 1, "imgsz": 64, "batch": 4}
    for wrong, message in (
        ({"grid": str(tmp_path / "grid.yaml")}, "sce_kernal"),
        ({"grid": str(tmp_path / "good.yaml"), "base": "yolo11n.yam"}, "base=yolo11n.yam: expected"),
        ({"grid": str(tmp_path / "good.yaml"), "imgsz": 65}, "imgsz=65"),
        ({"grid": str(tmp_path / "good.yaml"), "reuse": str(tmp_path / "good.yaml")}, "good.yaml: .* is no JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            main({**args, **wrong})
        assert not out.exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="out=file: expected a folder or a new name, got a file"):
        main({**args, "grid": str(tmp_path / "good.yaml"), "out": str(tmp_path / "file")})
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="sce_kernal"):
        main({**args, "grid": str(tmp_path / "grid.yaml")})
    assert (out / "mine.txt").read_text() == "kept"


def test_a_wrong_name_is_explained(drawn):
    with pytest.raises(ValueError, match="expected table1, table2, table3 or a YAML file"):
        main({"data": str(drawn), "grid": "table9"})
    with pytest.raises(ValueError, match="got no grid="):
        main({"data": str(drawn)})
    assert set(GRIDS) == {"table1", "table2", "table3"}
