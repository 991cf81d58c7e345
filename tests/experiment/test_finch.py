"""FINCH's learning rate on a known case."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.finch import FinchOptions


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


@pytest.fixture
def trainer(
    lora_model: Callable[..., Any], token_data: Callable[..., Any], training_arguments: Callable[..., Any]
) -> Callable[..., Any]:
    """`trainer(options, **arguments)`: FINCH's trainer on plain SGD, which keeps its batches in `watched`."""

    def make(options: FinchOptions, **arguments: Any) -> Any:
        watched: list[Any] = []

        def kept(rows: list[Any]) -> dict[str, torch.Tensor]:
            watched.append(collate(rows))
            return collate(rows)

        defaults = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "linear"}
        made = get_method("finch").make_trainer(
            options=options,
            model=lora_model(moved=True),
            args=training_arguments(**(defaults | arguments)),
            train_dataset=token_data(),
            data_collator=kept,
        )
        made.watched = watched
        return made

    return make


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    "options",
    [FinchOptions(), FinchOptions(reference=2.0, decay=0.6), FinchOptions(reference=50.0, most=1.5)],
)
def test_each_step_has_the_rate_of_its_loss(
    options: FinchOptions, trainer: Callable[..., Any], lora_model: Callable[..., Any]
) -> None:
    """Three SGD steps of two micro-batches each, written out, under a schedule that falls."""
    made = trainer(options, max_steps=3, gradient_accumulation_steps=2)
    made.train()
    model, reference, mean, expected = lora_model(moved=True), options.reference, None, []
    for step in range(3):
        batches = made.watched[2 * step : 2 * step + 2]
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        loss = torch.zeros(())
        for batch in batches:
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            targets = batch["labels"][:, 1:].flatten()
            loss = (
                loss + torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / tokens
            )
        value = float(loss.detach())
        mean = value if mean is None else options.decay * mean + (1 - options.decay) * value
        reference = mean if reference is None else reference
        expected.append(min(options.most, math.sqrt(reference / mean)))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p -= 0.5 * (1 - step / 3) * expected[-1] * p.grad
    for name, value in factors(model).items():
        torch.testing.assert_close(factors(made.model)[name], value, rtol=1e-4, atol=1e-6)
    logged = [log["rate_factor"] for log in made.state.log_history if "rate_factor" in log]
    assert logged == pytest.approx(expected, rel=1e-5)
    assert made.optimizer.param_groups[0]["lr"] == 0.0  # where the schedule itself ends


def test_it_resumes_with_the_same_reference(trainer: Callable[..., Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer(FinchOptions(decay=0.5), max_steps=4, **settings)
    whole.train()
    half = trainer(FinchOptions(decay=0.5), max_steps=2, **settings)
    half.train()
    again = trainer(FinchOptions(decay=0.5), max_steps=4, **settings)
    again.train(resume_from_checkpoint=str(Path(half.args.output_dir) / "checkpoint-2"))
    assert all(torch.equal(factors(again.model)[name], value) for name, value in factors(whole.model).items())
    (Path(half.args.output_dir) / "checkpoint-2" / "loss_adaptive_rate.json").unlink()
    with pytest.raises(ALoRAError, match="begin this training anew"):
        trainer(FinchOptions(), **settings).train(
            resume_from_checkpoint=str(Path(half.args.output_dir) / "checkpoint-2")
        )


def test_numbers_out_of_range() -> None:
    for wrong in ({"reference": 0.0}, {"decay": 1.0}, {"most": 0.5}):
        with pytest.raises(ALoRAError, match="must be"):
            FinchOptions(**wrong)
