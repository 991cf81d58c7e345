"""Imports that take ten seconds, for processes that are forked from one that has them (see `tests.launching`)."""

from __future__ import annotations

import gc
from pathlib import Path

import datasets  # noqa: F401
import peft  # noqa: F401
import torch.distributed.tensor  # noqa: F401
import transformers.trainer  # noqa: F401

import tests.tiny_training  # noqa: F401

gc.collect()
gc.freeze()

# A fork has the thread alone that it was made in, and what others had locked stays so (where this can be seen, on Linux).
TASKS = Path("/proc/self/task")
if TASKS.is_dir() and len(list(TASKS.iterdir())) > 1:
    raise RuntimeError(f"forked from with threads: {[(one / 'comm').read_text().strip() for one in TASKS.iterdir()]}")
