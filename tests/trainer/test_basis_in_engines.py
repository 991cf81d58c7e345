"""Importance in a basis under every trainer and setting that element-wise importance has.

With unit vectors for bases, and Omega = lg ls', it is element-wise importance that is said in another way: both must make the
same training, whatever the engine does. That the values in other bases are right, tests/penalty shows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ImportanceMap
from alora_trainer.importance.kinds.eigenbasis import EigenSide
from alora_trainer.importance.kinds.ekfac import EkfacOmega
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import CovarianceOmega, KroneckerOmega
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.theta import BaseTheta
from tests.importance.test_recorder import InOrder
from tests.importance.test_recording import Scaled
from tests.tiny_training import move_factors
from tests.trainer import test_trl_trainers
from tests.trainer.test_trl_trainers import CASES, ONE_STEP

tokenizer, trl_model = test_trl_trainers.tokenizer, test_trl_trainers.model
KINDS = ("kronecker", "ekfac", "covariance")


def unit_side(size: int, generator: torch.Generator) -> tuple[EigenSide, torch.Tensor]:
    """Unit vectors in a random order with random eigenvalues; and these in the order of the coordinates."""
    order = torch.randperm(size, generator=generator)
    values = torch.rand(size, generator=generator) ** 2
    by_coordinate = torch.empty(size)
    by_coordinate[order] = values
    return EigenSide(torch.eye(size)[:, order], torch.cat([values, torch.zeros(1)])), by_coordinate


def twins(model: Any, kind: str) -> tuple[ImportanceMap, ImportanceMap]:
    """The same importance as a kind in a basis, and by element."""
    generator = torch.Generator().manual_seed(5)
    in_basis: dict[str, Importance] = {}
    by_element: dict[str, torch.Tensor] = {}
    for weight in adapted_weights(model):
        (m, n), name = weight.shape, weight.name
        (outputs, rows), (inputs, columns) = unit_side(m, generator), unit_side(n, generator)
        if kind == "covariance":
            in_basis[name], rows = CovarianceOmega.of((m, n), outputs, inputs), rows.mean().expand(m)
        else:
            in_basis[name] = KroneckerOmega.of((m, n), outputs, inputs)
        if kind == "ekfac":
            free = torch.outer(outputs.values, inputs.values)
            vectors = {"output_vectors": outputs.vectors, "input_vectors": inputs.vectors}
            in_basis[name] = EkfacOmega((m, n), vectors | {"omega": free})
        by_element[name] = torch.outer(rows, columns)
    theta = BaseTheta({name: tuple(omega.shape) for name, omega in by_element.items()})
    return ImportanceMap(in_basis, theta), ImportanceMap(by_element, theta)


def assert_the_same_training(one: Any, other: Any, *, rtol: float, atol: float) -> None:
    moved = 0
    for (name, first), (_, second) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        if first.requires_grad:
            moved += 1
            torch.testing.assert_close(first, second, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert moved
    lines = [[line for line in trainer.state.log_history if "penalty" in line] for trainer in (one, other)]
    assert any(line["penalty"] > 0 for line in lines[0]) and len(lines[0]) == len(lines[1])
    for first, second in zip(*lines, strict=True):
        assert first["penalty"] == pytest.approx(second["penalty"], rel=max(rtol, 1e-4), abs=1e-9)


# Arguments of the Trainer, those of ours, the trainer, and how nearly both trainings must agree.
ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any], type, float]] = {
    "accumulation": ({"gradient_accumulation_steps": 3}, {}, InOrder, 1e-4),
    "AdamW": ({"optim": "adamw_torch", "learning_rate": 0.01}, {}, InOrder, 1e-3),
    "bf16": ({"bf16": True}, {}, InOrder, 1e-3),
    "fp16 with a loss scaler": ({}, {}, Scaled, 1e-4),
    "checkpointing": ({"gradient_checkpointing": True}, {}, InOrder, 1e-4),
    "clipping": ({"max_grad_norm": 0.01}, {}, InOrder, 1e-4),
    "decoupled": ({}, {"application": "decoupled"}, InOrder, 1e-3),
    "a schedule, literal units, layer weights": (
        {},
        {"lam_schedule": "linear", "normalize": False, "layer_weights": "l2"},
        InOrder,
        1e-4,
    ),
    "lambda by itself": ({}, {"lam": "auto"}, InOrder, 1e-3),
    "a budget": ({}, {"lam": None, "budget": 0.001, "probe_steps": 1}, InOrder, 1e-3),
    "in host memory": ({}, {"storage_device": "cpu"}, InOrder, 1e-4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_held_as_element_wise_importance_is(
    engine: str, kind: str, lora_model: Any, training_arguments: Any, token_data: Any
) -> None:
    settings, ours, trainer_class, tolerance = ENGINES[engine]
    common = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 3}
    start = lora_model(moved=True)
    trainers = []
    for importance in twins(start, kind):
        config = ALoRAConfig(**({"lam": 0.3, "start": "bare", "anchor": "base", "layer_weights": "none"} | ours))
        trainer = trainer_class(
            copy.deepcopy(start),
            training_arguments(**(common | settings)),
            train_dataset=token_data(),
            importance=importance,
            alora=config,
            probe_dataset=token_data(items=4, seed=11) if config.budget is not None else None,
        )
        trainer.train()
        trainers.append(trainer)
    assert_the_same_training(*trainers, rtol=tolerance, atol=2e-5 if tolerance > 1e-4 else 2e-6)


@pytest.mark.parametrize("case", ["sft packed", "sft defaults: bf16, checkpointing", "dpo"])
def test_trl_trainers_hold_it(case: str, tmp_path: Path, tokenizer: Any, trl_model: Any) -> None:
    model = trl_model
    kind, rows, settings = CASES[case]
    build = kind(tmp_path, tokenizer)
    move_factors(model, 0.05)
    settings = ONE_STEP | {"per_device_train_batch_size": 2, "learning_rate": 0.1} | settings
    config = ALoRAConfig(lam=0.3, start="bare", anchor="base", layer_weights="none")
    trainers = [
        build(copy.deepcopy(model), rows(16), importance=importance, alora=config, **settings)
        for importance in twins(model, "kronecker")
    ]
    for trainer in trainers:
        trainer.train()
    assert_the_same_training(*trainers, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_goes_on_is_the_same_to_the_bit(
    kind: str, lora_model: Any, training_arguments: Any, token_data: Any, tmp_path: Path
) -> None:
    importance, _ = twins(lora_model(), kind)
    config = ALoRAConfig(lam=0.3, application="decoupled")
    finals = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / "checkpoint-2"))):
        arguments = training_arguments(
            output_dir=str(tmp_path / folder), max_steps=4, save_strategy="steps", save_steps=2, learning_rate=0.05
        )
        trainer = InOrder(
            lora_model(), arguments, train_dataset=token_data(), importance=importance, alora=copy.deepcopy(config)
        )
        trainer.train(resume_from_checkpoint=resume)
        finals.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])
