"""What two gloo processes do for `test_initialize`: adapters initialised from halves of the domain, into a folder.

Launched in two processes by `launching.launch_two`: ``tests/initialization_worker.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from alora_trainer.basics.processes import own_share
from alora_trainer.weights.adapted import adapted_weights
from tests.trainer.initialization.test_initialize import adapter, domain_batches, initialize_like_the_worker


def main(folder: Path) -> None:
    """Of each kind, what this process comes to."""
    dist.init_process_group("gloo")
    for kind in ("natural_gradient", "sketch", "contrastive"):
        model = adapter()
        facts = initialize_like_the_worker(model, kind, list(own_share(domain_batches())))
        found = {"facts": vars(facts), "a": {weight.name: weight.a.clone() for weight in adapted_weights(model)}}
        torch.save(found, folder / f"{kind}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
