"""Knowing: cost, paired comparisons, ablations and the tables of the paper."""
