"""FSDP2 through the Trainer, which needs two GPUs: on a CPU the Trainer silently makes DDP of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import launch_two
from tests.process_cases import logged, protected_trainer, recorded_trainer
from tests.trainer.test_processes import assert_alike

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def test_fsdp2_equals_one_process(tmp_path: Path) -> None:
    launch_two("fsdp_worker.py", str(tmp_path))
    recorder = recorded_trainer("path", tmp_path / "one", batch=4)
    recorder.train()
    assert_alike(load_file(tmp_path / "omega.safetensors"), dict(recorder.importance), 1e-2)
    tuner = protected_trainer("coupled", tmp_path / "two", batch=4)
    tuner.train()
    expected = {name: p for name, p in tuner.model.named_parameters() if p.requires_grad}
    assert_alike(load_file(tmp_path / "moved.safetensors"), expected, 1e-3)
    lines = json.loads((tmp_path / "log.json").read_text())
    for got, line in zip(lines, logged(tuner), strict=True):
        for key in ("loss", "penalty", "drift"):
            assert got[key] == pytest.approx(line[key], rel=1e-2)
