"""The parts of the loss where users look for them: TensorBoard, and whatever listens to the Trainer's own log."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from alora_trainer import ALoRAConfig, ALoRATrainer
from tests.penalty.test_penalty import made_map
from tests.tiny_training import move_factors

PARTS = ("ce_loss", "penalty", "penalty_ratio", "lam", "drift")


class Listener(TrainerCallback):
    """What every integration (wandb, trackio, TensorBoard, MLflow) is given: `on_log` with the numbers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.lines.append(dict(logs))


def train(model: Any, arguments: Any, data: Any, **ours: Any) -> tuple[ALoRATrainer, Listener]:
    importance = made_map(model)
    move_factors(model, 0.05)
    listener = Listener()
    config = ALoRAConfig(**({"lam": 0.3} | ours))
    trainer = ALoRATrainer(
        model, arguments, train_dataset=data, importance=importance, alora=config, callbacks=[listener]
    )
    trainer.train()
    return trainer, listener


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_every_listener_gets_the_parts(lora_model, token_data, training_arguments, application):
    args = training_arguments(logging_steps=2, gradient_accumulation_steps=2)
    trainer, listener = train(lora_model(moved=True), args, token_data(), application=application)
    lines = [line for line in listener.lines if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert set(PARTS) <= set(line)
        assert not [key for key in line if key.startswith("drift/")]  # hundreds of them on a real model
        assert all(isinstance(value, float) and math.isfinite(value) for key, value in line.items() if key in PARTS)
        assert line["penalty"] > 0
        assert line["penalty_ratio"] == pytest.approx(line["penalty"] / line["ce_loss"])
        minimised = line["ce_loss"] + (line["penalty"] if application == "coupled" else 0.0)
        assert line["loss"] == pytest.approx(minimised, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_is_whole_beside_a_loss_in_half_precision(
    lora_model, token_data, training_arguments, monkeypatch, dtype
):
    """As FSDP2's mixed precision hands it out; of three micro-batches, since a third is no number of half precision."""
    plain = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", lambda self, *args, **kwargs: plain(self, *args, **kwargs).to(dtype))
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    config = ALoRAConfig(lam=1e6)  # a penalty beyond float16's 65,504
    args = training_arguments(gradient_accumulation_steps=3, max_steps=1, optim="sgd", learning_rate=0.0)
    trainer = ALoRATrainer(model, args, train_dataset=token_data(), importance=importance, alora=config)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["penalty"] > 70_000
    assert line["loss"] - line["ce_loss"] == pytest.approx(line["penalty"], rel=1e-6)


def test_a_probe_on_the_way_does_not_swallow_the_trainers_own_line(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    listener = Listener()
    trainer = ALoRATrainer(
        model, training_arguments(logging_steps=1), train_dataset=token_data(), importance=made_map(model),
        alora=ALoRAConfig(lam=0.3, probe_steps=1), probe_dataset=token_data(items=3, seed=11), callbacks=[listener],
    )  # fmt: skip
    trainer.train()
    assert sum("loss" in line for line in listener.lines) == 4
    assert sum("probe_loss" in line for line in listener.lines) == 4


def test_the_parts_are_in_tensorboards_event_file(lora_model, token_data, training_arguments, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    args = training_arguments(report_to="tensorboard")
    trainer, listener = train(lora_model(moved=True), args, token_data())
    folder = next(path.parent for path in Path(os.environ["TENSORBOARD_LOGGING_DIR"]).rglob("events.out.*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for part in PARTS:
        assert f"train/{part}" in tags, sorted(tags)
        written = [event.value for event in events.Scalars(f"train/{part}")]
        logged = [line[part] for line in listener.lines if part in line]
        assert written == pytest.approx(logged, rel=1e-6)
