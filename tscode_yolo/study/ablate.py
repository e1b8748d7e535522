"""``tscode ablate data=D grid=table1|table2|table3|FILE.yaml``: which part of a head helps.

The machinery of ``tscode compare`` over a grid: each row is a mapping of options, written into the ``tscode:`` key of a
copy of the base model's YAML. The three named grids are the rows of the paper's Tables 1 to 3, in its order, on a YOLO
instead of the paper's detectors; a row that stands twice in a table is run once. A grid file::

    base: yolo11n-tscode.yaml
    rows:
      - {label: no context, options: {sce: false, dpe: false}}     # the first row is the baseline
      - {label: SCE, options: {dpe: false}}
      - {label: the stock head, model: yolo11n.yaml}               # a row may be any other model

What rows have in common may be a YAML anchor: ``options: &mine {norm: gn}``, then ``options: {<<: *mine, dpe: false}``.
As for compare, any train argument of the host goes to every run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tscode_yolo.config import NAME, HeadConfig
from tscode_yolo.study.arguments import OWN_KEYS, take
from tscode_yolo.study.compare import carry_out
from tscode_yolo.study.inventory import dataset_name
from tscode_yolo.study.jobs import begun, unless_refused
from tscode_yolo.study.plan import Arm, make_study, require_folder, resolve_model
from tscode_yolo.study.profile import quiet_host
from tscode_yolo.verbs.arguments import as_list, as_text, existing, unknown
from tscode_yolo.verbs.loading import model_yaml, options_on_top
from tscode_yolo.verbs.storage import sole_owner, write_text

DEFAULT_BASE = "yolo11n-tscode.yaml"
ARGUMENTS = {
    "grid": "table1, table2, table3 or a YAML file",
    "base": f"model YAML whose head the options change; the grid's own, or {DEFAULT_BASE}",
    **OWN_KEYS,
}
_NONE = {"sce": False, "dpe": False}
_SCE = {"sce": True, "dpe": False, "sce_at": None}
_DPE = {"sce": False, "dpe": True, "dpe_at": None}
_BOTH = {**_SCE, **_DPE, "sce": True}

# Rows of the paper, in its order: (label, options). Its contexts are on all levels.
GRIDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "table1": [
        ("base", _NONE),
        ("SCE", _SCE),
        ("DPE", _DPE),
        ("SCE + DPE", _BOTH),
    ],
    "table2": [
        ("base", _NONE),
        ("conv 3x3, without P_{l+1}", {**_SCE, "sce_down": "conv", "sce_kernel": 3, "sce_coarser": False}),
        ("avg, with P_{l+1}", {**_SCE, "sce_down": "avg"}),
        ("max 3x3, with P_{l+1}", {**_SCE, "sce_down": "max", "sce_kernel": 3}),
        ("conv 3x3, with P_{l+1}", {**_SCE, "sce_down": "conv", "sce_kernel": 3}),
        ("conv 3x3, with P_{l+1}", {**_SCE, "sce_down": "conv", "sce_kernel": 3}),
        ("conv 5x5, with P_{l+1}", {**_SCE, "sce_down": "conv", "sce_kernel": 5}),
        ("conv 7x7, with P_{l+1}", {**_SCE, "sce_down": "conv", "sce_kernel": 7}),
    ],
    "table3": [
        ("P_l", _SCE),
        ("P_{l+1}, P_l", {**_BOTH, "dpe_levels": [0, 1]}),
        ("P_l, P_{l-1}", {**_BOTH, "dpe_levels": [-1, 0]}),
        ("P_{l-1}", {**_BOTH, "dpe_levels": [-1]}),
        ("P_{l+1}, P_l, P_{l-1}", {**_BOTH, "dpe_levels": [-1, 0, 1]}),
        ("P_{l+2}, P_{l+1}, P_l, P_{l-1}", {**_BOTH, "dpe_levels": [-1, 0, 1, 2]}),
    ],
}


def main(args: dict[str, Any]) -> int:
    """Run the verb; 0 if every run finished, 1 if some are missing from the report."""
    if "model" in args:
        raise ValueError("model=: not an argument of ablate, its models are made from base= and the rows of grid=")
    ours, theirs = take(args, ARGUMENTS, required=("data", "grid"))
    base, rows = read_grid(str(ours["grid"]), as_text("base", ours["base"]) if ours.get("base") else None)
    sets = [dataset_name(as_text("data", d)) for d in as_list(ours["data"])]
    default = "-".join(["ablate", Path(str(ours["grid"])).stem, Path(base).stem, "on", *sets])
    out = Path(as_text("out", ours.get("out") or f"runs/study/{default}")).expanduser().absolute()
    require_folder(out)
    with unless_refused(out):
        with quiet_host():
            with sole_owner(out, patience=2.0):
                arms, layout = write_arms(base, rows, out / "models")
            study = make_study("ablate", arms, {**ours, "out": str(out)}, theirs)
        return carry_out(study, ours, theirs, layout)


def read_grid(grid: str, base: str | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Base model and rows of a named grid or a grid file.

    Args:
        grid: a name of `GRIDS`, or a YAML file.
        base: model YAML that overrides the grid's own.

    Returns:
        The base, and rows with ``label`` and either ``options`` or ``model``.

    Raises:
        ValueError: the file is no grid, or has fewer than two rows.
        FileNotFoundError: neither a name nor a file.
    """
    if grid in GRIDS:
        return base or DEFAULT_BASE, [{"label": label, "options": options} for label, options in GRIDS[grid]]
    if not grid.endswith((".yaml", ".yml")):
        raise ValueError(f"grid={grid}: expected {', '.join(GRIDS)} or a YAML file")
    try:
        content = yaml.safe_load(existing("grid", grid).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"grid={grid}: expected YAML, got {' '.join(str(e).split())}") from e
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or len(rows) < 2:
        raise ValueError(f"grid={grid}: expected a mapping with 'rows', at least two of them, got {content!r:.80}")
    if strange := next((k for k in content if k not in ("base", "rows")), None):
        raise ValueError(f"grid={grid}: {unknown(str(strange), ('base', 'rows'))}")
    for row in rows:
        if not isinstance(row, dict) or "label" not in row or ("options" in row) == ("model" in row):
            raise ValueError(f"grid={grid}: expected a row with 'label' and either 'options' or 'model', got {row!r}")
        if strange := set(row) - {"label", "options", "model"}:
            raise ValueError(f"grid={grid}: unknown key {sorted(map(str, strange))} in row {row['label']!r}")
        if not isinstance(row["label"], (str, int, float)):
            raise ValueError(f"grid={grid}: expected a text as label, got {row['label']!r}")
        options = row.get("options", {})
        if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
            raise ValueError(
                f"grid={grid}: expected a mapping from names of options in row {row['label']!r}, got {options!r}"
            )
    labels = [str(row["label"]) for row in rows]
    if twice := [x for x in labels if labels.count(x) > 1]:
        raise ValueError(f"grid={grid}: expected a label of its own for every row, got {twice[0]!r} more than once")
    own = content.get("base", DEFAULT_BASE)
    if not isinstance(own, str):
        raise ValueError(f"grid={grid}: expected the name of a model YAML as base, got {own!r}")
    return base or own, rows


