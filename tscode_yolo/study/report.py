"""The report of a study: ``report.md`` with its plots, ``report.html`` and ``results.json``, in one folder."""

from __future__ import annotations

from typing import Any

from tscode_yolo.study import figures
from tscode_yolo.study.document import Document
from tscode_yolo.study.plan import Study
from tscode_yolo.study.results import METRICS, versions_of
from tscode_yolo.verbs.storage import write_json

SHOWN = ("AP", "AP_averaged", "AP50", "AP75", "APs", "APm", "APl", "mAP", "mAP50", "final_AP", "final_AP50")
MANY = 5  # arms that a title still names one by one
FEW = 10  # seeds, below which the bootstrap is called too narrow


def write_report(study: Study, results: dict[str, Any], layout: list[tuple[str, str]] | None = None) -> None:
    """Write all of it into the study's folder.

    Args:
        study: as settled.
        results: content of ``results.json``; see `compare.carry_out`.
        layout: (label, arm) rows of the table of an ablation, in the order of the paper; an arm may come twice.
    """
    write_json(study.out / "results.json", results)
    shown = arm_labels(results["arms"])
    results = _with_labels(results, shown)
    layout = [(label, shown[arm]) for label, arm in layout or []]
    baseline, *others = shown.values()
    who = ", ".join(others) if len(others) <= MANY else f"{len(others)} others"
    document = Document(f"{results['kind']}: {who} against {baseline}")
    _headline(document, results)
    if layout:
        _grid(document, results, layout)
    _differences(document, results)
    _pooled(document, results)
    _per_arm(document, results)
    _settling(document, results)
    _per_seed(document, results)
    _cost(document, results)
    _plots(document, study, results)
    _fairness(document, results)
    _settings(document, results)
    document.write(study.out)


def arm_labels(arms: list[dict[str, str]]) -> dict[str, str]:
    """What a report calls each arm: its label, with the name behind it where two share a label, or its name.

    Args:
        arms: ``name`` and ``label`` of each, the baseline first.
    """
    labels = [a["label"] for a in arms if a["label"]]

    def shown(name: str, label: str) -> str:
        return f"{label} ({name})" if labels.count(label) > 1 else label or name

    return {a["name"]: shown(a["name"], a["label"]) for a in arms}


def _with_labels(part: Any, shown: dict[str, str]) -> Any:
    """The results with arms called by what is shown instead of by name, except in ``arms`` itself."""
    if isinstance(part, list):
        return [_with_labels(p, shown) for p in part]
    if not isinstance(part, dict):
        return part
    return {
        shown.get(k, k): shown.get(v, v) if k in ("arm", "baseline") else v if k == "arms" else _with_labels(v, shown)
        for k, v in part.items()
    }


def _headline(document: Document, results: dict[str, Any]) -> None:
    """One sentence a comparison: the difference, its interval, and what could have been seen."""
    single = len(results["comparisons"]) > 1 and all(len(c["seeds"]) == 1 for c in results["comparisons"])
    if single:
        document.text("**One seed each**: the differences below say nothing about chance.")
    for c in [] if single else results["comparisons"]:
        ap = c["metrics"].get("AP")
        who = f"**{c['arm']} against {c['baseline']} on {c['dataset']}**"
        if ap is None:
            why = "no AP, for no validation label counts" if c["seeds"] else "no pair of finished runs"
            document.text(f"{who}: {why}.")
        elif ap["t"]["low"] is None:
            why = "one seed" if ap["n"] == 1 else f"{ap['n']} seeds without any spread"
            document.text(f"{who}: {signed(ap['mean'])} AP from {why}, which says nothing about chance.")
        else:
            document.text(f"{who}: {verdict(ap)}")
    for p in results["pooled"]:
        ap = p["metrics"].get("AP")
        if ap:
            document.text(
                f"**{p['arm']} over {ap['datasets']} data sets**: {signed(ap['mean'])} AP; on these data sets "
                f"{interval(ap['these'])}, for others like them {interval(ap['others'])} ({percent(ap)} intervals). "
                "The smallest effects that could have been resolved (80 % power) are "
                f"{number(ap['these']['resolvable'])} AP on these, {number(ap['others']['resolvable'])} AP on others."
            )
    if results["weights"] == "best":
        document.text("**The best epoch was picked on the very set that is reported: all APs are biased upwards.**")
    for warning in results["warnings"]:
        document.text(f"**{warning}**")
    if results["missing"]:
        document.heading("Missing runs")
        rows = [f"{m['dataset']}, {m['arm']}, seed {m['seed']}: {m['why']}" for m in results["missing"]]
        document.items(rows)


