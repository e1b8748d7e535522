"""``tscode compare model=A baseline=B data=D``: is one detection head better than another, and at what cost?

Any two Ultralytics detection models, each trained once a seed under the same conditions, judged by the same code, and
compared seed by seed. A model is a YAML, whose head starts fresh, or a checkpoint, whose head training starts from.
Any train argument of the host goes to every run: ``imgsz=320 batch=8 optimizer=AdamW lr0=0.001``.
`plan` settles the conditions, `engines` carries the runs out, `results` draws the conclusions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from rich.console import Console

from tscode_yolo.study import flops
from tscode_yolo.study.arguments import OWN_KEYS, take
from tscode_yolo.study.engines import outcome, require_ray, run_local, run_ray, slots
from tscode_yolo.study.evaluation import coco_tool
from tscode_yolo.study.jobs import reuse, unless_refused, write_jobs
from tscode_yolo.study.plan import Arm, Study, make_study, resolve_model, warm_label_caches
from tscode_yolo.study.profile import pytorch_latency, quiet_host
from tscode_yolo.study.progress import Progress
from tscode_yolo.study.record import finished
from tscode_yolo.study.report import verdict, write_report
from tscode_yolo.study.results import SCHEMA, analyse, collect
from tscode_yolo.study.start import model_hash, untrained
from tscode_yolo.verbs.arguments import as_count, as_device, as_flag, as_list, as_number, existing, one_of
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import read_json, sole_owner, write_json

LATENCY_ROUNDS = 30
CPU = torch.device("cpu")
LOCAL_KEYS, RAY_KEYS = ("workers", "threads"), ("cpus", "gpus", "address")
ARGUMENTS = {
    "model": "YAML or checkpoint, or several joined by commas",
    "baseline": "what they are compared with",
    **OWN_KEYS,
}


def main(args: dict[str, Any]) -> int:
    """Run the verb; 0 if every run finished, 1 if some are missing from the report."""
    ours, theirs = take(args, ARGUMENTS, required=("model", "baseline", "data"))
    names = [str(ours["baseline"]), *map(str, as_list(ours["model"]))]
    with quiet_host():
        models = [resolve_model(n, "model" if i else "baseline") for i, n in enumerate(names)]
        arms = [Arm(*pair) for pair in zip(arm_names(names), models, strict=True)]
        study = make_study("compare", arms, ours, theirs)
    with unless_refused(study.out):
        return carry_out(study, ours, theirs)


def carry_out(
    study: Study, ours: dict[str, Any], theirs: dict[str, Any], layout: list[tuple[str, str]] | None = None
) -> int:
    """Do what a study has still to do, then write its report.

    Args:
        study: as settled.
        ours: the study's own arguments, for the engine.
        theirs: the host's; ``device`` is used.
        layout: rows of an ablation's table; see `report.write_report`.

    Returns:
        0 if every run finished, else 1.
    """
    if engine_arguments(ours)[0] == "ray":
        require_ray()
    latency = as_flag("latency", ours.get("latency", True))
    files = [existing("reuse", f) for f in as_list(ours.get("reuse"))]
    console = Console()
    with sole_owner(study.out, patience=2.0), quiet_host():
        require_same_report(study)
        folders = write_jobs(study)
        warm_label_caches(study)
        for warning in study.warnings:
            console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
        if files:
            console.print(f"{reuse(folders, files)} runs taken over from {', '.join(f.name for f in files)}")
        for folder in folders:
            finished(folder)  # a damaged record is said before hours of training, not after
        todo = [f for f in folders if outcome(f) != "done"]
        console.print(f"{len(folders)} runs, {len(folders) - len(todo)} already done; folder {study.out.name}")
        device = latency_device(ours, theirs)
        cost = costs(study, False, device)  # now, so that what cannot be counted is known before anything is trained

        def report(states: dict[Path, str], cost: dict[str, Any]) -> dict[str, Any]:
            """Write the report of what there is."""
            runs, missing = collect(study, states)
            results = {**describe(study), "missing": missing, "cost": cost}
            results |= {**analyse(study, runs, float(ours.get("effect", 1.0))), "runs": runs}
            write_report(study, results, layout)
            return results

        states = run_jobs(study, todo, ours, theirs, console, lambda s: report(s, cost)) if todo else {}
        results = report(states, costs(study, latency, device))
    missing = results["missing"]
    for c in results["comparisons"]:
        ap = c["metrics"].get("AP")
        if ap and ap["t"]["low"] is not None:
            console.print(
                f"{c['arm']} against {c['baseline']} on {c['dataset']}: {verdict(ap)}", highlight=False, markup=False
            )
    for m in missing:
        console.print(f"missing: {m['dataset']}, {m['arm']}, seed {m['seed']}: {m['why']}", style="red", markup=False)
    console.print(f"report: {study.out / 'report.md'}", highlight=False)
    return 1 if missing else 0


def require_same_report(study: Study) -> None:
    """Refuse a folder whose report is of something this study does not hold, for it would be overwritten.

    More seeds, models or data sets than the report has are fine.

    Raises:
        ValueError: the report there has other models or data sets.
    """
    old = read_json(study.out / "results.json")
    if not isinstance(old, dict) or not {"arms", "datasets"} <= old.keys():
        return
    for key, here in (("arms", study.arms), ("datasets", study.datasets)):
        lost = [x["name"] for x in old[key] if x["name"] not in {own.name for own in here}]
        if lost:
            raise ValueError(
                f"out=: expected a new folder, or one of this study, got {study.out.name} with a report of "
                f"{', '.join(lost)}; choose another out=, or delete its results.json to replace the report"
            )


def run_jobs(
    study: Study,
    todo: Sequence[Any],
    ours: dict[str, Any],
    theirs: dict[str, Any],
    console: Console,
    report: Callable[[dict[Path, str]], object],
) -> dict[Any, str]:
    """Hand the jobs to the engine the user chose, under a live table.

    Args:
        study: as settled.
        todo: folders of the runs.
        ours: the study's own arguments, for the engine.
        theirs: the host's; ``device`` is used.
        console: to print on.
        report: called with the state of each run whenever one more has finished, but for the last; a second or three
            each time. What it raises is a warning.
    """
    engine, workers, threads, cpus, gpus = engine_arguments(ours)
    names = {f: f"{f.parent.parent.name}, {f.parent.name}, {f.name}" for f in todo}
    parallel = workers if engine == "local" else len(todo)
    reported = 0
    with Progress(names, parallel, study.train["epochs"], console) as progress:

        def tick(states: dict[Path, str]) -> None:
            nonlocal reported
            progress.tick(states)
            done = sum(s == "done" for s in states.values())
            if reported < done < len(states):
                try:
                    report(states)
                except Exception as e:  # whatever it is, the runs go on: the last report will say it again
                    console.print(f"warning: no report yet: {e}", style="yellow", highlight=False, markup=False)
            reported = done

        if engine == "ray":
            return run_ray(todo, cpus, gpus, ours.get("address"), tick)
        devices: list[str | None] = [str(d) for d in as_list(theirs.get("device"))] or [None]
        return run_local(todo, workers, devices, tick, threads)


def latency_device(ours: dict[str, Any], theirs: dict[str, Any]) -> torch.device:
    """The first GPU that runs here were given, else the CPU: Ray's are elsewhere, and only CUDA has events."""
    given = as_list(theirs.get("device")) if engine_arguments(ours)[0] == "local" else []
    device = as_device(given[0]) if given else CPU
    return device if device.type == "cuda" else CPU


