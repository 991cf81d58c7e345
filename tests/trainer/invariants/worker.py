"""One of two processes that run the recipe's commands: ``worker.py RECIPE FOLDER BATCH ACCUMULATION``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.trainer.invariants.trajectories import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder, batch, accumulation = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    run(recipe, folder, batch, accumulation)
    assert dist.get_world_size() == 2
    (folder / f"done-{dist.get_rank()}").touch()
    dist.destroy_process_group()
