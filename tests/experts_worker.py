"""What two gloo processes do for `test_experts_in_one_parameter`: first directions by halves of the data, into a folder.

Launched in two processes by `launching.launch_two`: ``tests/experts_worker.py FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from alora_trainer.basics.processes import own_share
from tests.importance.test_experts_in_one_parameter import batches, started

if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.save(started(list(own_share(batches()))), Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