def engine_arguments(ours: dict[str, Any]) -> tuple[str, int, int | None, float, float]:
    """Engine, workers, threads, CPUs and GPUs a run.

    Raises:
        ValueError: one of them makes no sense.
    """
    engine = one_of("engine", ours.get("engine", "local"), ("local", "ray"))
    other, its = ("ray", RAY_KEYS) if engine == "local" else ("local", LOCAL_KEYS)
    if idle := [k for k in its if k in ours]:
        raise ValueError(f"{idle[0]}=: has no effect with engine={engine}, it is for engine={other}; leave it out")
    workers = as_count("workers", ours.get("workers", 1))
    if engine == "local":
        slots(workers, [None])  # refuses more than there are cores
    return (
        engine,
        workers,
        as_count("threads", ours["threads"]) if "threads" in ours else None,
        as_number("cpus", ours.get("cpus", 1)),
        as_number("gpus", ours.get("gpus", 0)),
    )


def describe(study: Study) -> dict[str, Any]:
    """Head of ``results.json``: everything that decided the numbers; no path of this machine."""
    return {
        "schema": SCHEMA,
        "kind": study.kind,
        "provenance": provenance(),
        "arms": [{"name": a.name, "label": a.label} for a in study.arms],
        "datasets": [d.as_dict() for d in study.datasets],
        "finals": {k: {**d.as_dict(), "split": split} for k, (d, split) in study.finals.items()},
        "seeds": study.seeds,
        "init": study.init.name if study.init else None,
        "train": study.train,
        "imgsz": study.train.get("imgsz", 640),
        "optimizers": study.optimizers,
        "last": study.last,
        "every": study.every,
        "weights": study.weights,
        "confidence": study.confidence,
        "notes": study.notes,
        "warnings": study.warnings,
        "tool": coco_tool(),
    }


