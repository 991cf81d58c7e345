"""A fresh adapter's first directions, and A frozen, through the trainers: once, before the first step, and said on the card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, initialize_adapter
from alora_trainer.artefact.cards.tuning import TUNING_FILE
from alora_trainer.trainer.initializing import INITIALIZATION_FILE, _batches
from alora_trainer.trainer.publishing import save_protected_adapter
from alora_trainer.weights.adapted import adapted_weights
from tests.basis_map import basis_map
from tests.importance.test_recorder import InOrder
from tests.tiny_map import make_map

TARGETS = ["q_proj", "v_proj", "down_proj"]
NATURAL = {"init_adapter": "natural_gradient", "init_items": 8}


@pytest.fixture
def train(lora_model, token_data, training_arguments):
    def run(*, model=None, importance="kronecker", resume=None, arguments=None, trainer=InOrder, **alora: Any) -> Any:
        given = basis_map(importance) if isinstance(importance, str) else importance
        made = trainer(
            model if model is not None else lora_model(target_modules=TARGETS),
            training_arguments(**(arguments or {})),
            train_dataset=token_data(),
            importance=given,
            alora=ALoRAConfig(**alora),
        )
        made.train(resume_from_checkpoint=resume)
        return made

    return run


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("kind", ["natural_gradient", "contrastive"])
def test_a_training_starts_where_the_plain_function_would(kind, train, lora_model, token_data):
    expected = lora_model(target_modules=TARGETS)
    places = [place * 24 // 8 for place in range(8)]
    rows = [{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")} for row in token_data().select(places)]
    initialize_adapter(expected, basis_map(), rows, kind)
    trainer = train(init_adapter=kind, init_items=8, freeze_a=True, lam=0)
    for weight, same in zip(adapted_weights(trainer.model), adapted_weights(expected), strict=True):
        torch.testing.assert_close(weight.a, same.a, rtol=1e-4, atol=1e-6)
        assert not torch.equal(weight.b, same.b)  # which is zero
    facts = trainer.publication().initialized
    assert (facts["kind"], facts["items"], facts["damping"]) == (kind, 8, 0.01)


def test_without_a_penalty_it_is_lora_from_that_start_to_the_bit(train, lora_model, token_data, training_arguments):
    """lam=0 holds nothing, and nothing of the choice is left in the training but A itself."""
    ours = train(lam=0, **NATURAL)
    model = lora_model(target_modules=TARGETS)
    part = ALoRATrainer(
        model, training_arguments(), train_dataset=token_data(), importance=basis_map(), alora=ALoRAConfig(lam=0, **NATURAL)
    )  # fmt: skip
    part._initializing.before_training(part, adapted_weights(model), resumes=False)
    plain = InOrder(model, training_arguments(), train_dataset=token_data())
    plain.train()
    for name, values in factors(ours.model).items():
        assert torch.equal(values, factors(plain.model)[name]), name


def test_a_frozen_stays_where_it_is_and_b_is_held(train):
    loose, held = train(freeze_a=True, lam=0, **NATURAL), train(freeze_a=True, lam=5.0, **NATURAL)
    for weight, other in zip(adapted_weights(loose.model), adapted_weights(held.model), strict=True):
        assert torch.equal(weight.a, other.a) and not weight.parameter_a.requires_grad
    movement = [sum(float(w.b.square().sum()) for w in adapted_weights(one.model)) for one in (loose, held)]
    assert movement[1] < 0.5 * movement[0]
    moved = {id(p) for group in loose.optimizer.param_groups for p in group["params"]}
    assert moved == {id(weight.parameter_b) for weight in adapted_weights(loose.model)}


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_a_frozen_is_not_pulled(application, train):
    trainer = train(freeze_a=True, lam=5.0, application=application, arguments={"max_steps": 1}, **NATURAL)
    longer = train(freeze_a=True, lam=5.0, application=application, arguments={"max_steps": 3}, **NATURAL)
    for weight, other in zip(adapted_weights(trainer.model), adapted_weights(longer.model), strict=True):
        assert torch.equal(weight.a, other.a) and not torch.equal(weight.b, other.b)


@pytest.mark.parametrize("ask", ["off and on again", "another adapter and back"])
def test_a_frozen_stays_so_when_the_base_model_is_asked(ask, train):
    """As retention is watched, and as TRL's DPO does in every step: PEFT makes all factors trainable again."""
    needs_peft_that_keeps_factors_frozen()

    class Asking(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            if ask == "off and on again":
                with model.disable_adapter():
                    pass
            else:
                model.set_adapter("reference")
                model.set_adapter("default")

        on_step_begin = on_train_begin

    class WithAsking(InOrder):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[Asking()], **kwargs)
            if ask != "off and on again":
                self.model.add_adapter("reference", self.model.peft_config["default"])

    plain, asked = (train(freeze_a=True, lam=5.0, trainer=one, **NATURAL) for one in (InOrder, WithAsking))
    for weight, same in zip(adapted_weights(asked.model), adapted_weights(plain.model), strict=True):
        assert not weight.parameter_a.requires_grad and weight.parameter_a.grad is None
        assert torch.equal(weight.a, same.a) and torch.equal(weight.b, same.b)


def needs_peft_that_keeps_factors_frozen() -> None:
    if not hasattr(BaseTunerLayer, "frozen_peft_weight_names"):
        pytest.skip("PEFT keeps single factors frozen from 0.21 on")


