"""Seeing: where a detector's scores and boxes disagree, from its raw predictions before NMS.

``tscode align model=A [baseline=B] data=...`` works on any Ultralytics ``Detect`` model, stock or ours. The way of the
data: :mod:`source` (images; :mod:`labels`, :mod:`coco`) -> :mod:`predict` (raw predictions) -> :mod:`match`,
:mod:`objects`, :mod:`oracle`, :mod:`tide` (one image) -> :mod:`collect` (bounded tables) -> :mod:`ap`,
:mod:`calibration`, :mod:`measure` (numbers) -> :mod:`report`, :mod:`verdict`, :mod:`figures`, :mod:`cam`,
:mod:`curves` -> :mod:`html`; :mod:`command` runs it all.
"""

from tscode_yolo.align.command import AlignArgs, align, main

__all__ = ["AlignArgs", "align", "main"]
