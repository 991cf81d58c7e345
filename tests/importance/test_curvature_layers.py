"""Curvature of every kind of layer, model and padding that it knows, and the refusal of those that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.recording import curvature_sides
from alora_trainer.importance.recording.curvature import estimate_curvature
from tests.dense_metric import dense_metric
from tests.importance.per_sequence import Toy, squares_in_basis, text_gradients
from tests.importance.test_curvature import batches


def assert_ekfac_is_explicit(model: Any, name: str, data: list[dict[str, torch.Tensor]], *, transposed: bool) -> None:
    """Omega of a whole and of a part of the bases against gradients of single sequences."""
    model.eval()
    whole, part = (
        estimate_curvature(model, data, "ekfac", labels="text", keep=keep).importance[name] for keep in (None, 3)
    )
    gradients = list(text_gradients(model, name, data))
    tokens = sum(batch["labels"][:, 1:].numel() for batch in data)
    expected = squares_in_basis(whole, gradients, transposed) / tokens
    limit = 1e-5 * float(expected.max())
    torch.testing.assert_close(whole.parts["omega"][:-1, :-1].double(), expected, rtol=1e-4, atol=limit)
    few = squares_in_basis(part, gradients, transposed) / tokens
    torch.testing.assert_close(part.parts["omega"][:-1, :-1].double(), few, rtol=1e-4, atol=limit)
    trace = sum(float(one.double().square().sum()) for one in gradients) / tokens
    for stored in (whole, part):
        assert stored.measure().trace == pytest.approx(trace, rel=1e-4)


def gpt2(**lora: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=40, n_positions=16)).double().eval()
    return get_peft_model(base, LoraConfig(r=2, **lora)).double()


@pytest.mark.parametrize(
    ("target", "transposed"), [("h.1.attn.c_attn", True), ("h.0.mlp.c_proj", True), ("wte", True), ("lm_head", False)]
)
def test_layers_that_store_a_transpose_the_fused_projection_and_tied_weights(target: str, transposed: bool) -> None:
    """The head is tied to the embedding, and yet each is moved by itself."""
    model = gpt2(target_modules=[f"transformer.{target}" if target != "lm_head" else target])
    (name,) = estimate_curvature(model, batches(), keep=1).importance
    if target in ("wte", "lm_head"):  # autograd must not see the other one
        head = model.base_model.model.lm_head
        (head.base_layer if target == "lm_head" else head).weight = nn.Parameter(head.weight.detach().clone())
    assert_ekfac_is_explicit(model, name, batches(), transposed=transposed)


def test_an_embeddings_inputs_are_the_tokens_counts(lora_model: Callable[..., Any], monkeypatch: Any) -> None:
    model, data = lora_model(dtype=torch.float64, target_modules=["embed_tokens"]), batches()
    stored = estimate_curvature(model, data, labels="text", keep=5).importance["model.embed_tokens"]
    counts = torch.cat([batch["input_ids"] for batch in data]).flatten().bincount(minlength=40).double()
    frequency = counts / counts.sum()
    order = frequency.argsort(descending=True, stable=True)
    assert torch.equal(stored.parts["input_vectors"], torch.eye(40)[:, order[:5]])
    expected = torch.cat([frequency[order[:5]], frequency[order[5:]].mean()[None]]).float()
    torch.testing.assert_close(stored.parts["input_values"], expected)
    half = estimate_curvature(model, data, labels="text", share=0.5).importance["model.embed_tokens"]
    kept = half.kept[1]
    assert frequency[order[:kept]].sum() >= 0.5 > frequency[order[: kept - 1]].sum()
    monkeypatch.setattr(curvature_sides, "LARGEST_SIDE", 39)
    assert estimate_curvature(model, data, keep=5).importance
    with pytest.raises(ALoRAError, match=r"model.embed_tokens has 40 tokens, and all .* keep fewer"):
        estimate_curvature(model, data)
    with pytest.raises(ALoRAError, match="lm_head has a side of 40 dimensions, too many to decompose"):
        estimate_curvature(lora_model(target_modules=["lm_head"]), data, keep=5)
    assert estimate_curvature(lora_model(target_modules=["lm_head"]), data, "covariance", keep=5).importance


def test_an_embedding_that_scales_its_columns() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, vocab_size=40, tie_word_embeddings=False,
    )  # fmt: skip
    base = Gemma3ForCausalLM(config).double()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"])).double()
    assert_ekfac_is_explicit(model, "model.embed_tokens", batches(), transposed=True)


class Experts(nn.Module):
    """Each token goes to the expert that its first feature's sign says."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(size, size) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = (x[..., 0] > 0).long()
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            there = chosen == number
            if bool(there.any()):
                out[there] = expert(x[there])
        return x + out


