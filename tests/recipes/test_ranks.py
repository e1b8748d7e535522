"""Normalisers are shared over the ranks of a distributed training: two ranks see the loss of the whole batch."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tscode_yolo.recipes import RECIPES, get_recipe
from tscode_yolo.recipes.contract import Targets

from .scenes import Scene, random_scene, run


def half_of(scene: Scene, rank: int) -> Scene:
    """Images 0-1 or 2-3; the first half is the crowded one."""
    images = slice(2 * rank, 2 * rank + 2)
    t = scene.targets
    leaves = [leaf[images] for leaf in scene.leaves.values()]
    return Scene(scene.grid, *leaves, Targets(t.labels[images], t.bboxes[images], t.mask[images]))


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    losses = {name: run(get_recipe(name), half_of(random_scene([4, 3, 0, 1]), rank))[1] for name in RECIPES}
    torch.save({name: {k: v.detach() for k, v in terms.items()} for name, terms in losses.items()}, f"{store}.{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_mean_over_two_ranks_is_the_loss_of_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the ranks are fresh interpreters
    store = str(tmp_path / "store")
    mp.spawn(work, (store,), nprocs=2)
    ranks = [torch.load(f"{store}.{rank}") for rank in range(2)]
    for name in RECIPES:
        _, whole = run(get_recipe(name), random_scene([4, 3, 0, 1]))
        for key, loss in whole.items():
            mean = (ranks[0][name][key] + ranks[1][name][key]) / 2
            assert mean.item() == pytest.approx(loss.item(), rel=1e-4), (name, key)
