from __future__ import annotations

import dataclasses

import pytest
import yaml

from tscode_yolo.config import PRESETS, HeadConfig
from tscode_yolo.shipped import cfg_dir, cfg_path


def test_the_last_mapping_wins_and_missing_ones_are_skipped():
    config = HeadConfig.from_mapping({"sce_kernel": 5, "dpe": False}, None, {"sce_kernel": 7})
    assert (config.sce_kernel, config.dpe, config.sce) == (7, False, True)


def test_unknown_option_names_the_closest_valid_one():
    with pytest.raises(ValueError, match=r"unknown tscode option 'sce_kernal'; did you mean 'sce_kernel'\?"):
        HeadConfig.from_mapping({"sce_kernal": 5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sce_kernel": 4}, r"sce_kernel=4: expected one of \[3, 5, 7\]"),
        ({"sce_down": "linear"}, r"expected one of \['conv', 'avg', 'max'\]"),
        ({"preset": "papre"}, r"preset='papre': expected one of \['yolo', 'yolov8', 'yolo26', 'stock', 'paper'\]"),
        (
            {"preset": ["paper"]},
            r"preset=\['paper'\]: expected one of \['yolo', 'yolov8', 'yolo26', 'stock', 'paper'\]",
        ),
        ({"dpe_levels": [1, 2]}, "with -1 or 0"),
        ({"dpe_levels": [-2, 0]}, "expected offsets among"),
        ({"score": "pq"}, "needs a quality branch"),
        ({"sce_at": []}, r"sce_at=\[\]: expected numbers of predicted levels.*set sce: false"),
        ({"sce_at": ["P3"]}, r"sce_at=\['P3'\]: expected a list of whole numbers or null"),
        ({"dpe_at": [-1]}, r"dpe_at=\[-1\]: expected numbers of predicted levels.*set dpe: false"),
        ({"sce_at": [0], "share_towers": True}, r"sce_at=\[0\]: what is shared over levels .* is on all of them"),
        ({"dpe_at": [0], "share_down": True}, r"dpe_at=\[0\]: what is shared over levels .* is on all of them"),
    ],
)
def test_values_outside_their_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig.from_mapping(options)


@pytest.mark.parametrize(
    "options",
    [
        {"sce": 1},
        {"cls_depth": 0},
        {"cls_depth": 2.0},
        {"cls_width": True},
        {"cls_width": 2},
        {"cls_width": 256.0},  # a multiple: channels are whole numbers
        {"cls_width": float("nan")},
        {"dpe_levels": 1},
        {"dpe_at": 0},
        {"sce_at": [0.0]},
        {"sce_at": [True]},
        {"norm": 3},
    ],
)
def test_values_of_the_wrong_type_are_refused(options):
    with pytest.raises(ValueError, match=f"tscode option {next(iter(options))}="):
        HeadConfig.from_mapping(options)


def test_options_that_are_no_mapping_are_refused():
    with pytest.raises(ValueError, match="expected a mapping"):
        HeadConfig.from_mapping(["sce"])


def test_a_recipe_in_a_mapping_of_its_own_is_its_name():
    assert HeadConfig.from_mapping({"recipe": {"name": "ultralytics"}}) == HeadConfig.from_mapping({})
    assert HeadConfig.from_mapping({"recipe": {"name": "atss"}}).recipe == "atss"


@pytest.mark.parametrize(
    ("options", "lqe"),
    [
        ({}, True),
        ({"sce": False}, False),
        ({"recipe": "atss"}, False),
        ({"lqe": False}, False),
        ({"sce": False, "lqe": True}, True),
    ],
)
def test_the_quality_estimate_goes_with_sce_and_the_hosts_loss(options, lqe):
    assert HeadConfig.from_mapping(options).as_dict()["lqe"] is lqe


def test_preset_gives_what_is_not_named():
    config = HeadConfig.from_mapping({"preset": "paper", "cls_width": 256})
    assert (config.norm, config.share_towers, config.cls_width, config.cls_depth) == ("gn", True, 256, 2)