def test_experts_have_the_moments_of_the_tokens_that_they_get() -> None:
    torch.manual_seed(0)
    model = get_peft_model(Toy(Experts(6), 6, 40), LoraConfig(r=2, target_modules=["experts.0", "experts.1"])).double()
    data = batches(rows=8, size=4)
    found = estimate_curvature(model, data, labels="text").importance
    features = model.base_model.model.tokens(torch.cat([b["input_ids"] for b in data])).detach().flatten(0, 1)
    for number in range(2):
        stored = found[f"body.experts.{number}"]
        x = features[(features[:, 0] > 0) == bool(number)]
        values = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
        torch.testing.assert_close(stored.parts["input_values"][:-1].double(), values, rtol=1e-5, atol=1e-7)
        # Tokens do not meet in this model, so that the sum over sequences' tokens is exact.
        gradients = [one for ids in data for row in ids["input_ids"] for one in token_gradients(model, number, row)]
        trace = sum(float(one.square().sum()) for one in gradients) / 32
        ratio = stored.measure().trace / trace
        assert 0.5 < ratio < 2  # gradients and inputs are not independent, but counted alike
    padded = [b | {"attention_mask": torch.tensor([1, 1, 1, 1, 0]).expand(4, -1)} for b in data]
    with pytest.raises(ALoRAError, match=r"body.experts.\d is given other rows than the batch's tokens"):
        estimate_curvature(model, padded)
    with pytest.raises(ALoRAError, match=r"body.experts.\d does not see one row a token"):
        estimate_curvature(model, data, "ekfac")


def token_gradients(model: Any, number: int, ids: torch.Tensor) -> list[torch.Tensor]:
    weight = model.base_model.model.body.experts[number].base_layer.weight.requires_grad_(True)
    losses = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)[0] for loss in losses]
    weight.requires_grad_(False)
    return [one for one in gradients if one is not None]


