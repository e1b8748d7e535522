"""The warning of a warm-up that undoes where the head's predictors start."""

from __future__ import annotations

import pytest
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect.train import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from tscode_yolo.priors import undone_by
from tscode_yolo.register import PATCHES


@pytest.mark.parametrize(
    ("args", "warns"),
    [
        ({"optimizer": "AdamW", "lr0": 0.001}, True),
        ({"optimizer": "adamw", "lr0": 0.001}, True),
        ({"optimizer": "RMSprop", "lr0": 0.001, "warmup_epochs": 0.5}, True),
        ({"optimizer": "AdamW", "lr0": 0.001, "warmup_bias_lr": 0.0}, False),
        ({"optimizer": "AdamW", "lr0": 0.001, "warmup_bias_lr": 0.001}, False),
        ({"optimizer": "AdamW", "lr0": 0.001, "warmup_epochs": 0}, False),
        ({"optimizer": "AdamW", "lr0": 0.001, "resume": True}, False),
        ({"optimizer": "AdamW", "lr0": 0.001, "epochs": 1}, False),  # has no warm-up
        ({"optimizer": "AdamW", "lr0": 0.001, "epochs": 2}, True),
        ({"optimizer": "SGD"}, False),
        ({"optimizer": "MuSGD"}, False),
        ({"optimizer": "auto"}, False),
    ],
)
def test_adaptive_optimisers_with_a_large_first_bias_rate_are_warned_of(args, warns):
    said = undone_by(get_cfg(overrides=args))
    assert (said is not None) == warns
    if warns:
        assert f"optimizer={args['optimizer']} with warmup_bias_lr=0.1" in said
        assert "Add warmup_bias_lr=0" in said


@pytest.mark.parametrize(("model", "times"), [("yolo11n-tscode.yaml", 1), ("yolo11n.yaml", 0)])
@pytest.mark.parametrize("distilled", [False, True])
def test_only_trainings_of_our_head_are_warned(monkeypatch, model, times, distilled):
    said: list[str] = []
    monkeypatch.setattr("ultralytics.utils.LOGGER.warning", said.append)
    trainer = DetectionTrainer.__new__(DetectionTrainer)
    trainer.model = DetectionModel(model, nc=3, verbose=False)
    if distilled:  # as the host wraps it, student beside teacher
        wrapper = nn.Module()
        wrapper.student_model = trainer.model
        trainer.model = wrapper
    trainer.args = get_cfg(overrides={"optimizer": "AdamW", "lr0": 0.001})
    wrap = PATCHES["ultralytics.models.yolo.detect.train"]["DetectionTrainer.get_validator"]
    assert wrap(lambda self: "validator")(trainer) == "validator"
    assert sum("warmup_bias_lr=0" in s for s in said) == times
