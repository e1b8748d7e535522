"""``tscode parity model=best.pt formats=all``: do the exported files compute what PyTorch computes?

Each format is exported and run on real images in a process of its own, and held against PyTorch: raw boxes and scores,
detections after NMS, AP, size and time. Works on any Ultralytics detection model, ours or not. Nothing is installed:
what is missing is named, and `examples/parity_all_formats.py` makes one environment a format.
"""

from __future__ import annotations

from typing import Any


def main(args: dict[str, Any]) -> int:
    """Run the verb; see `tscode_yolo.parity.command`."""
    from tscode_yolo.parity.command import main as run

    return run(args)
