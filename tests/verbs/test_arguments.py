"""Values of arguments: each is what it should be, or one clear error."""

from __future__ import annotations

import math

import pytest

from tscode_yolo.verbs.arguments import (
    as_count,
    as_flag,
    as_list,
    as_number,
    as_side,
    as_text,
    existing,
    one_of,
    take_only,
    writable,
)

KNOWN = ("model", "data", "epochs")


def test_take_only_passes_nothing_on():
    with pytest.raises(ValueError, match="imgsz=: unknown argument"):
        take_only({"model": "a", "imgsz": 64}, KNOWN)
    with pytest.raises(ValueError, match="got no model="):
        take_only({"data": "d"}, KNOWN, required=("model",))
    assert take_only({"data": "d"}, KNOWN) == {"data": "d"}


def test_lists_choices_and_files(tmp_path):
    assert as_list("a, b,") == ["a", "b"]
    assert as_list(None) == []
    assert as_list((1, 8)) == [1, 8]
    with pytest.raises(ValueError, match="expected one of last, best"):
        one_of("weights", "beste", ("last", "best"))
    with pytest.raises(FileNotFoundError, match="init="):
        existing("init", tmp_path / "none.pt")


def test_a_number_may_be_a_name_and_true_may_not():
    assert as_text("out", 7) == "7"
    for value in (True, None, [1]):
        with pytest.raises(ValueError, match=r"out=.*: expected a name or path"):
            as_text("out", value)


@pytest.mark.parametrize("value", [True, "0.5", None, math.nan, math.inf, -0.1, 1.1])
def test_a_number_is_within_its_limits(value):
    with pytest.raises(ValueError, match=r"conf=.*: expected a number from 0 to 1"):
        as_number("conf", value, most=1.0)
    assert as_number("conf", 1, most=1.0) == 1.0
    assert as_number("timeout", 3600) == 3600.0


@pytest.mark.parametrize("value", [True, "x", None, 1.0, 0])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"batch=.*: expected a whole number >= 1"):
        as_count("batch", value)
    assert as_count("batch", "16") == as_count("batch", 16) == 16


def test_flags_and_sides():
    assert as_flag("strict", False) is False
    with pytest.raises(ValueError, match="strict='no': expected true or false"):
        as_flag("strict", "no")
    assert as_side(320) == 320
    with pytest.raises(ValueError, match="the nearest are 96 and 128"):
        as_side(100)


def test_a_file_to_write_is_no_folder_and_not_behind_a_file(tmp_path):
    assert writable("json", tmp_path / "new" / "r.json") == tmp_path / "new" / "r.json"
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        writable("json", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a place to write to"):
        writable("json", tmp_path / "file" / "r.json")
