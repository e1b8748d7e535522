"""Grafting: a TSCODE head that computes what a trained stock head computes, without labels.

``tscode graft weights=yolo11n.pt model=yolo11n-tscode.yaml images=FOLDER``. The way of the data: :mod:`images` (any
folder, cut and flipped at random) -> :mod:`pair` (one body, two heads) -> :mod:`loss` (how far the heads are apart) ->
:mod:`fit`; :mod:`command` reads arguments, writes the checkpoint and measures what was kept.
"""

from tscode_yolo.graft.command import graft, main

__all__ = ["graft", "main"]
