"""Recorded and held are the weights that really train: those found when training begins, and in the optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.weights.adapted import adapted_weights
from tests.penalty.test_penalty import made_map


def logged(trainer: Any, key: str) -> list[float]:
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.mark.parametrize("estimator", ["paper", "path", "projected", "exact"])
def test_a_model_made_by_model_init_is_recorded(
    lora_model: Any, token_data: Any, training_arguments: Any, estimator: str
) -> None:
    """The trainer makes one model to begin with and another one to train."""
    maps = []
    for model in ({"model": lora_model()}, {"model_init": lambda: lora_model()}):
        trainer = ALoRATrainer(
            args=training_arguments(data_seed=5),
            train_dataset=token_data(),
            alora=ALoRAConfig(record=estimator),
            **model,
        )
        trainer.train()
        maps.append(trainer.importance)
    given, made = maps
    assert given.mean > 0 and all(torch.equal(given[name], made[name]) for name in given)
    assert made.reference["model.layers.0.self_attn.q_proj"].b.any()


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_a_model_made_by_model_init_is_held(
    lora_model: Any, token_data: Any, training_arguments: Any, application: str
) -> None:
    importance = made_map(lora_model(moved=True))
    found = []
    for model in ({"model": lora_model(moved=True)}, {"model_init": lambda: lora_model(moved=True)}):
        trainer = ALoRATrainer(
            args=training_arguments(data_seed=5), train_dataset=token_data(), importance=importance,
            alora=ALoRAConfig(lam=1.0, application=application), **model,
        )  # fmt: skip
        trainer.train()
        found.append((logged(trainer, "penalty"), logged(trainer, "drift")))
    assert found[0] == found[1] and found[1][0][-1] > 0 and found[1][1][-1] > 0


def test_the_adapter_that_is_active_when_training_begins_is_recorded(
    lora_model: Any, token_data: Any, training_arguments: Any, tmp_path: Path
) -> None:
    model = lora_model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    model.set_adapter("second")
    trainer.train()
    assert set(trainer.importance) == {f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)}
    assert trainer.importance.mean > 0 and trainer.importance.adapter_config.r == 2
    trainer.importance.save_pretrained(tmp_path / "map")


def test_the_adapter_that_is_active_when_training_begins_is_held(
    lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    model = lora_model(moved=True)
    importance = made_map(model)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    config = ALoRAConfig(lam=1.0, start="bare")
    trainer = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), importance=importance, alora=config)
    model.set_adapter("second")
    trainer.train()
    held = trainer.parts[0].weights
    assert {weight.adapter for weight in held} == {"second"} and len(held) == 4
    assert logged(trainer, "penalty")[-1] > 0


@pytest.mark.parametrize("part", ["record", "hold"])
def test_an_optimizer_that_holds_none_of_the_weights_is_refused(
    lora_model: Any, token_data: Any, training_arguments: Any, part: str
) -> None:
    model = lora_model(moved=True)
    other = torch.optim.SGD(lora_model().parameters(), lr=0.1)
    settings = {"alora": ALoRAConfig(record="path")} if part == "record" else {"importance": made_map(model)}
    trainer = ALoRATrainer(
        model, training_arguments(), train_dataset=token_data(), optimizers=(other, None), **settings
    )
    with pytest.raises(ALoRAError, match="the optimizer holds none of the weights that train"):
        trainer.train()


@pytest.mark.parametrize("estimator", ["path", "projected", "exact"])
def test_importance_that_is_zero_everywhere_is_refused_and_not_saved(
    lora_model: Any, token_data: Any, training_arguments: Any, estimator: str
) -> None:
    trainer = ALoRATrainer(
        lora_model(),
        training_arguments(learning_rate=0.0),
        train_dataset=token_data(),
        alora=ALoRAConfig(record=estimator),
    )
    with pytest.raises(ALoRAError, match="recorded over 4 steps is zero everywhere, so that it would hold nothing"):
        trainer.train()
    assert trainer.importance is None
    trainer.save_model()
    assert not (Path(trainer.args.output_dir) / "importance_config.json").exists()


@pytest.mark.parametrize("settings", [{}, {"max_steps": -1, "num_train_epochs": 1}])
@pytest.mark.parametrize("part", ["record", "hold"])
def test_a_training_without_a_whole_batch_is_refused(
    lora_model: Any, token_data: Any, training_arguments: Any, part: str, settings: dict[str, Any]
) -> None:
    model = lora_model(moved=True)
    own = {"alora": ALoRAConfig(record="path")} if part == "record" else {"importance": made_map(model)}
    arguments = training_arguments(per_device_train_batch_size=30, dataloader_drop_last=True, **settings)
    trainer = ALoRATrainer(model, arguments, train_dataset=token_data(24), **own)
    with pytest.raises(ALoRAError, match="its 24 items make no whole batch of 30"):
        trainer.train()
    arguments.dataloader_drop_last = False
    trainer.train()
    assert trainer.state.global_step > 0


@pytest.mark.parametrize("dispatched", [True, False])
@pytest.mark.parametrize("part", ["record", "hold"])
def test_a_training_on_an_empty_stream_is_refused(
    lora_model: Any, token_data: Any, training_arguments: Any, part: str, dispatched: bool
) -> None:
    empty = token_data().to_iterable_dataset().filter(lambda row: False)
    model = lora_model(moved=True)
    own = {"alora": ALoRAConfig(record="path")} if part == "record" else {"importance": made_map(model)}
    arguments = training_arguments(accelerator_config={"dispatch_batches": dispatched})
    trainer = ALoRATrainer(model, arguments, train_dataset=empty, **own)
    with pytest.raises(ALoRAError, match="the training makes no step|no optimizer step was recorded"):
        trainer.train()
    assert part == "hold" or trainer.importance is None


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_the_base_model_as_anchor_needs_its_weights_in_the_model(
    lora_model: Any, token_data: Any, training_arguments: Any, initialisation: str
) -> None:
    """These adapters take their beginning out of the base weights: the untouched base would be charged for it."""
    model = lora_model(init_lora_weights=initialisation)
    plain = lora_model(moved=True)
    recorded, elsewhere = made_map(model), made_map(plain)
    elsewhere.theta.config = LoraConfig(init_lora_weights=initialisation)

    def trainer(of: Any, importance: Any, **settings: Any) -> ALoRATrainer:
        config = ALoRAConfig(lam=1.0, **settings)
        return ALoRATrainer(
            of, training_arguments(max_steps=1, learning_rate=1e-6), train_dataset=token_data(), importance=importance,
            alora=config,
        )  # fmt: skip

    for start, anchor in (("recorded", "base"), ("bare", "reference"), ("merged", "reference"), ("merged", "base")):
        with pytest.raises(ALoRAError, match=f"the new adapter has others beside its factors .*='{initialisation}'"):
            trainer(model, recorded, start=start, anchor=anchor)
    with pytest.raises(ALoRAError, match="the recorded adapter has others"):
        trainer(plain, elsewhere, start="bare")
    held = trainer(model, recorded)
    held.train()
    assert logged(held, "penalty")[-1] < 1e-6 and len(adapted_weights(model)) == 4


def test_a_recording_whose_map_would_not_be_the_adapter_is_refused(
    lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    model = lora_model(init_lora_weights="pissa_niter_4")
    with pytest.raises(ALoRAError, match="init_lora_weights='pissa_niter_4' takes a random beginning .*record without"):
        ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))


@pytest.mark.parametrize(
    "lora", [{"init_lora_weights": "pissa"}, {"lora_bias": True}, {"trainable_token_indices": [3, 4, 5]}]
)
def test_a_map_has_the_whole_adapter_that_was_recorded(
    lora_model: Any, _tiny_llama: Any, token_data: Any, training_arguments: Any, lora: dict[str, Any], tmp_path: Path
) -> None:
    """On the bare base model, the map's adapter is the model that was recorded."""
    model = lora_model(**lora)
    trainer = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    trainer.train()
    trainer.importance.save_pretrained(tmp_path / "map")
    ids = torch.arange(2, 20)[None]
    again = PeftModel.from_pretrained(copy.deepcopy(_tiny_llama), str(tmp_path / "map"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-5)