def write_arms(base: str, rows: list[dict[str, Any]], folder: Path) -> tuple[list[Arm], list[tuple[str, str]]]:
    """Write one model YAML for each different row.

    Args:
        base: model YAML whose head's options the rows change.
        rows: of `read_grid`; the first is the baseline.
        folder: for the YAMLs; ``runs/`` is beside it. A YAML no run has begun with may still be corrected.

    Returns:
        One arm for each different row, and for every row its label and its arm's name.

    Raises:
        ValueError: the folder holds other models, those of runs that have begun.
    """
    content = scaled(base)
    arms: list[Arm] = []
    layout: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of the grid, {str(row['label'])!r}"
        key, options = str(row.get("model")), {**content["tscode"], **row.get("options", {})}
        if "options" in row:
            try:
                config = HeadConfig.from_mapping(options)
            except ValueError as e:
                raise ValueError(f"{where}: {e}") from e
            if idle := config.idle(row["options"], bool(content.get("end2end"))):
                raise ValueError(f"{where}: {idle}; it would be the row without them")
            key = repr(config)  # rows that say the same in other words are one model, trained once
        if key not in seen:
            seen[key] = name = f"{Path(base).stem}-r{number:02d}"
            if "model" in row:
                arms.append(Arm(name, resolve_model(str(row["model"]), f"{where}: model"), str(row["label"])))
            else:
                file = folder / f"{name}.yaml"
                text = yaml.safe_dump({**content, "tscode": options}, sort_keys=False)
                changed = file.is_file() and file.read_text(encoding="utf-8") != text
                if changed and begun(folder.parent, name):
                    raise ValueError(
                        f"out=: {folder.name}/{file.name} is of a study with another grid or base; choose another "
                        "out=, or delete that folder and the runs it was for"
                    )
                write_text(file, text)
                arms.append(Arm(name, str(file), str(row["label"])))
        layout.append((str(row["label"]), seen[key]))
    return arms, layout


def scaled(model: str) -> dict[str, Any]:
    """Content of a model YAML with only the scale that its name asks for, so that no letter is needed any more."""
    if not model.endswith((".yaml", ".yml")):
        raise ValueError(f"base={model}: expected a model YAML, a name that ends in .yaml")
    content = options_on_top(model_yaml(resolve_model(model, "base"), "base"))
    if (last := content["head"][-1][2]) != NAME:
        raise ValueError(f"base={model}: expected a YAML whose head is a {NAME}, for options to change, got a {last}")
    scale = content.pop("scale", "")
    if scale and isinstance(content.get("scales"), dict) and scale in content["scales"]:
        content["scales"] = {scale: content["scales"][scale]}
    return content
