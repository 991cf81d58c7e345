"""Experts in one parameter against the same experts as layers of their own: curvature, first directions, and the penalty."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alora_trainer import ALoRAConfig, ImportanceMap, initialize_adapter
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.trainer import ALoRATrainer
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.products import Products
from alora_trainer.weights.theta import BaseTheta
from tests.dense_metric import dense_metric
from tests.launching import launch_two
from tests.tiny_training import EXPERT_STACKS, TINY, tiny_mixture, token_rows

KINDS = ["qwen3_moe", "gpt_oss"]
EXPERTS = "model.layers.0.mlp.experts"
# So small that its dense metric fits.
SHAPE: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 6, "head_dim": 4}


class ListedExperts(nn.Module):
    """The experts of a stack as linear layers, with what stands between them."""

    def __init__(self, stacks: Any) -> None:
        super().__init__()
        self.gate = [stacks]  # no submodule
        self.gate_up_proj, self.down_proj = _listed(stacks, "gate_up_proj"), _listed(stacks, "down_proj")

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        out = torch.zeros_like(rows)
        for expert in range(len(self.gate_up_proj)):
            token, place = torch.where(chosen == expert)
            if len(token):
                inner = self.gate[0]._apply_gate(self.gate_up_proj[expert](rows[token]))
                out = out.index_add(0, token, self.down_proj[expert](inner) * weights[token, place, None])
        return out.reshape(hidden.shape)


def _listed(stacks: Any, name: str) -> nn.ModuleList:
    stack, biases = getattr(stacks, name).detach(), getattr(stacks, f"{name}_bias", None)
    layers = []
    for expert, matrix in enumerate(stack):
        matrix = matrix.T if getattr(stacks, "is_transposed", False) else matrix
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=biases is not None, dtype=matrix.dtype)
        layer.weight.data.copy_(matrix)
        if biases is not None:
            layer.bias.data.copy_(biases[expert].detach())
        layers.append(layer)
    return nn.ModuleList(layers)


def base(kind: str) -> Any:
    model = tiny_mixture(kind, **SHAPE).double()
    model.config._experts_implementation = "eager"  # products of all experts at once are not there in float64
    return model


def in_one_parameter(kind: str) -> Any:
    return get_peft_model(
        base(kind), LoraConfig(r=2, target_modules=["q_proj"], target_parameters=EXPERT_STACKS)
    ).double()


def as_layers(kind: str) -> Any:
    model = base(kind)
    model.model.layers[0].mlp.experts = ListedExperts(model.model.layers[0].mlp.experts)
    model.config.model_type = "listed"  # PEFT would take the names for those of checkpoints and convert them
    return get_peft_model(model, LoraConfig(r=2, target_modules=r".*(q_proj|experts\..*_proj\.\d)")).double()


def batches() -> list[dict[str, torch.Tensor]]:
    data = token_rows(items=12)
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    return [{"input_ids": ids[i : i + 4], "labels": labels[i : i + 4]} for i in range(0, 12, 4)]


def curvature_of(
    model: Any, kind: str = "kronecker", data: list[dict[str, torch.Tensor]] | None = None
) -> ImportanceMap:
    importance = estimate_curvature(model, batches() if data is None else data, kind, labels="text").importance
    return ImportanceMap(importance, BaseTheta({name: each.shape for name, each in importance.items()}))


@pytest.mark.parametrize("curvature", ["kronecker", "covariance"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_have_the_curvature_of_layers(kind: str, curvature: str) -> None:
    expected, found = curvature_of(as_layers(kind), curvature), curvature_of(in_one_parameter(kind), curvature)
    assert set(found) == set(expected) and f"{EXPERTS}.down_proj.2" in found
    for name in expected:
        dense = dense_metric(expected.stored(name))
        assert float((dense_metric(found.stored(name)) - dense).norm() / dense.norm()) < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_mixture_that_computes_them_together_they_are_seen_one_by_one_meanwhile(kind: str) -> None:
    model = in_one_parameter(kind)
    config = model.base_model.model.config
    config._experts_implementation = "grouped_mm"
    found, expected = curvature_of(model), curvature_of(in_one_parameter(kind))
    assert config._experts_implementation == "grouped_mm"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name in expected:
        torch.testing.assert_close(dense_metric(found.stored(name)), dense_metric(expected.stored(name)))


@pytest.mark.parametrize(
    ("start", "memory"), [("natural_gradient", "device"), ("natural_gradient", "sketch"), ("contrastive", "cpu")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_their_first_directions_are_those_of_layers(kind: str, start: str, memory: str) -> None:
    listed, stacked = as_layers(kind), in_one_parameter(kind)
    importance = curvature_of(listed)
    ids = batches()[0]["input_ids"]
    before = stacked(input_ids=ids).logits
    for model in (listed, stacked):
        initialize_adapter(model, importance, batches(), kind=start, memory=memory)
    assert torch.equal(stacked(input_ids=ids).logits, before)  # B is zero as ever
    expected = {weight.name: weight.a for weight in adapted_weights(listed)}
    for weight in adapted_weights(stacked):
        a, other = weight.a, expected[weight.name]  # up to the sign of each direction
        torch.testing.assert_close(a.T @ a, other.T @ other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kronecker_penalty_holds_them_as_it_holds_layers(kind: str) -> None:
    listed, stacked = as_layers(kind), in_one_parameter(kind)
    importance = curvature_of(listed)
    torch.manual_seed(1)
    moved = {weight.name: weight for weight in adapted_weights(stacked)}
    for weight in adapted_weights(listed):
        factors = tuple(torch.randn_like(matrix) for matrix in weight.matrices)
        for one in (weight, moved[weight.name]):
            one.put(factors)
    steps = []
    for model in (listed, stacked):
        penalty = QuadraticPenalty(adapted_weights(model), importance, lam=0.5)
        value = penalty.evaluate()
        steps.append(value.value)
    assert float(steps[0]) == pytest.approx(float(steps[1]), rel=1e-6) and float(steps[0]) > 0


def started(data: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A of every weight, by curvature and gradient of a process's share of the data."""
    model = in_one_parameter("qwen3_moe")
    initialize_adapter(model, curvature_of(model, data=data), data)
    return {weight.name: weight.a for weight in adapted_weights(model)}


