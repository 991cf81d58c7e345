"""Imports that take ten seconds, for processes that are forked from one that has them (see `tests.launching`)."""

from __future__ import annotations

import gc

import datasets  # noqa: F401
import peft  # noqa: F401
import torch.distributed.tensor  # noqa: F401
import transformers.trainer  # noqa: F401

import tests.tiny_training  # noqa: F401

gc.collect()
gc.freeze()
