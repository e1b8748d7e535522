"""Which models detect and nothing else: the host derives segmentation, pose and others from the same two classes."""

from __future__ import annotations

from typing import Any

from ultralytics.nn.modules import Detect, v10Detect
from ultralytics.nn.tasks import DetectionModel

OURS = "tscode_yolo.head", "TSCODEDetect"  # by name: a study runs on stock models alone too, without our head


def refusal(model: Any) -> str | None:
    """Why this is no plain detection model, or None if it is one.

    Exact types: the host's SegmentationModel, PoseModel, OBBModel, WorldModel are DetectionModels too, and their heads
    Detects. A DetectionModel may also have been built from another task's YAML.
    """
    if type(model) is not DetectionModel:
        return f"expected a detection model, got a {type(model).__name__}"
    layers: Any = model.model
    head = type(layers[-1])
    if head not in (Detect, v10Detect) and (head.__module__, head.__name__) != OURS:
        return f"expected a detection model with a Detect head, got one with a {head.__name__} head"
    if (task := getattr(model, "task", None) or "detect") != "detect":
        return f"expected a detection model, got one of the task {task}"
    return None
