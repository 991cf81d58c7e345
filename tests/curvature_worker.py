"""What two gloo processes do for `test_curvature_goes_on`.

Launched by ``python -m torch.distributed.run --nproc_per_node 2 tests/curvature_worker.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from alora_trainer.basics.processes import joined, own_share, place
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.importance.recording.curvature_checkpoint import own_checkpoint
from tests.importance.test_curvature import batches
from tests.importance.test_curvature_goes_on import KINDS, TARGETS, assert_same_bits
from tests.tiny_training import tiny_llama, with_lora

FOLDER = Path(sys.argv[1])


def main() -> None:
    rank, _ = place()
    model = with_lora(tiny_llama(), target_modules=TARGETS)
    data = list(own_share(batches(rows=10, size=2)))
    found = {kind: estimate_curvature(model, data, kind, seed=5, keep=4) for kind in KINDS}
    for kind, one in found.items():
        parts = {name: stored.parts for name, stored in one.importance.items()}
        torch.save({"parts": parts, "tokens": one.tokens, "batches": one.batches}, FOLDER / f"{kind}-{rank}.pt")
    # The last writing of each is before its last batch of the second pass.
    path = FOLDER / "at.safetensors"
    settings: dict[str, Any] = {"seed": 5, "keep": 4, "checkpoint": path}
    estimate_curvature(model, data, "ekfac", checkpoint_every=2, **settings)
    assert_same_bits(estimate_curvature(model, data, "ekfac", **settings), found["ekfac"])
    facts: dict[str, Any] = {"same bits": True, "files": sorted(file.name for file in FOLDER.glob("at-*"))}
    if rank == 0:
        own_checkpoint(path).unlink()
    try:
        estimate_curvature(model, data, "ekfac", **settings)
    except ALoRAError as error:
        facts["apart"] = str(error)
    torch.save(facts, FOLDER / f"facts-{rank}.pt")


if __name__ == "__main__":
    with joined():
        main()
