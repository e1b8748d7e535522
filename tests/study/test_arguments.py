"""Arguments: ours, the host's, and one clear error for the rest."""

from __future__ import annotations

import pytest

from tscode_yolo.study.arguments import as_seeds, take

KNOWN = ("model", "data", "epochs")


def test_take_splits_ours_from_the_hosts():
    ours, theirs = take({"model": "a", "data": "d", "imgsz": 64, "mosaic": 0.0}, KNOWN, ("model", "data"))
    assert ours == {"model": "a", "data": "d"}
    assert theirs == {"imgsz": 64, "mosaic": 0.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "a"}, "got no data="),
        ({"model": "a", "data": "d", "epoch": 3}, "did you mean epochs="),
        ({"model": "a", "data": "d", "imgz": 3}, "did you mean imgsz="),
        ({"model": "a", "data": "d", "zzz": 3}, "valid: data, epochs, model, and the train arguments of the host"),
        ({"model": "a", "data": "d", "seed": 3}, "give seeds="),
        ({"model": "a", "data": "d", "patience": 3}, "different numbers of epochs"),
        ({"model": "a", "data": "d", "pretrained": True}, "give init="),
    ],
)
def test_take_answers_a_bad_argument(args, message):
    with pytest.raises(ValueError, match=message):
        take(args, KNOWN, ("model", "data"))


@pytest.mark.parametrize(
    ("value", "seeds"), [(3, [0, 1, 2]), ("4,7", [4, 7]), ((0, 5), [0, 5]), ([9], [9]), ("12", [12])]
)
def test_seeds_are_a_number_or_a_list(value, seeds):
    assert as_seeds(value) == seeds


@pytest.mark.parametrize("value", [0, -1, True, "a", "1,1", [], 2.5, [1, -2], 99_999_999, [2**40]])
def test_seeds_refuse_the_rest(value):
    with pytest.raises(ValueError, match="seeds="):
        as_seeds(value)


def test_a_number_too_large_for_how_many_says_how_to_give_it_as_a_seed():
    with pytest.raises(ValueError, match=r"; the one seed 2024 is seeds=2024,$"):
        as_seeds(2024)
    assert as_seeds("2024,") == as_seeds((2024,)) == [2024]
