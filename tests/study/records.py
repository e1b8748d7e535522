"""Made-up records of runs."""

from __future__ import annotations

from typing import Any

HARDWARE = {"cpu": "a cpu", "cores": 2, "memory_gib": 8.0, "gpus": []}


def run(arm: str, seed: int, ap: float, dataset: str = "cells", **changes: Any) -> dict[str, Any]:
    """One run's record."""
    coco = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), ap) | {"APl": None}
    history = [{"epoch": e, "mAP": ap * e / 2, "train/cls_loss": 3.0 / e, "batches": f"{seed}/{e}"} for e in (1, 2)]
    record = {
        **{"arm": arm, "dataset": dataset, "seed": seed, "weights": "last", "coco": coco, "tool": "tool 1"},
        **{"host": {"mAP": ap + 0.1, "mAP50": ap}, "final": None, "averaged": {"epochs": 1, "AP": ap}},
        **{"history": history, "body": f"body{seed}", "resumed": [], "repeated": [], "exact_resume": True},
        **{"wall_s": 1.0, "threads": 1, "device": "cpu", "hardware": HARDWARE},
    }
    return {**record, **changes}