def verdict(ap: dict[str, Any]) -> str:
    """What a paired comparison of at least two seeds shows, in two sentences, without hiding what it cannot show."""
    t, r, sign = ap["t"], ap["resolvable"], ap["sign"]
    decided = t["low"] > 0 or t["high"] < 0
    say = ("better" if ap["mean"] > 0 else "worse") if decided else "no significant difference"
    effect, upper = r["effect"], r["effect_at_upper_sd"]
    return (
        f"{signed(ap['mean'])} AP, {percent(ap)} interval {interval(t)} (paired t, {ap['n']} seeds), "
        f"{sign['wins']} of {ap['n']} seeds above: {say}. The smallest difference these seeds could have resolved "
        f"({r['power']:.0%} power) is {number(effect)} AP; as their spread is itself uncertain, up to {number(upper)}."
    )


def _grid(document: Document, results: dict[str, Any], layout: list[tuple[str, str]]) -> None:
    """An ablation's table, rows in the paper's order, a table a data set."""
    document.heading("Grid")
    for dataset in [d["name"] for d in results["datasets"]]:
        rows = []
        for label, arm in layout:
            m = next(g["metrics"] for g in results["groups"] if g["dataset"] == dataset and g["arm"] == arm)
            c = _comparison(results, dataset, arm)
            ap = c["metrics"].get("AP") if c else None
            change = f"{signed(ap['mean'])} {interval(ap['t'])}" if ap else ("baseline" if c is None else "")
            p = f"{c['AP_p_holm']:.3f}" if c and c["AP_p_holm"] is not None else ""
            means = [number(m[k]["mean"]) for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
            rows.append([label, *means, change, p, number(results["cost"][arm]["gflops"], 3)])
        document.text(f"{dataset}: means over seeds; change of AP against the first row with its paired t interval.")
        header = ["row", "AP", "AP50", "AP75", "APs", "APm", "APl", "change of AP", "p (Holm)", "GFLOPs"]
        document.table(header, rows)


def _differences(document: Document, results: dict[str, Any]) -> None:
    document.heading("Differences")
    document.text(
        "Candidate minus baseline, in AP points, paired by seed. `t`: Student's interval. `bootstrap`: percentile "
        f"interval over pairs; with fewer than {FEW} seeds it is too narrow. `sign`: exact sign test. `resolvable`: "
        "smallest true difference seen with 80 % power. `seeds for`: pairs needed to see such a difference as often."
    )
    for c in results["comparisons"]:
        document.text(f"{c['arm']} against {c['baseline']} on {c['dataset']}, seeds {', '.join(map(str, c['seeds']))}")
        rows = []
        for key in SHOWN:
            d = c["metrics"].get(key)
            if d is None:
                continue
            needed = ", ".join(f"{e}: {n or 'more than 10000'}" for e, n in d.get("seeds_needed", {}).items())
            sign = f"{d['sign']['wins']}:{d['sign']['losses']}" + (
                f" (p={d['sign']['p']:.2f})" if d["sign"]["p"] else ""
            )
            what = METRICS[key][0]
            cells = [signed(d["mean"]), number(d["sd"]), interval(d["t"]), interval(d["bootstrap"]), sign]
            rows.append([what, *cells, number(d["resolvable"]["effect"]), needed])
        document.table(["metric", "mean", "sd", "t", "bootstrap", "sign", "resolvable", "seeds for"], rows)


def _pooled(document: Document, results: dict[str, Any]) -> None:
    if not results["pooled"]:
        return
    document.heading("Pooled over data sets")
    document.text(
        "Every data set weighs the same. `these`: only seeds vary, so it speaks of these data sets. `others`: data "
        "sets vary too, so it speaks of data sets like these. `bootstrap` resamples data sets, then seeds. "
        "`resolvable`: smallest true effect seen with 80 % power, on these and on others."
    )
    rows = [
        [
            p["arm"],
            METRICS[k][0],
            signed(m["mean"]),
            interval(m["these"]),
            interval(m["others"]),
            interval(m["bootstrap"]),
            f"{number(m['these']['resolvable'])}, {number(m['others']['resolvable'])}",
        ]
        for p in results["pooled"]
        for k in SHOWN
        if (m := p["metrics"].get(k))
    ]
    document.table(["arm", "metric", "mean", "these", "others", "bootstrap", "resolvable"], rows)


def _per_arm(document: Document, results: dict[str, Any]) -> None:
    document.heading("Means over seeds")
    keys = [k for k in SHOWN if any(g["metrics"][k]["n"] for g in results["groups"])]
    rows = [
        [g["dataset"], g["arm"], str(g["metrics"]["AP"]["n"])]
        + [f"{number(m['mean'])} ± {number(m['sd'])}" if (m := g["metrics"][k])["n"] else "" for k in keys]
        for g in results["groups"]
    ]
    document.table(["data", "arm", "seeds", *keys], rows)
    labels = [f"{shown}: `{name}`" for name, shown in arm_labels(results["arms"]).items() if shown != name]
    document.items([*labels, *(f"`{k}`: {METRICS[k][0]}" for k in keys)])


def _settling(document: Document, results: dict[str, Any]) -> None:
    if not results["settling"]:
        return
    document.heading("Had training come to rest?")
    document.text(
        "A line through the COCO AP of the last epochs, mean and standard deviation over seeds. `slope`: AP points an "
        "epoch; well above zero, a longer schedule would have ended higher. `swing`: how far single epochs lie from "
        "the line; the AP of the last epoch is uncertain by about as much."
    )
    rows = [
        [s["dataset"], s["arm"], str(s["epochs"])]
        + [f"{sign(s[k]['mean'])} ± {number(s[k]['sd'])}" for k, sign in (("slope", signed), ("swing", number))]
        for s in results["settling"]
    ]
    document.table(["data", "arm", "epochs", "slope", "swing"], rows)


def _per_seed(document: Document, results: dict[str, Any]) -> None:
    document.heading("Each run")
    keys = [k for k in SHOWN if any(METRICS[k][1](r) is not None for r in results["runs"])]
    rows = []
    for r in results["runs"]:
        losses = {k: v for k, v in r["history"][-1].items() if k.startswith("train/")}
        loss = ", ".join(f"{k[6:]} {v:.3f}" for k, v in losses.items())
        values = [number(METRICS[k][1](r)) for k in keys]
        rows.append([r["dataset"], r["arm"], str(r["seed"]), *values, loss, f"{r['wall_s']:.0f}"])
    document.table(["data", "arm", "seed", *keys, "last training losses", "seconds"], rows)
    document.text("Losses and the host's mAP of every epoch are in `results.json`.")


def _cost(document: Document, results: dict[str, Any]) -> None:
    document.heading("Cost")
    rows = []
    for arm, c in results["cost"].items():
        ratio = c.get("latency_ratio")
        speed = f"{ratio['median']:.3f} ({number(ratio['low'], 3)} to {number(ratio['high'], 3)})" if ratio else ""
        rows.append([arm, f"{c['parameters']:,}", number(c["gflops"], 3), f"{c['head_share']:.1%}", speed])
    document.table(["arm", "parameters", "GFLOPs", "of them head", "latency over baseline"], rows)
    first = results["datasets"][0]
    measured = [r for c in results["cost"].values() if (r := c.get("latency_ratio"))]
    where = "CPU" if all(r.get("device", "cpu") == "cpu" for r in measured) else "GPU, in half precision,"
    document.text(
        f"GFLOPs: 2 per multiply-add at {results['imgsz']} pixels, model as deployed, with the {len(first['classes'])} "
        f"classes of {first['name']}."
        + (
            f" Latency: batch 1, in turns with the baseline in one process, on the {where} of the machine that wrote "
            "this report; median ratio and its interval."
            if measured
            else " Latency was not measured: `latency=False`, or not all runs are done yet."
        )
    )


def _plots(document: Document, study: Study, results: dict[str, Any]) -> None:
    document.heading("Plots")
    runs, arms, datasets = results["runs"], list(arm_labels(results["arms"]).values()), [d.name for d in study.datasets]
    loss = next((k for r in runs for k in r["history"][0] if k.startswith("train/") and "cls" in k), "train/cls_loss")
    rows = [(f"{c['arm']}, {c['dataset']}", c["metrics"]["AP"]) for c in results["comparisons"] if "AP" in c["metrics"]]
    cost = results["cost"]
    latency = {a: {"ratio": (c.get("latency_ratio") or {}).get("median")} for a, c in cost.items()}
    drawn = {
        "difference.png": ("Difference of AP with its t interval", figures.forest(rows, "difference of COCO AP")),
        "ap_over_epochs.png": (
            "The host's mAP over epochs, mean and one standard deviation",
            figures.curves(runs, arms, datasets, "mAP", "mAP50-95"),
        ),
        "cls_loss_over_epochs.png": (
            "Classification training loss over epochs (the paper's Fig. 5)",
            figures.curves(runs, arms, datasets, loss, loss),
        ),
        "ap_against_gflops.png": (
            "AP against GFLOPs",
            figures.cost_against_ap(results["groups"], cost, "gflops", "GFLOPs"),
        ),
        "ap_against_latency.png": (
            "AP against latency",
            figures.cost_against_ap(results["groups"], latency, "ratio", "latency over the baseline's"),
        ),
    }
    for name, (caption, png) in drawn.items():
        if png:
            document.image(name, caption, png)


def _fairness(document: Document, results: dict[str, Any]) -> None:
    document.heading("Were the runs alike?")
    f = results["fairness"]
    document.items(
        [
            f"Weights below the head equal at the start: {f['same_start']} of {f['pairs']} pairs.",
            f"Same images, augmentation and order in every batch of every epoch: {f['same_batches']} of {f['pairs']}.",
            f"Judged by the same code ({results['tool']}): {f['same_tool']} of {f['pairs']}.",
            "Judged after the last epoch; no epoch was picked."
            if results["weights"] == "last"
            else "Best epoch picked.",
            *f["remarks"],
        ]
    )


def _settings(document: Document, results: dict[str, Any]) -> None:
    document.heading("How to get this again")
    p = results["provenance"]
    document.text(f"`{p['command']}`")
    git = p["git"]
    state = f"{git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else "not a checkout"
    h = p["hardware"]
    document.items(
        [
            *results["notes"],
            f"Seeds {', '.join(map(str, results['seeds']))}; init {results['init'] or 'none (from scratch)'}.",
            *(f"Data {d['name']}: {d['images']} images, sha256 {d['sha256'][:16]}." for d in results["datasets"]),
            f"Optimiser: {'; '.join(f'{k}: {v}' for k, v in results['optimizers'].items())}.",
            f"Train arguments (the host's names): {', '.join(f'{k}={v}' for k, v in results['train'].items())}.",
            *_places(results["runs"]),
            f"This report was written with {', '.join(f'{k} {v}' for k, v in p['packages'].items())}; "
            f"Python {p['python']}; git {state}; on {_machine(h)}.",
        ]
    )


def _places(runs: list[dict[str, Any]]) -> list[str]:
    """Where the runs were trained and with what, a sentence a place."""
    found: dict[str, int] = {}
    for r in runs:
        threads = f", {r['threads']} thread{'s' * (r['threads'] > 1)}" if r["threads"] else ""
        where = f"{_machine(r['hardware'])}, device {r['device']}{threads}, with {versions_of(r)}"
        found[where] = found.get(where, 0) + 1
    return [f"{n} of {len(runs)} runs were trained on {where}." for where, n in found.items()]


def _machine(hardware: dict[str, Any]) -> str:
    """A processor and what is with it, as `provenance.hardware` found it."""
    gpus = ", ".join(hardware.get("gpus", [])) or "none"
    size = f"{hardware.get('cores', '?')} cores, {hardware.get('memory_gib', '?')} GiB"
    return f"{hardware['cpu']} ({size}, GPUs: {gpus})"


def _comparison(results: dict[str, Any], dataset: str, arm: str) -> dict[str, Any] | None:
    return next((c for c in results["comparisons"] if c["dataset"] == dataset and c["arm"] == arm), None)


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.2f}"


def interval(ends: dict[str, Any]) -> str:
    """``[low, high]``, or a dash where there are too few values for one."""
    return "-" if ends["low"] is None else f"[{signed(ends['low'])}, {signed(ends['high'])}]"


def percent(result: dict[str, Any]) -> str:
    """Confidence as ``95 %``."""
    return f"{100 * result['confidence']:g} %"