def test_two_processes_start_them_where_one_does(tmp_path: Path) -> None:
    launch_two("experts_worker.py", str(tmp_path))
    expected, (first, second) = started(batches()), (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, a in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name].T @ first[name], a.T @ a, rtol=1e-4, atol=1e-6)


def test_a_trainer_starts_them_there_and_holds_them(training_arguments: Any, token_data: Any) -> None:
    predicted = {}
    for lam in (0.0, 1e3):
        model = in_one_parameter("qwen3_moe").float()
        importance = curvature_of(copy.deepcopy(model))
        settings = {"init_adapter": "natural_gradient", "init_items": 8, "application": "decoupled"}
        args = training_arguments(max_steps=6, learning_rate=0.02)
        config = ALoRAConfig(lam=lam, **settings)
        ALoRATrainer(model, args, train_dataset=token_data(), importance=importance, alora=config).train()
        experts = [weight for weight in adapted_weights(model) if weight.stack is not None]
        predicted[lam] = float(
            QuadraticPenalty(experts, importance.select([w.name for w in experts]), lam=1.0).evaluate().value
        )
    assert 0 < predicted[1e3] < 0.25 * predicted[0.0]


def test_a_matrix_that_is_named_as_a_parameter_is_that_of_its_layer() -> None:
    by_layer = get_peft_model(base("qwen3_moe"), LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["self_attn.o_proj.weight"])
    by_parameter = get_peft_model(base("qwen3_moe"), config)
    for kind in ("kronecker", "ekfac"):
        expected, found = (
            estimate_curvature(model.double(), batches(), kind).importance for model in (by_layer, by_parameter)
        )
        name = "model.layers.0.self_attn.o_proj"
        torch.testing.assert_close(dense_metric(found[f"{name}.weight"]), dense_metric(expected[name]))


class Used(nn.Module):
    """A module that uses its stack in a way of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stack = way, nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "all at once":
            return torch.einsum("td,ehd->th", x, self.stack)
        if self.way == "one of two unseen":
            return nn.functional.linear(x, self.stack[0]) + (self.stack[1] @ x.T).T
        if self.way == "fails":
            raise RuntimeError("on purpose")
        return x @ self.stack[0] + x @ self.stack[1]


def test_other_uses_are_refused_by_name() -> None:
    for way, error, message in (
        (
            "all at once",
            ALoRAError,
            r"what inner.stack.0 is multiplied by cannot be seen: its module does not use stack",
        ),
        ("one of two unseen", ALoRAError, r"what inner.stack.1 is multiplied by cannot be seen"),
        (
            "the other way round",
            ALoRAError,
            r"inner.stack.0 is multiplied the other way round .* out of target_parameters",
        ),
        ("fails", RuntimeError, "on purpose"),
    ):
        outer = nn.Module()
        outer.inner = Used(way)
        outer.forward = lambda x, outer=outer: outer.inner(x)  # type: ignore[method-assign]
        model = get_peft_model(outer, LoraConfig(r=2, target_modules=[], target_parameters=["inner.stack"]))
        seen: list[AdaptedWeight] = []
        products = Products(adapted_weights(model), lambda weight, x, y, seen=seen: seen.append(weight))
        with pytest.raises(error, match=message):
            model(torch.randn(3, 5))
        products.close()
        assert torch.overrides._get_current_function_mode_stack() == []


def test_llama_4_multiplies_all_at_once_and_is_refused_by_name() -> None:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    shape = TINY | {"intermediate_size_mlp": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    targets = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    model = Llama4ForCausalLM(Llama4TextConfig(**shape, num_local_experts=3))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=targets))
    with pytest.raises(ALoRAError, match="layers.0.feed_forward.experts.down_proj.0 is multiplied by cannot be seen"):
        estimate_curvature(model, batches())


def test_some_of_a_stacks_experts_may_be_watched_alone() -> None:
    """Curvature in parts: those of this part may have nothing to do in a batch."""
    model = in_one_parameter("qwen3_moe")
    whole, parts = (estimate_curvature(model, batches(), parts=parts).importance for parts in (1, 7))
    for name in whole:
        torch.testing.assert_close(dense_metric(parts[name]), dense_metric(whole[name]))
    one = {"input_ids": torch.tensor([[3]])}  # one token has two of three experts
    experts = [weight for weight in adapted_weights(model) if "down_proj" in weight.name]
    seen = []
    for weight in experts:
        products = Products([weight], lambda weight, x, y: seen.append(weight.name))
        model(**one)
        products.close()
    assert len(seen) == 2 and set(seen) < {weight.name for weight in experts}
