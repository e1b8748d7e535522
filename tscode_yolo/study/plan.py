"""What a study will do, settled before anything runs: arms, data sets, seeds, one set of train arguments for all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.nn.tasks import yaml_model_load

from tscode_yolo.study.arguments import as_effect, as_seeds
from tscode_yolo.study.detects import refusal
from tscode_yolo.study.inventory import DataSet, read_dataset, require_unseen, seen_in_training
from tscode_yolo.study.start import is_checkpoint, transfer_body, untrained
from tscode_yolo.verbs.arguments import as_count, as_device, as_list, as_side, as_text, one_of, weights_file
from tscode_yolo.verbs.loading import checkpoint, data_yaml, model_yaml

OPTIMIZERS = ("auto", "SGD", "MuSGD", "RMSProp", *(ADAM := ("Adam", "AdamW", "Adamax", "NAdam", "RAdam")))


@dataclass(frozen=True)
class Arm:
    """One row of a study: a model YAML, or a checkpoint whose head is the start, under a name.

    Attributes:
        name: for tables and folders.
        model: as the host is given it; of a YAML the scale letter may be in the name.
        label: what it is, for readers.
    """

    name: str
    model: str
    label: str = ""


@dataclass
class Study:
    """Everything that decides the numbers of a study, and how it is carried out.

    Attributes:
        kind: ``compare`` or ``ablate``.
        arms: the first is the baseline.
        datasets: each trained on separately.
        finals: data set name -> (data set, split) judged at the end only.
        seeds: each arm runs once with each, on each data set.
        init: checkpoint for everything below the head, or None; an arm that is a checkpoint itself needs it.
        train: the host's train arguments, the same for every run of a data set; see `settle_optimizer`.
        optimizers: data set name -> the optimiser arguments settled for it.
        last: epochs at the end whose AP is averaged.
        every: validate each this many epochs.
        weights: ``last`` or ``best``.
        out: folder.
        notes: what a reader must know of how the settings came about.
        warnings: what is doubtful about the data sets, told to the user before the first run and in the report.
    """

    kind: str
    arms: list[Arm]
    datasets: list[DataSet]
    finals: dict[str, tuple[DataSet, str]]
    seeds: list[int]
    init: Path | None
    train: dict[str, Any]
    optimizers: dict[str, dict[str, Any]]
    last: int
    every: int
    weights: str
    out: Path
    confidence: float = 0.95
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def folder(self, dataset: DataSet, arm: Arm, seed: int) -> Path:
        """Folder of one run."""
        return self.out / "runs" / dataset.name / arm.name / f"seed{seed}"


def make_study(kind: str, arms: Sequence[Arm], ours: dict[str, Any], theirs: dict[str, Any]) -> Study:
    """Settle a study from a verb's arguments.

    Args:
        kind: ``compare`` or ``ablate``.
        arms: baseline first.
        ours: the study's own arguments (`OWN_KEYS`).
        theirs: the host's train arguments.

    Raises:
        ValueError: arguments that would make the comparison unfair or that make no sense.
        FileNotFoundError: a file that is not there.
    """
    if len(arms) < 2:
        raise ValueError("model=: expected two different models at least, got one; every row of a grid is the same")
    datasets = [read_dataset(as_text("data", d)) for d in as_list(ours["data"])]
    _require_unique("data", [d.name for d in datasets])
    default = "-".join([arms[-1].name, "vs", arms[0].name, "on", *(d.name for d in datasets)])
    out = Path(as_text("out", ours.get("out") or f"runs/study/{default}")).expanduser().absolute()
    require_folder(out)
    _require_unique("model", [a.name for a in arms])
    train = _train_arguments(ours, theirs)
    confidence = ours.get("confidence", 0.95)
    if not (isinstance(confidence, float) and 0.5 <= confidence < 1):
        raise ValueError(f"confidence={confidence!r}: expected a number from 0.5 to below 1")
    as_effect(ours.get("effect", 1.0))
    study = Study(
        kind=kind,
        arms=list(arms),
        datasets=datasets,
        finals=_finals(ours, datasets),
        seeds=as_seeds(ours.get("seeds", 5)),
        init=weights_file("init", ours["init"]) if ours.get("init") else None,
        train=train,
        optimizers={},
        last=min(as_count("last", ours.get("last", 5)), train["epochs"]),
        every=as_count("every", ours.get("every", 1)),
        weights=one_of("weights", ours.get("weights", "last"), ("last", "best")),
        out=out,
        confidence=confidence,
    )
    for dataset in datasets:
        study.warnings += [w for w in [seen_in_training(dataset)] if w]
        _require_classes(train, dataset)
        study.optimizers[dataset.name], note = settle_optimizer(train, dataset)
        study.notes += [note] if note not in study.notes else []
    check_arms(study)
    return study


def settle_optimizer(train: dict[str, Any], dataset: DataSet) -> tuple[dict[str, Any], str]:
    """Name the optimiser and its rates: those given, and for the rest what the host's ``auto`` would take.

    It takes AdamW at a rate fitted to the number of classes for up to 10,000 iterations, and MuSGD
    beyond. MuSGD triples the rate of parameters whose name is ``cv3``: heads with other names would be trained
    otherwise. So beyond 10,000 iterations a study takes SGD, unless told MuSGD.

    Returns:
        ``optimizer``, ``lr0``, ``momentum``, ``warmup_bias_lr``; and a sentence for the report.
    """
    name = one_of("optimizer", train.get("optimizer", "auto"), OPTIMIZERS)
    nbs = train.get("nbs", DEFAULT_CFG_DICT["nbs"])
    images = round(len(dataset.images["train"]) * train.get("fraction", 1.0))  # as the host takes them
    iterations = math.ceil(images / max(train["batch"], nbs)) * train["epochs"]
    note, auto = f"optimiser {name} as given", name.lower() == "auto"
    if auto:
        name = "SGD" if iterations > 10_000 else "AdamW"
        note = f"optimiser {name}, settled once for all runs (the host's auto chooses at run time)"
    adam = name.lower() in {a.lower() for a in ADAM}
    rate = round(0.002 * 5 / (4 + len(dataset.names)), 6) if adam else 0.01
    if name.lower() == "musgd":
        note += ", which triples the rate of parameters named cv3, in whichever head has them"
    defaults = {
        "lr0": rate,
        "momentum": 0.9,
        "warmup_bias_lr": 0.0 if adam or auto else DEFAULT_CFG_DICT["warmup_bias_lr"],
    }
    settled = {"optimizer": name, **{k: train.get(k, v) for k, v in defaults.items()}}
    own = ", ".join(f"{k} {v}" for k, v in defaults.items() if k not in train)
    return settled, note + (f"; as the host's auto would: {own}." if own else ".")


def check_arms(study: Study) -> None:
    """Build every arm once, with its weights from `init`, so that a wrong name fails now and not after an hour.

    Raises:
        ValueError: an arm is neither YAML nor checkpoint of a detection model, or `init` does not cover it.
    """
    source = checkpoint(study.init, "init") if study.init else None
    for arm in study.arms:
        if is_checkpoint(arm.model):
            if source is None:
                raise ValueError(
                    f"model={arm.model}: of a checkpoint an arm takes the head only, for everything below must start "
                    "alike in all arms; give init=weights.pt, e.g. what the checkpoint was made from"
                )
            study.notes.append(
                f"{arm.name}: its head starts from {Path(arm.model).name}, as the host loads it (classes by name); "
                "everything below from init."
            )
        trained = checkpoint(arm.model) if is_checkpoint(arm.model) else None
        try:
            model = untrained(arm.model, len(study.datasets[0].names))
        except ValueError as e:
            raise ValueError(f"row '{arm.label}': {e}" if arm.label else str(e)) from e
        if why := refusal(model if trained is None else trained):
            raise ValueError(f"model={arm.model}: {why}; give a detect YAML or weights")
        if source is not None:
            transfer_body(source, model)


def warm_label_caches(study: Study) -> None:
    """Let the host scan each split's labels once, before several processes would write the same cache at once.

    Images that it leaves out, for their labels are not of these classes or they cannot be read, become warnings of the
    study.

    Raises:
        ValueError: a split has no image that the host can use.
    """
    used: list[tuple[str, DataSet, tuple[str, ...]]] = [("data", d, ("train", "val")) for d in study.datasets]
    used += [("final", d, (split,)) for d, split in study.finals.values()]
    for key, dataset, splits in used:
        info = data_yaml(dataset.yaml, key)
        cfg: Any = get_cfg(overrides={"imgsz": study.train.get("imgsz", 640), "task": "detect"})
        for split in splits:
            try:
                scanned: Any = build_yolo_dataset(cfg, info[split], study.train["batch"], info, mode="val")
                usable = len(scanned)
            except RuntimeError as e:
                why = re.search("ignoring corrupt.*", str(e))
                raise ValueError(
                    f"{key}={dataset.name}: expected images the host can use under '{split}:', got none"
                    + (f"; of the first it says: {why[0]}" if why else "")
                ) from e
            if usable < (total := len(dataset.images[split])):
                study.warnings.append(
                    f"{dataset.name}: the host leaves out {total - usable} of {total} images under '{split}:', for it "
                    "cannot use them or their labels; run.log of a run says which and why."
                )


def resolve_model(name: str, key: str = "model") -> str:
    """A model argument as a fresh process can use it: absolute if it names a file here, else as the host knows it."""
    here = str(Path(name).expanduser().absolute())
    if is_checkpoint(name):
        return str(weights_file(key, name))
    if not name.endswith((".yaml", ".yml")):
        raise ValueError(
            f"{key}={name}: expected a model YAML, whose head starts fresh, or a checkpoint (.pt), which brings its "
            "head"
        )
    try:
        yaml_model_load(here)
    except FileNotFoundError:
        here = name
    model_yaml(here, key)
    return here


def require_folder(out: Path) -> None:
    """Raise ValueError if something that is no folder has the name of a study's."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out.name}: expected a folder or a new name, got a file")


