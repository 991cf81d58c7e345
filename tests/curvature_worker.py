"""What two gloo processes do for `test_curvature_goes_on`: estimates of curvature whose outcomes go into a folder.

Launched in two processes by `launching.launch_two`: ``tests/curvature_worker.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from alora_trainer.basics.processes import own_share
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.importance.recording.curvature_checkpoint import own_checkpoint
from tests.importance.test_curvature import batches
from tests.importance.test_curvature_goes_on import KINDS, TARGETS, assert_same_bits
from tests.tiny_training import tiny_llama, with_lora


def main(folder: Path) -> None:
    """All estimates, of this process's share of the batches."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = with_lora(tiny_llama(), target_modules=TARGETS)
    data = list(own_share(batches(rows=10, size=2)))
    found = {kind: estimate_curvature(model, data, kind, seed=5, keep=4) for kind in KINDS}
    for kind, one in found.items():
        parts = {name: stored.parts for name, stored in one.importance.items()}
        torch.save({"parts": parts, "tokens": one.tokens, "batches": one.batches}, folder / f"{kind}-{rank}.pt")
    assert_same_bits(estimate_curvature(model, data, seed=5, keep=4, parts=3), found["kronecker"])
    path = folder / "at.safetensors"
    settings: dict[str, Any] = {"seed": 5, "keep": 4, "checkpoint": path}
    estimate_curvature(model, data, "ekfac", checkpoint_every=2, **settings)
    # What is there now is of the second pass: after its second batch.
    again = estimate_curvature(model, data, "ekfac", **settings)
    facts: dict[str, Any] = {"files": sorted(file.name for file in folder.glob("at-*"))}
    assert_same_bits(again, found["ekfac"])
    if rank == 0:
        own_checkpoint(path).unlink()
    with pytest.raises(ALoRAError) as apart:
        estimate_curvature(model, data, "ekfac", **settings)
    torch.save(facts | {"apart": str(apart.value)}, folder / f"facts-{rank}.pt")
    # A process without text, and layers that only the other has seen.
    alone = estimate_curvature(model, batches(rows=2) if rank == 0 else [], labels="text", keep=3)
    torch.save({name: stored.parts for name, stored in alone.importance.items()}, folder / f"alone-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
