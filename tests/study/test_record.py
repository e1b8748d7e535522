"""A record of a run that somebody's hand was in is named, with what to do."""

from __future__ import annotations

import pytest

from tscode_yolo.study.record import finished
from tscode_yolo.verbs.storage import write_json

from .records import run


def test_a_record_is_read_as_it_was_written_and_its_absence_is_none(tmp_path):
    assert finished(tmp_path) is None
    write_json(tmp_path / "result.json", run("stock", 0, 10.0))
    assert finished(tmp_path) == run("stock", 0, 10.0)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "arm, dataset, seed"),
        ([], "arm, dataset, seed"),
        (run("stock", 0, 10.0, coco=None), "proper coco;"),
        (run("stock", 0, 10.0, hardware={}), r"proper hardware\.cpu;"),
        (run("stock", 0, 10.0, host={"mAP": 1.0}), r"proper host\.mAP50;"),
        (run("stock", 0, 10.0, history=[{"epoch": 1}]), "proper history;"),
        ({**run("stock", 0, 10.0), "seed": "0"}, "proper seed;"),
    ],
)
def test_what_is_no_record_is_refused_by_name(content, what, tmp_path):
    folder = tmp_path / "cells" / "stock" / "seed0"
    write_json(folder / "result.json", content)
    with pytest.raises(ValueError, match=f"{what}.*delete the folder cells/stock/seed0"):
        finished(folder)


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    (tmp_path / "result.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"result\.json: expected JSON"):
        finished(tmp_path)
