"""`initialize_adapter` on tiny models: gradients by hooks, scale, what is refused, and that the base is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alora_trainer import ImportanceMap, initialize_adapter
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.trainer.initialization import domain_passes
from alora_trainer.trainer.initialization.directions import contrastive_directions, natural_directions
from alora_trainer.trainer.initialization.general_metric import GeneralMetric
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.theta import BaseTheta
from tests.basis_map import basis_map
from tests.launching import launch_two
from tests.tiny_training import tiny_llama, token_rows, with_lora

TARGETS = ["q_proj", "v_proj", "down_proj"]
BASE = tiny_llama()


def adapter(**settings: Any) -> Any:
    return with_lora(BASE, **({"target_modules": TARGETS} | settings))


def domain_batches(rows: int = 12, size: int = 4, *, padded: bool = False) -> list[dict[str, torch.Tensor]]:
    data = token_rows(items=rows)
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    mask = torch.ones_like(ids)
    if padded:
        mask[1::2, 6:] = 0
        ids, labels = ids.masked_fill(mask == 0, 1), labels.masked_fill(mask == 0, -100)
    columns = {"input_ids": ids, "labels": labels} | ({"attention_mask": mask} if padded else {})
    return [{key: value[i : i + size] for key, value in columns.items()} for i in range(0, rows, size)]


def full_gradients(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Of the mean loss over all predicted tokens, by autograd of the base model's own weights."""
    model = copy.deepcopy(BASE).double().eval()
    total = 0
    for batch in batches:
        count = int((batch["labels"][:, 1:] != -100).sum())
        (model(**batch).loss * count).backward()
        total += count
    return {name: p.grad / total for name, p in model.named_parameters() if p.grad is not None}


def layer_inputs(batches: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """What a layer of the base model is given (tokens, n), without padding."""
    model = copy.deepcopy(BASE).double().eval()
    rows: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].detach()))
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool() for batch in batches]
    for batch in batches:
        model(**batch)
    return torch.cat([found[mask] for found, mask in zip(rows, masks, strict=True)])


def curvature_of(model: Any) -> ImportanceMap:
    estimate = estimate_curvature(model, domain_batches(), keep=6)
    theta = BaseTheta({name: each.shape for name, each in estimate.importance.items()})
    return ImportanceMap(estimate.importance, theta)


def metric_of(weight: AdaptedWeight, importance: Any, damping: float) -> GeneralMetric:
    return GeneralMetric.of(weight.name, importance.stored(weight.name), damping, torch.device("cpu"))


