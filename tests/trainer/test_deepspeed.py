"""DeepSpeed's ZeRO-1 and ZeRO-2, two processes on the CPU against one without it; what is refused under it.

DeepSpeed is not among the packages that the other tests need: it builds its operators at run time, with a compiler.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import launch_two
from tests.process_cases import logged, protected_trainer, trained
from tests.trainer.test_processes import assert_alike, tensors

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    launch_two("deepspeed_worker.py", str(folder), DS_ACCELERATOR="cpu")
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_the_penalty_follows_the_trajectory_of_one_process(two, tmp_path, stage):
    trainer = protected_trainer("coupled", tmp_path, batch=4)
    assert trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled
    trainer.train()
    for rank in (0, 1):
        assert_alike(tensors(two, f"zero-{stage}", rank), trained(trainer), 1e-4)
        lines = json.loads((two / f"facts-{rank}.json").read_text())[f"zero-{stage}"]["log"]
        for got, line in zip(lines, logged(trainer), strict=True):
            for key in ("loss", "ce_loss", "penalty", "drift", "grad_norm"):
                if key in line:
                    assert got[key] == pytest.approx(line[key], rel=1e-3, abs=1e-6), (key, line["step"])


def test_what_cannot_be_right_is_refused(two):
    for rank in (0, 1):
        facts = json.loads((two / f"facts-{rank}.json").read_text())
        assert "recording is not supported under DeepSpeed" in facts["recording"]
        assert "use application='coupled'" in facts["decoupled"]
        assert "leave budget out" in facts["budget"]
        assert "ZeRO-3" in facts["zero-3"] and "use ZeRO-2" in facts["zero-3"]