@pytest.mark.parametrize(
    "name", ["tscode.yaml", *(f"{f}-tscode.yaml" for f in ("yolov8", "yolo11", "yolo12", "yolo26"))]
)
def test_the_papers_head_takes_one_option_in_every_family(name):
    shipped = yaml.safe_load((cfg_dir() / name).read_text())["tscode"]
    for mappings in ([{**shipped, "preset": "paper"}], [shipped, {"preset": "paper"}]):
        options = HeadConfig.from_mapping(*mappings).as_dict()
        assert {k: options[k] for k in PRESETS["paper"]} == PRESETS["paper"]
        assert (options["sce"], options["dpe"], options["finer"]) == (True, True, True)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_the_way_through_plain_values(preset):
    config = HeadConfig.from_mapping({"preset": preset, "finer": True, "dpe_levels": [0, -1]})
    assert HeadConfig.from_mapping(config.as_dict()) == config


def test_every_option_is_documented():
    documented = HeadConfig.__doc__
    assert [f.name for f in dataclasses.fields(HeadConfig) if f"        {f.name}: " not in documented] == []


def test_cfg_path_finds_shipped_names_only():
    assert cfg_path("yolo11-tscode.yaml") == cfg_dir() / "yolo11-tscode.yaml"
    assert cfg_path("shapes.yaml").is_file()
    assert cfg_path("nobody.yaml") is None
    assert cfg_path("folder/yolo11-tscode.yaml") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sce": False, "cls_width": 4.0, "sce_kernel": 7}, "sce_kernel, cls_width (of a head with sce: true)"),
        ({"dpe": False, "box_depth": 2, "dpe_width": 0.5}, "box_depth, dpe_width (of a head with dpe: true)"),
        ({"sce": False, "dpe": False, "norm": "gn"}, "norm (of a head with sce: true or dpe: true)"),
        ({"sce": False, "norm": "gn", "down_conv": "dense", "finer": True}, ""),
        ({"sce": False, "share_towers": True, "cls_width": 4.0, "sce_skip": "none"}, "sce_skip (of a head"),
        ({"sce": False, "dpe": False, "dcn": True, "cls_depth": 1, "box_depth": 2}, ""),
        ({"sce": False, "cls_width": 1.0}, ""),  # as it is anyway
        ({"cls_width": 4.0, "box_depth": 2}, ""),
        ({"preset": "stock"}, ""),
        ({"sce_down": "avg", "dpe_levels": [0, 1], "down_conv": "dense"}, "down_conv (of a head that halves a map"),
        ({"sce": False, "dpe_levels": [0, 1], "down_conv": "dense"}, "down_conv (of a head that halves a map"),
        ({"sce_down": "avg", "down_conv": "dense", "finer": True}, ""),
        ({"sce_down": "avg", "down_conv": "dense", "dpe_at": None}, ""),
        ({"sce": False, "down_conv": "dense"}, "down_conv (of a head that halves a map"),  # P3 has nothing below it
        ({"dpe_levels": [-1], "finer": True, "dpe_up": "bilinear"}, "dpe_up (of a head that adds a map to a larger"),
        ({"dpe_levels": [-1, 0], "dpe_up": "bilinear"}, "dpe_up (of a head that adds a map to a larger"),
        ({"dpe_levels": [-1, 0], "finer": True, "dpe_up": "bilinear"}, ""),
        ({"dpe_levels": [0, 1], "dpe_up": "bilinear"}, ""),
        ({"dpe": False, "dpe_up": "bilinear"}, "dpe_up (of a head with dpe: true)"),
        ({"one2one_sce": True}, "one2one_sce (of a model with end2end: true)"),
        (HeadConfig.from_mapping({"sce": False, "cls_width": 4.0}).as_dict(), ""),  # a checkpoint's
    ],
)
def test_options_that_do_nothing_are_named(options, message):
    idle = HeadConfig.from_mapping(options).idle(options, end2end=False)
    assert message in idle
    assert bool(message) == bool(idle)


def test_an_end_to_end_head_has_a_one_to_one_branch():
    assert not HeadConfig.from_mapping({"one2one_sce": True}).idle({"one2one_sce": True}, end2end=True)


def test_a_head_made_without_a_mapping_is_the_default_one():
    assert HeadConfig() == HeadConfig.from_mapping()