def assert_same_directions(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Up to their common scale."""
    found, expected = (a.double() / a.double().norm() for a in (found, expected))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", ["device", "cpu", "sketch"])
@pytest.mark.parametrize("padded", [False, True])
def test_natural_gradient_is_that_of_the_dense_gradient(memory, padded):
    model, importance, batches = adapter(r=2), basis_map(), domain_batches(padded=padded)
    facts = initialize_adapter(model, importance, batches, damping=0.1, memory=memory)
    gradients = full_gradients(batches)
    for weight in adapted_weights(model):
        gradient, metric = gradients[f"{weight.name}.weight"], metric_of(weight, importance, 0.1)
        assert_same_directions(weight.a, natural_directions(gradient, metric, 2))
        assert not weight.b.any()
    assert (facts.kind, facts.items, facts.memory) == ("natural_gradient", 12, memory)
    assert facts.tokens == sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)


@pytest.mark.parametrize("padded", [False, True])
def test_contrastive_is_that_of_the_dense_moments(padded):
    model, importance, batches = adapter(r=2), basis_map("covariance"), domain_batches(padded=padded)
    initialize_adapter(model, importance, batches, "contrastive", damping=0.1)
    for weight in adapted_weights(model):
        x = layer_inputs(batches, weight.name)
        expected = contrastive_directions(x.T @ x / len(x), metric_of(weight, importance, 0.1), 2)
        assert_same_directions(weight.a, expected)


@pytest.mark.parametrize("memory", ["device", "sketch"])
def test_the_gradient_alone_is_that_of_the_dense_singular_vectors(memory):
    model, batches = adapter(r=2), domain_batches()
    initialize_adapter(model, basis_map(), batches, "gradient", memory=memory)
    gradients = full_gradients(batches)
    for weight in adapted_weights(model):
        right = torch.linalg.svd(gradients[f"{weight.name}.weight"]).Vh[:2]
        expected = right * (right * weight.a.double()).sum(1).sign()[:, None]
        assert_same_directions(weight.a, expected)


@pytest.mark.parametrize("kind", ["natural_gradient", "contrastive", "null_space"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_scale_is_that_of_the_default_start(kind, padded):
    model, batches = adapter(), domain_batches(padded=padded)
    initialize_adapter(model, basis_map(), batches, kind)
    for weight in adapted_weights(model):
        x = layer_inputs(batches, weight.name)
        expected = x.square().sum(1).mean() / (3 * weight.shape[1])
        assert float((x @ weight.a.double().T).square().mean()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["natural_gradient", "contrastive"])
def test_outputs_stay_bit_for_bit_what_they_were(kind):
    model, batches = adapter(), domain_batches()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy({name: p for name, p in model.named_parameters() if "lora_A" not in name})
    with torch.no_grad():
        expected = BASE(input_ids=batches[0]["input_ids"]).logits
    initialize_adapter(model, basis_map(), batches, kind)
    with torch.no_grad():
        assert torch.equal(model(input_ids=batches[0]["input_ids"]).logits, expected)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert all(p.grad is None for p in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_no_random_number_is_used(lora_model):
    state, found = torch.get_rng_state(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = adapter()
        for weight in adapted_weights(model):
            torch.nn.init.normal_(weight.parameter_a)
        drawn = torch.get_rng_state()
        initialize_adapter(model, basis_map(), domain_batches(), memory="sketch")
        assert torch.equal(torch.get_rng_state(), drawn)
        found.append([weight.a.clone() for weight in adapted_weights(model)])
    torch.set_rng_state(state)
    assert all(map(torch.equal, *found))


def test_batches_may_be_cut_otherwise():
    one, other = adapter(), adapter()
    first = initialize_adapter(one, basis_map(), domain_batches(size=4))
    second = initialize_adapter(other, basis_map(), domain_batches(size=3))
    for weight, same in zip(adapted_weights(one), adapted_weights(other), strict=True):
        assert_same_directions(weight.a, same.a)
    assert first == second


def test_ranks_may_differ_and_rslora_keeps_its_scaling():
    model = adapter(rank_pattern={"v_proj": 6, "layers.1.mlp.down_proj": 1}, use_rslora=True)
    importance, batches = basis_map(), domain_batches()
    initialize_adapter(model, importance, batches, damping=0.1)
    gradients = full_gradients(batches)
    assert {weight.rank for weight in adapted_weights(model)} == {1, 3, 6}
    for weight in adapted_weights(model):
        expected = natural_directions(
            gradients[f"{weight.name}.weight"], metric_of(weight, importance, 0.1), weight.rank
        )
        assert_same_directions(weight.a[:3], expected[:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, single = adapter(dtype=dtype), adapter()
    for each in (model, single):
        initialize_adapter(each, basis_map(), domain_batches(), damping=0.1)
    for weight, expected in zip(adapted_weights(model), adapted_weights(single), strict=True):
        assert weight.a.dtype == dtype and torch.isfinite(weight.a).all()
        cosine = torch.cosine_similarity(weight.a[0].float(), expected.a[0], dim=0)
        assert float(cosine.abs()) > 0.98


def test_fewer_items_than_there_are():
    facts = initialize_adapter(adapter(), basis_map(), iter(domain_batches(size=4)), items=5)
    assert facts.items == 8  # batches are taken whole


def test_conv1d_and_fused_layers(gpt2_model):
    model = gpt2_model
    batches = domain_batches()
    importance = curvature_of(model)
    initialize_adapter(model, importance, batches, damping=0.1)
    base = copy.deepcopy(model).unload().double().eval()
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    for batch in batches:
        (base(**batch).loss * int((batch["labels"][:, 1:] != -100).sum())).backward()
    for weight in adapted_weights(model):
        gradient = base.get_submodule(weight.name).weight.grad.T  # Conv1D keeps the transpose
        expected = natural_directions(gradient, metric_of(weight, importance, 0.1), weight.rank)
        assert_same_directions(weight.a, expected, 1e-3)


@pytest.fixture
def gpt2_model() -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0)
    lora = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return get_peft_model(GPT2LMHeadModel(config), lora)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"kind": "natural"}, "kind='natural' is unknown: use one of 'natural_gradient', 'contrastive'"),
        ({}, {"damping": 0}, "damping=0 must be a positive number"),
        ({}, {"items": 0}, "items=0 must be at least 1"),
        ({}, {"kind": "contrastive", "memory": "sketch"}, "a sketch is of gradients"),
        ({"moved": True}, {}, "is not fresh \\(its B is not zero\\)"),
        ({"r": 20}, {}, "q_proj has 16 inputs, and a rank of 20: lower its rank"),
        ({"target_modules": ["q_proj", "k_proj"]}, {}, "no importance of .*k_proj"),
        ({"target_modules": ["k_proj"]}, {"missing": "free"}, "none of the adapted weights"),
    ],
)
def test_what_is_refused(change, settings, message):
    with pytest.raises(ALoRAError, match=message):
        initialize_adapter(adapter(**change), basis_map(), domain_batches(), **settings)


def test_what_the_map_does_not_have_stays_as_it_is():
    model = adapter(target_modules=["q_proj", "k_proj"])
    before = {weight.name: weight.a.clone() for weight in adapted_weights(model)}
    initialize_adapter(model, basis_map(), domain_batches(), missing="free")
    assert {w.name for w in adapted_weights(model) if torch.equal(w.a, before[w.name])} == {
        f"model.layers.{block}.self_attn.k_proj" for block in (0, 1)
    }


def test_embeddings_are_refused_by_name():
    model = adapter(target_modules=["embed_tokens"])
    with pytest.raises(
        ALoRAError, match="chosen for linear layers and experts, and model.embed_tokens is a Embedding: leave it"
    ):
        initialize_adapter(model, curvature_of(model), domain_batches())


def test_a_map_of_elements_is_refused_before_the_domain_is_passed_over(monkeypatch):
    model = adapter()
    shapes = {weight.name: weight.shape for weight in adapted_weights(model)}
    elements = ImportanceMap({name: torch.ones(shape) for name, shape in shapes.items()}, BaseTheta(shapes))
    initialize_adapter(adapter(), elements, domain_batches(), kind="gradient")  # general text says nothing of it
    monkeypatch.setattr(domain_passes.Domain, "passed", lambda *_: pytest.fail("a pass was made"))
    for kind in ("natural_gradient", "contrastive", "null_space"):
        with pytest.raises(ALoRAError, match="is of its elements"):
            initialize_adapter(model, elements, domain_batches(), kind=kind)


def test_batches_that_say_nothing_are_refused():
    batches = domain_batches()
    with pytest.raises(ALoRAError, match="there is no item of the domain"):
        initialize_adapter(adapter(), basis_map(), [])
    with pytest.raises(ALoRAError, match="have no labels"):
        initialize_adapter(adapter(), basis_map(), [{"input_ids": batches[0]["input_ids"]}])
    ignored = batches[0] | {"labels": torch.full_like(batches[0]["labels"], -100)}
    with pytest.raises(ALoRAError, match="(?s)(does not depend on|not finite)"):
        initialize_adapter(adapter(), basis_map(), [ignored])


def test_a_process_without_items_is_refused(monkeypatch):
    monkeypatch.setattr(domain_passes, "together", lambda own: {**own, 1: 0})
    with pytest.raises(ALoRAError, match="of 2 processes some have none: raise init_items"):
        initialize_adapter(adapter(), basis_map(), domain_batches())


def test_two_processes_find_what_one_finds(tmp_path):
    launch_two("initialization_worker.py", str(tmp_path))
    for kind in ("natural_gradient", "sketch", "contrastive"):
        model = adapter()
        facts = initialize_like_the_worker(model, kind, domain_batches())
        ranks = [torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in (0, 1)]
        assert ranks[0]["facts"] == ranks[1]["facts"] == vars(facts)
        for weight in adapted_weights(model):
            assert torch.equal(ranks[0]["a"][weight.name], ranks[1]["a"][weight.name])
            assert_same_directions(ranks[0]["a"][weight.name], weight.a)


def initialize_like_the_worker(model: Any, kind: str, batches: list[dict[str, torch.Tensor]]) -> Any:
    settings = {"kind": "natural_gradient", "memory": "sketch"} if kind == "sketch" else {"kind": kind}
    return initialize_adapter(model, basis_map(), batches, **settings)


def test_how_far_it_is_is_told(told: Callable[[], list[str]]) -> None:
    """Many items through a large model take minutes."""
    for kind, passes in (("natural_gradient", ["gradients", "scale"]), ("contrastive", ["inputs"])):
        before = len(told())
        initialize_adapter(adapter(), basis_map(), domain_batches(), kind=kind)
        assert [line.split(",")[0] for line in told()[before:] if "3 of 3" in line] == [
            f"choosing first directions: {what}: batches 3 of 3" for what in passes
        ]
