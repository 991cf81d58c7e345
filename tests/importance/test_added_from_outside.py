"""An estimator, a storage format and a backend that another package registers are found by their names everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.cards.map_card import estimator_text
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization
from tests.conftest import move_factors
from tests.penalty.test_penalty import made_map, relative
from tests.tiny_kind import A_BACKEND, A_FORMAT, AN_ESTIMATOR, registered


def test_an_estimator(
    lora_model: Callable[..., Any], token_data: Any, training_arguments: Any, _tiny_llama: Any
) -> None:
    model = lora_model()
    with registered(AN_ESTIMATOR):
        arguments = training_arguments(optim="sgd", learning_rate=0.01)
        trainers = {
            name: ALoRATrainer(
                lora_model(), arguments, train_dataset=token_data(), alora=ALoRAConfig(record=name, xi=1.0)
            )
            for name in ("squared", "paper")
        }
        for trainer in trainers.values():
            trainer.train()
        squared, paper = (trainer.importance for trainer in trainers.values())
        assert squared.info.estimator == "squared"
        assert estimator_text(ImportanceInfo(estimator="squared")) == "summed squares of the gradient"
        # `paper` sums eta times the same squares.
        for name in squared:
            torch.testing.assert_close(squared[name] * 0.01, paper[name], rtol=1e-4, atol=1e-12)
        with pytest.raises(ALoRAError, match="record='squared' is for a LoRA adapter, and .* belongs to whole weights"):
            Recorder(trained_weights(_tiny_llama, Parameterization.FULL), "squared", 1e-3)
    with pytest.raises(ALoRAError, match="'squared' is unknown"):
        Recorder(adapted_weights(model), "squared", 1e-3)


def test_a_storage_format(lora_model: Callable[..., Any], tmp_path: Path) -> None:
    from tests.tiny_map import make_map

    with registered(A_FORMAT):
        importance = make_map()
        importance.save_pretrained(tmp_path / "map", storage=["float32", "float16"])
        half = ImportanceMap.from_pretrained(tmp_path / "map", storage="float16")
        assert half.storage == "float16" and (tmp_path / "map" / "importance.float16.safetensors").is_file()
        assert (
            half.nbytes
            == importance.nbytes / 2
            == sum(FORMATS["float16"].made_bytes(half.stored(n).shape) for n in half)
        )
        assert half == importance.convert("float16") and half != importance
        for name in half:
            torch.testing.assert_close(half[name], importance[name], rtol=1e-3, atol=1e-6)
        model = lora_model(moved=True)
        held = made_map(model)
        move_factors(model, 0.1, seed=11)
        weights = adapted_weights(model)
        exact, rounded = (
            QuadraticPenalty(weights, values, lam=1.0).evaluate() for values in (held, held.convert("float16"))
        )
        assert 0 < relative(rounded.value, exact.value) < 1e-3
    with pytest.raises(ALoRAError, match="'float16' is unknown"):
        ImportanceMap.from_pretrained(tmp_path / "map", storage="float16")


def test_a_backend(lora_model: Callable[..., Any]) -> None:
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.1, seed=11)
    weights = adapted_weights(model)
    with registered(A_BACKEND):
        mine = QuadraticPenalty(weights, importance, lam=1.0, backend="mine")
        left_open = QuadraticPenalty(weights, importance, lam=1.0)
        assert {held.backend for held in mine.held.values()} == {"mine"}
        assert {held.backend for held in left_open.held.values()} == {"blocked"}  # it has no preference
        assert torch.equal(mine.evaluate().value, left_open.evaluate().value)
        assert ALoRAConfig(backend="mine").backend == "mine"
    with pytest.raises(ALoRAError, match="'mine' is unknown"):
        QuadraticPenalty(weights, importance, lam=1.0, backend="mine")
