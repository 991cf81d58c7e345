"""DeepSpeed's ZeRO-1, ZeRO-2 and ZeRO-3, two processes on the CPU against one without it; what is refused under it.

DeepSpeed is not among the packages that the other tests need: it builds its operators at run time, with a compiler.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import launch_two
from tests.process_cases import logged, protected_trainer, recorded_trainer, trained
from tests.tiny_training import tiny_llama, with_lora
from tests.trainer.test_processes import assert_alike, facts, tensors

pytest.importorskip("deepspeed")

STAGES = pytest.mark.parametrize("stage", [1, 2, 3])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    launch_two("deepspeed_worker.py", str(folder), timeout=400, DS_ACCELERATOR="cpu")
    return folder


def assert_as_one_process(folder: Path, name: str, trainer: Any) -> None:
    assert trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled
    trainer.train()
    expected = trained(trainer) | dict(trainer.recorded_importance or {})
    for rank in (0, 1):
        assert_alike(tensors(folder, name, rank), expected, 1e-5)
        for got, line in zip(facts(folder, rank)[name]["log"], logged(trainer), strict=True):
            for key in ("loss", "ce_loss", "penalty", "drift", "grad_norm"):
                if key in line:
                    assert got[key] == pytest.approx(line[key], rel=1e-3, abs=1e-6), (key, line["step"])


@STAGES
def test_the_penalty_follows_the_trajectory_of_one_process(two, tmp_path, stage):
    assert_as_one_process(two, f"protect, zero-{stage}", protected_trainer("coupled", tmp_path, batch=4))


@STAGES
def test_a_recording_equals_that_of_one_process(two, tmp_path, stage):
    """What the engine does within its backward call is seen before it steps."""
    assert_as_one_process(two, f"record, zero-{stage}", recorded_trainer("path", tmp_path, batch=4))


@STAGES
def test_recording_while_protecting_has_the_gradients_of_the_data_alone(two, tmp_path, stage):
    assert_as_one_process(two, f"at once, zero-{stage}", protected_trainer("coupled and paper", tmp_path, batch=4))


@STAGES
def test_a_recorded_map_knows_its_base_model(two, stage):
    from alora_trainer.weights.adapted import adapted_weights

    expected = {weight.name: weight.base_sample() for weight in adapted_weights(with_lora(tiny_llama()))}
    for rank in (0, 1):
        assert facts(two, rank)[f"record, zero-{stage}"]["base samples"] == expected


def test_what_cannot_be_right_is_refused(two):
    for rank in (0, 1):
        said = json.loads((two / f"facts-{rank}.json").read_text())
        assert "use application='coupled'" in said["decoupled"]
        assert "leave budget out" in said["budget"]
        assert "use FSDP2" in said["full"]