def assert_alike(found: dict[str, InBasis], expected: dict[str, InBasis], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, stored in expected.items():
        dense = dense_metric(stored)
        difference = float((dense_metric(found[name]) - dense).norm() / dense.norm())
        assert difference < tolerance, (name, difference)


@pytest.mark.parametrize("kind", ["kronecker", "ekfac"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers_changes_nothing(
    lora_model: Callable[..., Any], reentrant: bool, kind: str
) -> None:
    plain = estimate_curvature(lora_model(), batches(), kind).importance
    model = lora_model()
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, stored in estimate_curvature(model, batches(), kind).importance.items():
        assert all(torch.equal(values, plain[name].parts[part]) for part, values in stored.parts.items())


class Recomputed(nn.Module):
    """A layer that is always computed again on the way back, in evaluation, too."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, size), nn.Linear(size, size)
        self.again = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def body(x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.tanh(self.up(x)))

        return checkpoint(body, x, use_reentrant=False) if self.again else body(x)


@pytest.mark.parametrize("kind", ["kronecker", "ekfac", "covariance"])
def test_what_is_computed_again_on_the_way_back_counts_once(kind: str) -> None:
    model = get_peft_model(Toy(Recomputed(6), 6, 40), LoraConfig(r=2, target_modules=["up", "down"]))
    again = estimate_curvature(model, batches(), kind, draws=2).importance
    model.base_model.model.body.again = False
    assert_alike(again, estimate_curvature(model, batches(), kind, draws=2).importance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["kronecker", "ekfac", "covariance"])
def test_models_in_half_precision(lora_model: Callable[..., Any], dtype: torch.dtype, kind: str) -> None:
    """Sums are in float32: what is left is the rounding of what passes through."""
    model = lora_model(dtype=dtype)
    wide = lora_model(dtype=dtype).float()  # the same weights
    found = estimate_curvature(model, batches(), kind, labels="text", keep=6).importance
    assert all(values.dtype == torch.float32 for stored in found.values() for values in stored.parts.values())
    assert_alike(found, estimate_curvature(wide, batches(), kind, labels="text", keep=6).importance, 0.05)


@pytest.mark.parametrize("kind", ["kronecker", "ekfac"])
@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_nothing(lora_model: Callable[..., Any], kind: str, left: bool) -> None:
    """Labels are those of the text: with drawn ones there is nothing to compare, since padding has no draw."""
    model, data = lora_model(target_modules=["q_proj", "down_proj"]), batches()
    padded = []
    for batch in data:
        filler = torch.ones(2, 3, dtype=torch.long)
        parts = {
            "input_ids": [batch["input_ids"], filler],
            "attention_mask": [torch.ones_like(batch["input_ids"]), 0 * filler],
            "labels": [batch["labels"], -100 * filler],
        }
        padded.append({name: torch.cat(both[::-1] if left else both, 1) for name, both in parts.items()})
        if left:  # the first token of the text is not predicted, with padding before it or without
            padded[-1]["labels"][:, 3] = -100
    found = estimate_curvature(model, padded, kind, labels="text", keep=6)
    whole = estimate_curvature(model, data, kind, labels="text", keep=6)
    assert found.tokens == whole.tokens
    assert_alike(found.importance, whole.importance)
    assert estimate_curvature(model, padded, kind, keep=6).tokens == sum(b["input_ids"].numel() for b in data)


class Twice(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def test_a_layer_that_is_used_twice_has_both_uses_moments_and_no_squares() -> None:
    model = get_peft_model(Toy(Twice(6), 6, 40), LoraConfig(r=2, target_modules=["layer"])).double()
    data = batches()
    stored = estimate_curvature(model, data, labels="text").importance["body.layer"]
    toy = model.base_model.model
    x = toy.tokens(torch.cat([b["input_ids"] for b in data])).detach().flatten(0, 1)
    uses = torch.cat([x, torch.tanh(toy.body.layer.base_layer(x)).detach()])
    values = torch.linalg.eigvalsh(uses.T @ uses / len(uses)).flip(0)
    torch.testing.assert_close(stored.parts["input_values"][:-1].double(), values, rtol=1e-5, atol=1e-7)
    with pytest.raises(ALoRAError, match="body.layer is used twice in one pass"):
        estimate_curvature(model, data, "ekfac")


class Pair(nn.Module):
    """Two layers that are given one tensor: the same one, one changed in place, or now one and now another."""

    def __init__(self, size: int, how: str) -> None:
        super().__init__()
        self.one, self.other, self.how, self.calls = nn.Linear(size, size), nn.Linear(size, size), how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        first = self.one(x)
        if self.how == "in place":
            with torch.no_grad():
                x.mul_(2)
        if self.how == "now and then" and self.calls > 1:
            x = x.clone()
        return first + self.other(x)


def test_layers_share_a_tensor_only_if_it_is_the_same_in_every_batch() -> None:
    def build(how: str) -> Any:
        return get_peft_model(Toy(Pair(6, how), 6, 40), LoraConfig(r=2, target_modules=["one", "other"]))

    shared = estimate_curvature(build("always"), batches(), "covariance").importance
    assert (
        shared["body.one"].parts["input_vectors"].data_ptr() == shared["body.other"].parts["input_vectors"].data_ptr()
    )
    with pytest.raises(ALoRAError, match=r"body.other does not share its input with body.one in every batch"):
        estimate_curvature(build("now and then"), batches())
    # Factors in float32 keep a copy of an input in bfloat16, so that autograd minds no change of it.
    half = get_peft_model(Toy(Pair(6, "in place"), 6, 40).bfloat16(), LoraConfig(r=2, target_modules=["one", "other"]))
    changed = estimate_curvature(half, batches(rows=1)).importance
    one, other = (changed[f"body.{name}"].parts["input_values"] for name in ("one", "other"))
    torch.testing.assert_close(other, 4 * one)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base(tmp_path: Path, kind: str) -> None:
    """What passes through its layers is that of the base with the rounded weights."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=40,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    bits: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    found = []
    for settings in ({}, {"quantization_config": BitsAndBytesConfig(**bits), "device_map": "cpu"}):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, **settings)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        found.append(estimate_curvature(model, batches(rows=8, size=8), "ekfac", labels="text", keep=4).importance)
    for name, plain in found[0].items():
        assert plain.shape == found[1][name].shape
        assert found[1][name].measure().trace == pytest.approx(plain.measure().trace, rel=0.2)
