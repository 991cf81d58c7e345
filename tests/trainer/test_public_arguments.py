"""What a caller passes to a trainer: every form of a map, and nothing of it changed behind the caller's back."""

from __future__ import annotations

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from tests.penalty.test_penalty import made_map
from tests.tiny_map import make_map


@pytest.fixture
def build(lora_model, token_data, training_arguments):
    def make(model=None, **settings):
        return ALoRATrainer(
            model if model is not None else lora_model(moved=True),
            training_arguments(max_steps=2), train_dataset=token_data(), **settings,
        )  # fmt: skip

    return make


def test_a_map_may_be_given_as_itself_or_by_its_folder(build, tmp_path):
    importance = make_map(base_revision=None)
    importance.save_pretrained(tmp_path / "map")
    for given in (importance, str(tmp_path / "map"), tmp_path / "map"):
        trainer = build(importance=given, alora=ALoRAConfig(lam=0.1))
        assert isinstance(trainer.given_importance, ImportanceMap)
        assert all(torch.equal(trainer.given_importance[name], importance[name]) for name in importance)


@pytest.mark.parametrize("given", [3, {"model.layers.0": torch.ones(2, 2)}, object()])
def test_anything_else_is_refused_by_name(build, given):
    with pytest.raises(
        ALoRAError, match="importance is of type .*: pass an ImportanceMap, or the folder or Hub id of one"
    ):
        build(importance=given)


def test_settings_of_another_type_are_refused(build):
    with pytest.raises(ALoRAError, match="alora is of type dict: pass an ALoRAConfig"):
        build(alora={"record": "path"})


def test_the_given_and_the_recorded_map_are_told_apart(build, lora_model):
    importance = made_map(lora_model(moved=True))
    trainer = build(importance=importance, alora=ALoRAConfig(lam=0.1, record="path"))
    assert trainer.given_importance is importance and trainer.recorded_importance is None
    assert trainer.importance is importance
    trainer.train()
    assert trainer.given_importance is importance
    assert trainer.importance is trainer.recorded_importance and trainer.recorded_importance is not importance
    assert len(trainer.recorded_importance.info.earlier_tasks) == 1


def test_a_training_that_records_nothing_has_no_recorded_map(build, lora_model):
    importance = made_map(lora_model(moved=True))
    trainer = build(importance=importance, alora=ALoRAConfig(lam=0.1))
    trainer.train()
    assert trainer.recorded_importance is None and trainer.importance is importance


def test_arguments_are_as_they_were(lora_model, token_data, training_arguments):
    args, config = training_arguments(max_steps=1, hub_token="hf_secret"), ALoRAConfig(record="path")
    before = config.resolved()
    trainer = ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=config)
    trainer.train()
    trainer.save_model()
    assert trainer.args is args and type(args.hub_token) is str and args.hub_token == "hf_secret"
    assert config.lam is None and config.resolved() == before