def test_items_are_looked_at_where_the_model_is(lora_model, token_data, training_arguments):
    """DeepSpeed and full evaluation in half precision leave a model in host memory until it trains, whatever the device is."""
    trainer = ALoRATrainer(
        lora_model(target_modules=TARGETS), training_arguments(), train_dataset=token_data(), importance=basis_map(),
        alora=ALoRAConfig(lam=0, **NATURAL),
    )  # fmt: skip
    found, items = _batches(trainer, 5, torch.device("meta"))
    assert items == 5 and {value.device.type for batch in found for value in batch.values()} == {"meta"}


def test_freezing_needs_no_map(train):
    trainer = train(importance=None, freeze_a=True)
    assert all(weight.b.any() and not weight.parameter_a.requires_grad for weight in adapted_weights(trainer.model))
    assert trainer.publication().initialized == {}


def test_resumed_it_is_what_it_was_and_looks_at_nothing_again(train, tmp_path, monkeypatch):
    every = {"save_strategy": "steps", "save_steps": 2}
    whole = train(freeze_a=True, lam=0.5, arguments=every, **NATURAL)
    folder = Path(whole.args.output_dir) / "checkpoint-2"
    assert json.loads((folder / INITIALIZATION_FILE).read_text()) == whole.publication().initialized
    monkeypatch.setattr("alora_trainer.trainer.initializing.choose_directions", None)
    resumed = train(freeze_a=True, lam=0.5, arguments=every, resume=str(folder), **NATURAL)
    for name, values in factors(whole.model).items():
        assert torch.equal(values, factors(resumed.model)[name])
    assert resumed.publication().initialized == whole.publication().initialized
    (folder / INITIALIZATION_FILE).unlink()
    with pytest.raises(ALoRAError, match="does not say how its adapter was initialised"):
        train(freeze_a=True, lam=0.5, arguments=every, resume=str(folder), **NATURAL)


def test_card_and_tuning_file_say_it(train, tmp_path):
    trainer = train(lam=0, **NATURAL)
    folder = tmp_path / "adapter"
    trainer.model.save_pretrained(folder)
    save_protected_adapter(trainer, folder, data={})
    written = json.loads((folder / TUNING_FILE).read_text())
    digest = trainer.publication().initialized["digest"]
    assert written["training"]["initialization_digest"] == digest and len(digest) == 64
    assert written["protection"]["init_adapter"] == "natural_gradient"
    card = (folder / "README.md").read_text()
    assert f"initialization_digest {digest}" in card and "initialization_items 8" in card
    from peft import PeftModel

    from tests.tiny_training import tiny_llama

    loaded = PeftModel.from_pretrained(tiny_llama(), folder)  # an ordinary adapter
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


def test_a_stream_is_taken_from_its_beginning(lora_model, token_data, training_arguments):
    from datasets import IterableDataset

    stream = IterableDataset.from_generator(lambda: iter(token_data()))
    trainer = ALoRATrainer(
        lora_model(target_modules=TARGETS), training_arguments(), train_dataset=stream, importance=basis_map(),
        alora=ALoRAConfig(lam=0, **NATURAL),
    )  # fmt: skip
    trainer.train()
    assert trainer.publication().initialized["items"] == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_adapter": "natural"}, "init_adapter='natural' is unknown: .*'natural_gradient'"),
        ({"init_items": 0}, "init_items=0 must be a whole number of at least 1"),
        ({"init_damping": 0}, "init_damping=0 must be a positive number"),
        ({"init_memory": "disk"}, "init_memory='disk' is unknown"),
        ({"init_adapter": "contrastive", "init_memory": "sketch"}, "a sketch is of gradients"),
        ({"freeze_a": "yes"}, "freeze_a='yes' must be true or false"),
        ({"freeze_a": True, "full_parameters": True}, "freeze_a=True is for LoRA"),
        ({"init_adapter": "natural_gradient", "full_parameters": True}, "is for LoRA"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ALoRAError, match=message):
        ALoRAConfig(**settings)


def test_numbers_may_be_texts():
    config = ALoRAConfig(init_items="8", init_damping="1e-2")
    assert (config.init_items, config.init_damping) == (8, 0.01)


def test_trainings_that_are_refused(train, lora_model, token_data, training_arguments):
    with pytest.raises(ALoRAError, match="needs a map of general curvature"):
        train(importance=None, lam=0, **NATURAL)
    with pytest.raises(ALoRAError, match="is for a fresh adapter"):
        train(importance=make_map(), lam=0, **NATURAL)
    with pytest.raises(ALoRAError, match="importance of .* is of its elements"):
        train(importance=make_map(), start="bare", model=lora_model(), lam=0, **NATURAL)
    with pytest.raises(ALoRAError, match="is of its elements"):  # as soon as the trainer is made
        ALoRATrainer(
            lora_model(), training_arguments(), train_dataset=token_data(), importance=make_map(),
            alora=ALoRAConfig(start="bare", lam=0, **NATURAL),
        )  # fmt: skip
    with pytest.raises(ALoRAError, match="is not fresh"):
        train(model=lora_model(target_modules=TARGETS, moved=True), lam=0, **NATURAL)
    base = lora_model(target_modules=TARGETS)
    remade = ALoRATrainer(
        args=training_arguments(), train_dataset=token_data(), importance=basis_map(),
        alora=ALoRAConfig(lam=0, **NATURAL), model_init=lambda: copy.deepcopy(base),
    )  # fmt: skip
    with pytest.raises(ALoRAError, match="and no model_init"):
        remade.train()
