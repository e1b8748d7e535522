"""The benchmark of the assigners runs and writes what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tscode_yolo.recipes import RECIPES

REPO = Path(__file__).parents[2]


@pytest.mark.slow
def test_benchmark_measures_every_recipe_against_the_host(tmp_path):
    out = tmp_path / "report.json"
    small = {"batch": 2, "size": 64, "objects": 3, "classes": 4, "repeats": 2, "out": out}
    options = [str(part) for key, value in small.items() for part in (f"--{key}", value)]
    script = str(REPO / "examples" / "benchmark_assigners.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    subprocess.run([sys.executable, script, *options], check=True, env=environment, timeout=300)
    report = json.loads(out.read_text())
    assert set(report["results"]) == {"host TaskAlignedAssigner", *RECIPES}
    assert report["results"]["host TaskAlignedAssigner"]["ratio_to_host"] == 1
    assert all(row["median_ms"] > 0 for row in report["results"].values())
    assert report["settings"]["objects"] == 3
