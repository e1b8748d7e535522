"""Knowing: what a head costs (profile), whether it is better (compare), which part of it helps (ablate).

Works on any Ultralytics detection model, stock or ours; imports neither the head nor the recipes. `paper` prints the
paper's tables beside our counts.
"""
