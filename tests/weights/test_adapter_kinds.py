"""Recording and protecting with every kind of LoRA layer: the drift and the penalty against PEFT's own delta weight."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.weights.adapted import adapted_weights
from tests.conftest import move_factors
from tests.penalty.test_penalty import made_map, relative
from tests.tiny_training import EXPERT_STACKS, tiny_mixture


def peft_delta(weight) -> torch.Tensor:
    """PEFT's delta of one weight as (out_features, in_features) in float64."""
    delta = weight.layer.get_delta_weight(weight.adapter).detach().double()
    if weight.stack is not None:
        delta = delta[weight.stack.expert] if delta.ndim == 3 else delta
        return delta.T if weight.stored_transposed else delta
    return delta.T if weight.stored_transposed else delta.flatten(1)


def moe_model(kind: str):
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERT_STACKS)
    model = get_peft_model(tiny_mixture(kind), config)
    move_factors(model, 0.2)
    return model


class Convolutions(nn.Module):
    """A classifier of pictures with a plain, a strided and a 1x1 convolution, in the trainer's own form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, (2, 3), stride=2), nn.Conv2d(4, 3, 1)

    def forward(self, pictures=None, labels=None):
        scores = self.third(self.second(self.first(pictures).relu()).relu()).mean((2, 3))
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def convolution_model():
    model = get_peft_model(Convolutions(), LoraConfig(r=2, target_modules=["first", "second", "third"]))
    move_factors(model, 0.2)
    return model


@pytest.fixture
def picture_data():
    from datasets import Dataset

    torch.manual_seed(1)
    return Dataset.from_dict({"pictures": torch.randn(12, 2, 8, 8).tolist(), "labels": [0, 1, 2] * 4})


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "convolutions", "embeddings"])
def test_the_penalty_is_that_of_pefts_delta(kind, lora_model):
    if kind == "convolutions":
        model = convolution_model()
    elif kind == "embeddings":
        model = lora_model(moved=True, target_modules=["embed_tokens", "lm_head"])
    else:
        model = moe_model(kind)
    weights = adapted_weights(model)
    assert len({weight.name for weight in weights}) == len(weights)
    start = {weight.name: peft_delta(weight) for weight in weights}
    for weight in weights:
        assert start[weight.name].shape == weight.shape
        torch.testing.assert_close(start[weight.name].float(), weight.scaling * weight.b @ weight.a)
    importance = made_map(model)
    move_factors(model, 0.05)
    penalty = QuadraticPenalty(weights, importance, lam=1.0, layer_weights="none", normalize=False)
    expected = sum((importance[w.name].double() * (peft_delta(w) - start[w.name]) ** 2).sum() for w in weights)
    assert relative(penalty.evaluate().value, expected) < 1e-5


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_experts_are_recorded_and_held(token_data, training_arguments, application):
    model = moe_model("qwen3_moe")
    args = training_arguments(max_steps=6, learning_rate=0.02)
    recorder = ALoRATrainer(model, args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    recorder.train()
    importance = recorder.importance
    experts = [name for name in importance if "experts" in name]
    assert len(experts) == 6 and "model.layers.0.mlp.experts.down_proj.2" in experts
    assert all(importance[name].any() for name in experts)
    drifts = {}
    for lam in (0.0, 1e4):
        held = copy.deepcopy(model)
        config = ALoRAConfig(lam=lam, application=application, log_drift=True)
        trainer = ALoRATrainer(held, args, train_dataset=token_data(seed=4), importance=importance, alora=config)
        trainer.train()
        last = [log for log in trainer.state.log_history if "drift" in log][-1]
        drifts[lam] = sum(value for key, value in last.items() if "experts" in key)
    assert drifts[1e4] < 0.5 * drifts[0.0]


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_a_map_of_experts_is_saved_and_read_back(kind, tmp_path):
    """Two parameters of one module, whose wrappers lie within each other, and each with a stack of three experts."""
    model = moe_model(kind)
    recorded = {weight.name: torch.rand(weight.shape) for weight in adapted_weights(model)}
    importance = map_at_present(model, adapted_weights(model), recorded, ImportanceInfo())
    importance.save_pretrained(tmp_path / "map")
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert set(again) == set(importance) and any(again.reference[name].stack is not None for name in again)
    for name in importance:
        assert torch.equal(again[name], importance[name])
        for part in ("a", "b"):
            assert torch.equal(getattr(again.reference[name], part), getattr(importance.reference[name], part))
    assert len(again.check_model(model)) == len(again)
    with pytest.raises(ALoRAError, match="is taken whole"):
        ImportanceMap.from_pretrained(tmp_path / "map", layers=["*.q_proj"])


def test_experts_gradients_of_the_coupled_penalty(token_data, training_arguments):
    """One SGD step with and without the penalty differs by autograd's gradient through PEFT's delta."""
    model = moe_model("gpt_oss")
    weights = adapted_weights(model)
    importance = made_map(model)
    start = {weight.name: peft_delta(weight) for weight in weights}
    move_factors(model, 0.05)
    args = training_arguments(optim="sgd", learning_rate=1.0, max_grad_norm=0.0, max_steps=1)
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    Trainer(plain, args, train_dataset=token_data(8)).train()
    config = ALoRAConfig(lam=0.3, layer_weights="none", normalize=False)
    ALoRATrainer(held, args, train_dataset=token_data(8), importance=importance, alora=config).train()
    total = torch.zeros((), dtype=torch.float64)
    for weight in weights:
        delta = weight.layer.get_delta_weight("default").double()
        if weight.stack is not None:
            delta = delta[weight.stack.expert]
        delta = delta.T if weight.stored_transposed else delta
        total = total + 0.3 * (importance[weight.name].double() * (delta - start[weight.name]) ** 2).sum()
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = plain.get_parameter(name) - held.get_parameter(name)
            torch.testing.assert_close(difference, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_convolutions_are_recorded_and_held(picture_data, training_arguments):
    model = convolution_model()
    args = training_arguments(max_steps=5, learning_rate=0.02, label_names=["labels"])
    recorder = ALoRATrainer(model, args, train_dataset=picture_data, alora=ALoRAConfig(record="path"))
    recorder.train()
    assert {name: o.shape for name, o in recorder.importance.items()} == {
        "first": (5, 18), "second": (4, 30), "third": (3, 4),
    }  # fmt: skip
    drifts = {}
    for lam in (0.0, 1e5):
        held = copy.deepcopy(model)
        config = ALoRAConfig(lam=lam, application="decoupled")
        trainer = ALoRATrainer(held, args, train_dataset=picture_data, importance=recorder.importance, alora=config)
        trainer.train()
        drifts[lam] = [log["drift"] for log in trainer.state.log_history if "drift" in log][-1]
    assert 0 < drifts[1e5] < 0.3 * drifts[0.0]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_bases_train(bits, lora_model, token_data, training_arguments, tmp_path):
    """bitsandbytes on the CPU: record, save, load, protect; the factors themselves are not quantised."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=40,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization, device_map="cpu")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    args = training_arguments(max_steps=4, learning_rate=0.02)
    recorder = ALoRATrainer(model, args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    recorder.train()
    assert type(adapted_weights(model)[0].layer).__name__ == ("Linear4bit" if bits == 4 else "Linear8bitLt")
    recorder.importance.save_pretrained(tmp_path / "map")
    importance = ImportanceMap.from_pretrained(tmp_path / "map")
    assert all(omega.any() for omega in importance.values())
    trainer = ALoRATrainer(
        model,
        args,
        train_dataset=token_data(seed=5),
        importance=importance,
        alora=ALoRAConfig(lam=1e4, application="decoupled"),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "penalty" in log]
    assert logs[-1]["penalty"] > 0
    size = sum(float((w.scaling * w.b @ w.a).norm()) ** 2 for w in adapted_weights(model)) ** 0.5
    assert 0 < logs[-1]["drift"] < 0.5 * size


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "variant Dora"),
        ({"alora_invocation_tokens": [3]}, "variant ALora"),
    ],
)
def test_other_variants_are_refused(lora_model, settings, reason):
    with pytest.raises(ALoRAError, match=f"{reason}.*whose movement is not scaling"):
        adapted_weights(lora_model(**settings))


def test_attention_modules_are_refused():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

    model = get_peft_model(Attends(), LoraConfig(r=2, target_modules=["attention"]))
    with pytest.raises(ALoRAError, match="MultiheadAttention LoRA layer, which is not supported"):
        adapted_weights(model)
