"""FSDP2 through the Trainer over NCCL, which needs two GPUs: what `test_fsdp` shows over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fsdp_cases import CASES
from tests.launching import launch_two
from tests.trainer.test_fsdp import assert_ends_as_one_process

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    launch_two("fsdp_worker.py", str(folder), "cuda")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_fsdp2_equals_one_process(two, tmp_path, name):
    assert_ends_as_one_process(two, name, tmp_path, 1e-2)
