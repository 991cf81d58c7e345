"""After a resume, every loss that is logged covers what it would have covered without one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from alora_trainer import ALoRAConfig, ALoRATrainer
from alora_trainer.experiment.methods.general_text import GeneralTextOptions
from alora_trainer.experiment.methods.replay import ReplayTrainer
from alora_trainer.experiment.run.train import train
from alora_trainer.trainer.loss_parts import LossParts
from alora_trainer.trainer.running_losses import LOSSES_FILE, RunningLosses
from tests.penalty.test_penalty import made_map
from tests.tiny_training import quiet_arguments, token_rows

# The last checkpoint but one lies between two lines of the log.
SETTINGS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "logging_steps": 3}


def plain(model: Any, args: Any) -> ALoRATrainer:
    return ALoRATrainer(model, args, train_dataset=token_rows(items=32))


def protected(model: Any, args: Any) -> ALoRATrainer:
    config = ALoRAConfig(lam=0.5)
    return ALoRATrainer(model, args, train_dataset=token_rows(items=32), importance=made_map(model), alora=config)


def replaying(model: Any, args: Any) -> ALoRATrainer:
    general = token_rows(items=8, seed=5)
    return ReplayTrainer(model, args, train_dataset=token_rows(items=32), general=general, options=GeneralTextOptions())


def losses(trainer: Any) -> list[dict[str, float]]:
    keys = ("step", "loss", "ce_loss", "penalty", "penalty_ratio", "general_loss", "train_loss")
    return [{key: line[key] for key in keys if key in line} for line in trainer.state.log_history]


@pytest.mark.parametrize(
    ("made", "also"),
    [(plain, "loss"), (protected, "penalty"), (replaying, "general_loss")],
    ids=["plain", "protected", "replaying"],
)
def test_logged_losses_are_those_of_the_uninterrupted_training(
    made: Callable[[Any, Any], ALoRATrainer], also: str, lora_model: Any, tmp_path: Path
) -> None:
    def trainer(folder: str) -> ALoRATrainer:
        return made(lora_model(moved=True), quiet_arguments(str(tmp_path / folder), learning_rate=0.02, **SETTINGS))

    whole = trainer("whole")
    outcome = whole.train()
    again = trainer("whole")
    resumed = again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(again) == losses(whole)
    assert also in losses(whole)[0] and "train_loss" in losses(whole)[-1]
    assert resumed.training_loss == outcome.training_loss == resumed.metrics["train_loss"]
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


def test_a_run_reports_the_loss_of_the_whole_training(lora_model: Any, tmp_path: Path) -> None:
    def trainer(folder: str, **settings: Any) -> ALoRATrainer:
        arguments = quiet_arguments(str(tmp_path / folder), learning_rate=0.02, **(SETTINGS | settings))
        return protected(lora_model(moved=True), arguments)

    whole = train(trainer("whole"))
    stopped = trainer("again")
    stopped.add_callback(_StopAfter(2))
    train(stopped)
    resumed = train(trainer("again"))
    assert resumed["loss"] == whole["loss"] and resumed["history"] == whole["history"]


class _StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._step


def test_a_checkpoint_without_its_losses_is_gone_on_from_with_a_warning(
    lora_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = quiet_arguments(str(tmp_path), **(SETTINGS | {"max_steps": 2}))
    protected(lora_model(moved=True), args).train()
    folder = tmp_path / "checkpoint-1"
    kept = json.loads((folder / LOSSES_FILE).read_text())
    assert kept["first_step"] == 0 and kept["logged_at"] == 0 and kept["unlogged"] > 0
    (folder / LOSSES_FILE).unlink()
    (folder / "loss_parts.json").unlink()
    with caplog.at_level(logging.WARNING, logger="alora_trainer"):
        outcome = protected(lora_model(moved=True), args).train(resume_from_checkpoint=str(folder))
    assert "does not say what the losses before it were" in caplog.text
    assert outcome.global_step == 2


class _OneProcess:
    @staticmethod
    def gather(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor + 1])  # the other's loss is one higher


def test_sums_of_several_processes_are_kept_as_their_mean() -> None:
    before, after = LossParts(), LossParts()
    before.add_data_loss(torch.tensor(2.0))
    before.end_step(torch.tensor(0.5, dtype=torch.float64))
    after.load(json.loads(json.dumps(before.state(_OneProcess()))))
    after.add_data_loss(torch.tensor(4.0))
    after.end_step(torch.tensor(0.25, dtype=torch.float64))
    # 2.5 of the first step (mean of both), then 4 here and 5 there.
    assert after.flush(_OneProcess()) == {"ce_loss": 3.5, "penalty": 0.375, "penalty_ratio": 0.375 / 3.5}


def test_a_trainer_that_does_not_note_where_it_began_counts_from_the_first_step(tmp_path: Path) -> None:
    """As in transformers 5.17, which has no `_initial_global_step`."""
    accelerator = SimpleNamespace(gather=lambda tensor: tensor)
    earlier = SimpleNamespace(
        accelerator=accelerator, args=SimpleNamespace(should_save=True), _tr_loss=torch.tensor(2.0),
        _total_loss_scalar=3.0, _globalstep_last_logged=4,
    )  # fmt: skip
    RunningLosses(earlier).save(tmp_path, {})
    state = json.loads((tmp_path / LOSSES_FILE).read_text())
    assert state == {"first_step": 0, "logged": 3.0, "unlogged": 2.0, "logged_at": 4}
