"""FSDP2 through the Trainer in two gloo processes on the CPU, against one process with the whole batch and nothing sharded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import Trainer

from alora_trainer import ALoRAConfig, ALoRAError, ImportanceMap
from alora_trainer.trainer.gradients import DataGradients
from alora_trainer.trainer.protecting import Protecting
from alora_trainer.trainer.resume import why_torn
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.model_weights import present_theta
from alora_trainer.weights.theta import BaseTheta
from tests.dense_metric import random_importance
from tests.fsdp_cases import CASES, outcome, trainer_of
from tests.launching import launch_two
from tests.older_libraries import goes_on_in_several_cpu_processes, skip_before
from tests.process_cases import logged
from tests.tiny_training import tiny_llama, with_lora
from tests.trainer.test_processes import assert_alike, facts, tensors

LOGGED = ("loss", "grad_norm", "penalty", "drift", "lam", "probe_loss", "final_pull", "eval_loss")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes have left their outcomes."""
    goes_on_in_several_cpu_processes()
    skip_before("torch", "2.12", "an earlier one cannot add up gradients that are spread unevenly on a CPU")
    folder = tmp_path_factory.mktemp("fsdp")
    launch_two("fsdp_worker.py", str(folder), "cpu")
    return folder


def assert_ends_as_one_process(folder: Path, name: str, tmp_path: Path, tolerance: float) -> None:
    trainer = trainer_of(name, tmp_path)
    assert trainer.args.world_size == 1 and not trainer.is_fsdp_enabled
    trainer.train()
    expected, lines = outcome(trainer), logged(trainer)
    if trainer.recorded_importance is not None:
        assert all(float(omega.max()) > 0 for omega in trainer.recorded_importance.values())
    if CASES[name].importance is not None:
        assert any(line.get("penalty", 0) > 0 for line in lines)
    for rank in (0, 1):
        assert_alike(tensors(folder, name, rank), expected, tolerance)
        for got, line in zip(facts(folder, rank)[name], lines, strict=True):
            for key in LOGGED:
                assert (key in got) == (key in line)
                if key in line:
                    assert got[key] == pytest.approx(line[key], rel=10 * tolerance, abs=1e-6), (key, line)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_does(two, tmp_path, name):
    assert_ends_as_one_process(two, name, tmp_path, CASES[name].tolerance)


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_resumed_training_ends_as_the_uninterrupted_one(two, kind):
    for rank in (0, 1):
        equal = facts(two, rank)[kind]
        assert len(equal) > 6 and all(equal.values()), equal
    sharded = (two / kind / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir()
    assert sharded == (kind == "SHARDED_STATE_DICT")


def test_a_sharded_checkpoint_without_its_index_is_not_whole(two, tmp_path):
    checkpoint = Path(shutil.copytree(two / "SHARDED_STATE_DICT" / "checkpoint-1", tmp_path / "checkpoint-1"))
    assert why_torn(checkpoint) is None
    (checkpoint / "pytorch_model_fsdp_0" / ".metadata").unlink()
    assert "pytorch_model_fsdp_0/.metadata, which says what its pieces are, is missing" in why_torn(checkpoint)


def test_lambda_zero_is_the_plain_trainer_to_the_bit(two):
    for rank in (0, 1):
        equal = facts(two, rank)["idle"]
        assert any("lora_A" in name for name in equal) and all(equal.values())


def test_each_process_keeps_the_gradients_of_its_own_share(two):
    here, there = (set(facts(two, rank)["kept in full tuning"]) for rank in (0, 1))
    assert here and there and not here & there
    assert here | there == {weight.name for weight in full_weights(tiny_llama())}


def test_the_saved_adapter_is_the_one_that_was_trained(two):
    from peft import PeftModel

    weights = adapted_weights(PeftModel.from_pretrained(tiny_llama(), two / "adapter", is_trainable=True))
    found = {f"{weight.name}.{i}": matrix for weight in weights for i, matrix in enumerate(weight.matrices)}
    expected = tensors(two, "auto", 0)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_map_of_sharded_layers_knows_its_base_model(two):
    importance = ImportanceMap.from_pretrained(two / "map")
    model = with_lora(tiny_llama(), moved=True)
    weights = {weight.name: weight for weight in importance.check_model(model)}
    assert weights.keys() == importance.keys()
    for name, weight in weights.items():
        assert importance.base_samples[name] == weight.base_sample()
    with torch.no_grad():
        weights["model.layers.1.self_attn.v_proj"].layer.get_base_layer().weight.mul_(1.5)
    with pytest.raises(ALoRAError, match="other base weights: those of model.layers.1.self_attn.v_proj differ"):
        importance.check_model(model)


def test_layers_in_wrappers_keep_their_names():
    """FSDP2's activation checkpointing puts layers into modules of its own; PEFT then finds nothing of the adapter."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, wrapped = with_lora(tiny_llama(), moved=True), with_lora(tiny_llama(), moved=True)
    layers = wrapped.base_model.model.model.layers
    for place, layer in enumerate(layers):
        layers[place] = checkpoint_wrapper(layer)
    skip_before("peft", "0.21", "earlier ones do find it")
    assert not get_peft_model_state_dict(wrapped), "PEFT has learned of wrappers: check_engine need not refuse them"
    weights, found = adapted_weights(plain), adapted_weights(wrapped)
    assert [weight.name for weight in found] == [weight.name for weight in weights]
    expected, theta = present_theta(plain, weights), present_theta(wrapped, found)
    assert_alike(theta.state, expected.state, 1e-12)
    base, checkpointed = tiny_llama(), tiny_llama()
    checkpointed.model.layers[0] = checkpoint_wrapper(checkpointed.model.layers[0])
    assert [w.name for w in full_weights(checkpointed)] == [w.name for w in full_weights(base)]


def test_gradients_are_brought_together_when_they_are_asked_for():
    model = with_lora(tiny_llama(), moved=True)
    weights = adapted_weights(model)
    ids = torch.tensor([[2, 3, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    first = weights[0]
    added = {first.name: tuple(torch.ones_like(matrix) for matrix in first.matrices)}
    gradients = DataGradients(weights, 2.0, [added, {}])
    assert list(gradients) == [weight.name for weight in weights]
    for weight in weights:
        for got, again, parameter in zip(
            gradients[weight.name], gradients[weight.name], weight.parameters, strict=True
        ):
            assert got.data_ptr() != again.data_ptr()
            torch.testing.assert_close(got, parameter.grad / 2 - (1.0 if weight is first else 0.0))


def test_whole_weights_at_the_base_that_are_not_in_memory_are_refused():
    """As `cpu_ram_efficient_loading` leaves them on all processes but the first, before the training begins."""
    model = tiny_llama()
    linear = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    omega = {name: random_importance("kronecker", *shape, (3, 3), 1) for name, shape in linear.items()}
    importance = ImportanceMap(omega, BaseTheta(linear))
    part = Protecting(importance, ALoRAConfig(full_parameters=True, missing="free", lam=0.1))
    with pytest.raises(ALoRAError, match="cpu_ram_efficient_loading leaves them out: set it to False"):
        part.before_training(Trainer.__new__(Trainer), full_weights(model.to("meta")), resumes=False)
