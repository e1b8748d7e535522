"""Odd data sets, a user who stops the run, and what is told meanwhile."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from tscode_yolo.align import command, main

from .align_scenes import Page, draw_dataset

HOSTILE = 'é 细胞 <b>&amp; "q" $x_^$ #%'


def _hostile(root, case):
    """A small data set with something odd; returns its YAML and further keys."""
    data = draw_dataset(root, 3)
    labels = sorted((root / "labels" / "val").iterdir())
    if case == "one image":
        return data, {"limit": 1}
    if case == "no predictions":
        return data, {"conf": 1.0}
    if case == "no objects":
        for file in labels:
            file.write_text("")
    if case == "one class without objects":
        for file in labels:
            file.write_text(file.read_text().splitlines()[0])
    if case == "names":
        for i in range(3):
            for part, ending in (("images", "png"), ("labels", "txt")):
                file = root / part / "val" / f"000{i}.{ending}"
                file.rename(file.with_name(f"{i} {HOSTILE}.{ending}"))
        data.write_text(f"train: images/val\nval: images/val\nnames: {json.dumps([HOSTILE, 'disc'])}\n")
    if case == "shapes":
        for i, shape in enumerate([(8, 1200, 3), (700, 3), (1, 1, 3)]):  # very wide, thin and grey, one pixel
            cv2.imwrite(str(root / "images" / "val" / f"000{i}.png"), np.full(shape, 90, np.uint8))
    if case == "crowds":
        rows = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 60, 60], "iscrowd": 1} for i in range(3)]
        rows.append({"image_id": 0, "category_id": 2, "bbox": [5, 5, 30, 30]})
        images = [{"id": i, "file_name": f"000{i}.png"} for i in range(3)]
        categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}]
        (root / "i.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
        return root / "i.json", {"images": str(root / "images" / "val")}
    return data, {}


@pytest.mark.parametrize(
    "case",
    ["one image", "no predictions", "no objects", "one class without objects", "names", "shapes", "crowds"],
)
def test_odd_data_sets_give_a_whole_report(tmp_path, checkpoint, case):
    data, keys = _hostile(tmp_path / "set", case)
    out = tmp_path / "out"
    args = {"model": checkpoint, "data": str(data), "imgsz": 96, "resamples": 20, "examples": 1, "cam": 1, **keys}
    assert main({**args, "out": str(out), "verbose": False}) == 0
    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert (page.open, page.links) == ([], [])
    words = re.sub(r'="[^"]*"', "", text.split("How this was made")[0])
    assert not re.search(r"\b(nan|None|inf)\b", words)
    report = json.loads((out / "report.json").read_text())
    assert any("too little to tell" in line for line in report["findings"])
    if case == "names":
        assert "<b>&amp;" not in text.replace("<b>–", "")
    if case == "crowds":
        assert (report["data"]["crowd_regions"], report["data"]["objects"]) == (3, 1)


def _stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["collect", "build", "pictures"])
def test_a_stopped_run_leaves_no_half_written_report(tmp_path, checkpoint, dataset, monkeypatch, where):
    """One line; before the numbers nothing is touched; after them no old page stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of a run before")
    (out / "maps-1.png").write_bytes(b"of a run before")
    place = (command.pictures.figures, "plot_ranks") if where == "pictures" else (command, where)
    monkeypatch.setattr(*place, _stop)
    args = {"model": checkpoint, "data": str(dataset), "imgsz": 96, "resamples": 0, "out": str(out), "verbose": False}
    with pytest.raises(KeyboardInterrupt) as stopped:
        main(args)
    told = str(stopped.value)
    assert "\n" not in told
    names = sorted(p.name for p in out.iterdir())
    if where == "pictures":
        assert names == ["report.json"]
        assert json.loads((out / "report.json").read_text())["headline"]
        assert "the numbers are complete in" in told
    else:
        assert names == ["maps-1.png", "report.html"]
        assert "nothing was written" in told


def test_progress_is_shown_for_each_part(tmp_path, checkpoint, dataset, capsys):
    args = {"model": checkpoint, "data": str(dataset), "imgsz": 96, "resamples": 20, "examples": 1, "cam": 0}
    assert main({**args, "out": str(tmp_path / "out")}) == 0
    told = "".join(capsys.readouterr())
    for part in ("align: 100%", "intervals: 100%", "pictures: 100%"):
        assert part in told, part