def _train_arguments(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The host's arguments of every run, but for the optimiser; the device is left to the engine."""
    batch = theirs.get("batch", DEFAULT_CFG_DICT["batch"])
    if not (isinstance(batch, int) and not isinstance(batch, bool) and batch >= 1):
        raise ValueError(f"batch={batch!r}: expected a whole number >= 1; a batch found by memory may differ by head")
    if theirs.get("device") is not None and ours.get("engine", "local") != "local":
        raise ValueError(
            "device=: has no effect with engine=ray, which deals the devices out; give gpus=1 for one a run"
        )
    if len(as_list(theirs.get("device"))) > 1 and ours.get("workers", 1) == 1:
        raise ValueError("device=: expected one device a run; with workers=N a list is dealt out to the processes")
    for device in as_list(theirs.get("device")):
        as_device(device)
    train = {k: v for k, v in theirs.items() if k != "device"}  # where a run takes place does not decide what it is
    train |= {"epochs": as_count("epochs", ours.get("epochs", DEFAULT_CFG_DICT["epochs"])), "batch": batch}
    train |= {"deterministic": True, "patience": 0, "plots": False, "val": True, "save": True, "pretrained": False}
    train |= {"workers": as_count("loader_workers", ours.get("loader_workers", DEFAULT_CFG_DICT["workers"]), 0)}
    as_side(train.get("imgsz", DEFAULT_CFG_DICT["imgsz"]))
    one_of("cache", str(train.get("cache", False)).lower(), ("true", "false", "ram", "disk"))
    if train.get("distill_model"):
        weights_file("distill_model", train["distill_model"])  # is there, or is fetched
    for key in ("freeze", "classes"):
        for number in as_list(train.get(key)):
            as_count(key, number, 0)
    try:
        get_cfg(overrides={k: v for k, v in train.items() if k != "optimizer"})
    except (TypeError, ValueError) as e:  # the host's words, before the first run rather than in each
        raise ValueError(str(e)) from e
    return train


def _finals(ours: dict[str, Any], datasets: list[DataSet]) -> dict[str, tuple[DataSet, str]]:
    given = [read_dataset(as_text("final", f), "final") for f in as_list(ours.get("final"))]
    if "final_split" in ours and not given:
        raise ValueError("final_split=: expected final= with it, the data set whose split it is")
    if given and len(given) != len(datasets):
        raise ValueError(f"final=: expected one for each of {len(datasets)} data sets, got {len(given)}")
    split = one_of("final_split", ours.get("final_split", "val"), ("train", "val", "test"))
    finals = {}
    for final, dataset in zip(given, datasets, strict=False):
        require_unseen(final, split, dataset)
        finals[dataset.name] = (final, split)
    return finals


def _require_classes(train: dict[str, Any], dataset: DataSet) -> None:
    """Raise ValueError if ``classes=`` names one that the data set does not have."""
    if strange := [c for c in as_list(train.get("classes")) if int(c) >= len(dataset.names)]:
        raise ValueError(
            f"classes={train['classes']}: expected numbers below {len(dataset.names)}, for {dataset.name} has no "
            f"more classes, got {', '.join(map(str, strange))}"
        )


def _require_unique(key: str, names: list[str]) -> None:
    twice = {n for n in names if names.count(n) > 1}
    if twice and key == "model":
        raise ValueError(
            f"model=, baseline=: expected different names, got {sorted(twice)} twice; to compare a model with itself, "
            "copy its file under another name"
        )
    if twice:
        raise ValueError(f"{key}=: expected different names, got {sorted(twice)} twice; rename a file or its folder")