def costs(study: Study, latency: bool = True, device: torch.device = CPU) -> dict[str, dict[str, Any]]:
    """Parameters, GFLOPs and latency ratio of each arm, kept in ``cost.json`` with what they were measured of.

    A damaged ``cost.json`` is made again.

    Args:
        study: as settled.
        latency: measure it; off, only what is counted.
        device: to measure it on.
    """
    file, imgsz = study.out / "cost.json", int(study.train.get("imgsz", 640))
    try:
        kept = read_json(file)
    except ValueError:
        kept = None
    kept = {k: v for k, v in kept.items() if isinstance(v, dict)} if isinstance(kept, dict) else {}
    nc = len(study.datasets[0].names)
    nets = {a.name: untrained(a.model, nc) for a in study.arms}
    hashes = {a.name: model_hash(a.model) for a in study.arms}
    base = study.arms[0].name
    for name, net in nets.items():
        of = {"model_sha256": hashes[name], "imgsz": imgsz, "classes": nc, "against": hashes[base]}
        of |= {} if device.type == "cpu" else {"device": str(device)}
        if name not in kept or kept[name].get("of") != of:
            c = flops.count(net, imgsz)
            kept[name] = {"of": of} | {
                k: c[k] for k in ("parameters", "deployed_parameters", "gflops", "second_counter")
            }
            kept[name] |= {"head_share": c["head"]["gflops_share"], "head_levels": c["head"]["levels"]}
        if latency and name != base and kept[name].get("latency_ratio") is None:
            pair = {name: net.to(device), base: nets[base].to(device)}
            row = pytorch_latency(pair, imgsz, [1], device, LATENCY_ROUNDS)[0]
            kept[name]["latency_ratio"] = {**row["ratio"], "device": row["device"]}
    if latency:
        kept[base]["latency_ratio"] = {"median": 1.0, "low": 1.0, "high": 1.0, "confidence": study.confidence}
    write_json(file, kept)
    return {a.name: {k: v for k, v in kept[a.name].items() if k != "of"} for a in study.arms}


def arm_names(models: Sequence[str]) -> list[str]:
    """What each model is called: its file's stem, and before it the nearest folder in which equal stems differ.

    ``exp1/weights/best.pt`` and ``exp2/weights/best.pt`` are called ``exp1-best`` and ``exp2-best``, ``yolo11n.yaml``
    and ``yolo11n.pt`` by their whole names.
    """
    paths = [PurePosixPath(m.replace("\\", "/")) for m in models]
    stems = [p.stem for p in paths]
    names = []
    for path in paths:
        rivals = [p for p in paths if p.stem == path.stem and p != path]
        folders = zip(path.parts[-2::-1], *(r.parts[-2::-1] for r in rivals), strict=False)
        differing = next((own for own, *others in folders if own not in others), None) if rivals else None
        names.append(f"{differing}-{path.stem}" if differing else path.stem)
    return next((c for c in (names, [p.name for p in paths]) if len(set(c)) == len(c)), stems)
