"""Curvature from passes over text: against gradients by autograd, one sequence at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.kronecker import KroneckerOmega
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.importance.recording.layer_moments import LayerMoments
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from tests.dense_metric import dense_metric
from tests.weights.test_adapter_kinds import convolution_model

TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]


@pytest.fixture
def model(lora_model: Callable[..., Any]) -> Any:
    return lora_model(dtype=torch.float64, target_modules=TARGETS)


def batches(rows: int = 6, length: int = 5, size: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(2, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": ids[i : i + size], "labels": ids[i : i + size].clone()} for i in range(0, rows, size)]


def seen_by(model: Any, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and g (T, .) of one sequence at one layer, with the text's own labels."""
    layer = model.base_model.model.get_submodule(name)
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        kept.extend([inputs[0].detach()[0], probe])
        return output + probe

    handle = layer.register_forward_hook(keep)
    logits = model(input_ids=ids[None]).logits[0, :-1]
    handle.remove()
    loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
    return kept[0], torch.autograd.grad(loss, kept[1])[0][0]


def test_its_progress_is_told_in_both_passes(model: Any, told: Callable[[], list[str]]) -> None:
    estimate_curvature(model, batches(), "ekfac", labels="text")
    estimate_curvature(model, batches(), labels="text", tokens=20)
    lines = [line.partition(",")[0] for line in told()]
    first, second = (
        [f"{what}batches {n} of 3" for n in (1, 2, 3)]
        for what in ("measuring curvature: ", "measuring curvature in its eigenvectors: ")
    )
    assert lines[:6] == [*first, *second]
    assert lines[6:] == [f"measuring curvature: tokens {n} of 20" for n in (8, 16, 24)]


def test_kronecker_factors_are_the_second_moments_of_inputs_and_gradients(model: Any) -> None:
    model.eval()
    data = batches()
    found = estimate_curvature(model, data, labels="text")
    assert (found.tokens, found.batches) == (24, 3)
    for weight in adapted_weights(model):
        pairs = [seen_by(model, weight.name, ids) for batch in data for ids in batch["input_ids"]]
        x, g = (torch.cat(side) for side in zip(*pairs, strict=True))
        expected = torch.kron(g.T @ g / 24, x.T @ x / len(x))
        stored = found.importance[weight.name]
        torch.testing.assert_close(dense_metric(stored), expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


def test_ekfac_is_the_squared_gradient_of_each_sequence_in_the_eigenvectors(model: Any) -> None:
    data = batches()
    whole = estimate_curvature(model, data, "ekfac", labels="text")
    part = estimate_curvature(model, data, "ekfac", labels="text", keep=3)
    for weight in adapted_weights(model):
        base = copy.deepcopy(model)
        parameter = base.base_model.model.get_submodule(weight.name).base_layer.weight.requires_grad_()
        gradients = []
        for batch in data:
            for ids in batch["input_ids"]:
                logits = base(input_ids=ids[None]).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
                gradients.append(torch.autograd.grad(loss, parameter)[0])
        stored = whole.importance[weight.name]
        u, v = stored.output_vectors(torch.float64), stored.input_vectors(torch.float64)
        expected = sum((u.T @ one @ v).square() for one in gradients) / 24
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(
            stored.parts["omega"][:-1, :-1].double(), expected, rtol=1e-4, atol=1e-6 * float(expected.max())
        )
        total = sum(float(one.square().sum()) for one in gradients) / 24
        for found in (stored, part.importance[weight.name]):  # what is not kept is still counted
            assert found.measure().trace == pytest.approx(total, rel=1e-4)


def test_layers_with_one_input_share_its_basis_and_others_do_not(model: Any) -> None:
    found = estimate_curvature(model, batches(), keep=4).importance
    for layer in range(2):
        q, k, v, down = (found[f"model.layers.{layer}.{name}"] for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"
        ))  # fmt: skip
        assert torch.equal(q.parts["input_vectors"], k.parts["input_vectors"])
        assert torch.equal(q.parts["input_vectors"], v.parts["input_vectors"])
        assert down.shape[1] != q.shape[1]  # another input, of another size
    one, other = (found[f"model.layers.{layer}.self_attn.q_proj"].parts["input_vectors"] for layer in range(2))
    assert one.shape == other.shape and not torch.equal(one, other)


def test_sampled_labels_repeat_by_seed_and_tend_to_the_expectation(model: Any) -> None:
    data = batches()
    name = "model.layers.1.self_attn.q_proj"

    def traces(**settings: Any) -> float:
        return estimate_curvature(model, data, **settings).importance[name].measure().trace

    assert traces(seed=1) == traces(seed=1) != traces(seed=2)
    many, others = traces(seed=1, draws=40), traces(seed=2, draws=40)
    assert many == pytest.approx(others, rel=0.2)


def test_batches_and_padding_do_not_matter(model: Any) -> None:
    one = estimate_curvature(model, batches(size=1), labels="text").importance
    together = estimate_curvature(model, batches(size=6), labels="text").importance
    padded = []
    for batch in batches(size=3):
        filler = torch.ones(3, 4, dtype=torch.long)
        padded.append({
            "input_ids": torch.cat([batch["input_ids"], filler], 1),
            "attention_mask": torch.cat([torch.ones_like(batch["input_ids"]), 0 * filler], 1),
            "labels": torch.cat([batch["labels"], -100 * filler], 1),
        })  # fmt: skip
    beside = estimate_curvature(model, padded, labels="text").importance
    for name, stored in one.items():
        expected = dense_metric(stored)
        for other in (together[name], beside[name]):
            torch.testing.assert_close(dense_metric(other), expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


def test_the_inputs_covariance_has_the_gradients_mean_for_its_scale(model: Any) -> None:
    found = estimate_curvature(model, batches(), "covariance", labels="text").importance
    both = estimate_curvature(model, batches(), labels="text").importance
    for name, stored in found.items():
        kronecker = both[name]
        assert isinstance(kronecker, KroneckerOmega)
        m = stored.shape[0]
        mean = float(kronecker.output_values[:-1].double().sum()) / m
        expected = mean * dense_metric(kronecker_with_identity(kronecker))
        torch.testing.assert_close(dense_metric(stored), expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


def kronecker_with_identity(stored: KroneckerOmega) -> KroneckerOmega:
    parts = {"output_vectors": torch.zeros(stored.shape[0], 0), "output_values": torch.ones(1)}
    return KroneckerOmega(stored.shape, stored.parts | parts)


def test_it_predicts_the_rise_of_kl_by_small_movements_of_one_layer(model: Any) -> None:
    """Behind the last layer's down_proj is nothing but the norm and the head, and tokens do not meet there."""
    data = batches(rows=20, length=6, size=10)
    name = "model.layers.1.mlp.down_proj"
    ratios = []
    found = {kind: estimate_curvature(model, data, kind, draws=5).importance[name] for kind in ("ekfac", "kronecker")}
    layer = model.base_model.model.get_submodule(name).base_layer
    for kind, stored in found.items():
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            movement = 1e-3 * torch.randn(stored.shape, generator=generator, dtype=torch.float64)
            measured = kl_of(model, layer, movement, data)
            predicted = 0.5 * float((stored.apply(movement) * movement).sum())
            ratios.append(predicted / measured)
            assert 0.5 < ratios[-1] < 2, (kind, ratios[-1])


def kl_of(model: Any, layer: Any, movement: torch.Tensor, data: list[dict[str, torch.Tensor]]) -> float:
    """KL(p_base || p) in nats a token, of moving one layer's weight."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in data:
            base = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
            layer.weight += movement
            moved = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
            layer.weight -= movement
            total += float((base.exp() * (base - moved)).sum())
            count += batch["input_ids"].numel()
    return total / count


def test_what_it_cannot_do_is_refused(
    lora_model: Callable[..., Any], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings, message in (
        ({"kind": "spectral"}, "kind='spectral' is unknown: use one of kronecker, ekfac, covariance"),
        ({"labels": "given"}, "labels='given' is unknown"),
        ({"location": "gpu"}, "location='gpu' is unknown: use one of device, cpu"),
        ({"draws": 0}, "draws=0"),
        ({"keep": -1}, "keep=-1 must be at least 0"),
        ({"tokens": 0}, "tokens=0 must be at least 1"),
        ({"share": 0.0}, "share=0.0 must be more than 0"),
        ({"share": 1.5}, "share=1.5 must be more than 0 and at most 1"),
        ({"draws": 2, "labels": "text"}, "draws=2"),
    ):
        with pytest.raises(ALoRAError, match=message):
            estimate_curvature(model, batches(), **settings)  # type: ignore[arg-type]
    with pytest.raises(ALoRAError, match="at least one token"):
        estimate_curvature(model, [])
    with pytest.raises(
        ALoRAError, match="curvature knows linear layers, experts and embeddings, and first is a Conv2d"
    ):
        estimate_curvature(convolution_model(), batches())
    with pytest.raises(ALoRAError, match=r"attention_mask is of shape \(1, 1, 2, 2\)"):
        estimate_curvature(model, [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 1, 2, 2)}])
    with pytest.raises(ALoRAError, match="its batches have none: sample them"):
        estimate_curvature(model, [{"input_ids": torch.ones(1, 2).long()}], labels="text")
    with pytest.raises(ALoRAError, match="go through the text more than once"):
        estimate_curvature(model, iter(batches()), "ekfac")
    with monkeypatch.context() as patched, pytest.raises(ALoRAError, match="is spread over processes"):
        patched.setattr(AdaptedWeight, "is_sharded", True)
        estimate_curvature(model, batches())
    unused = LayerMoments(adapted_weights(model), outputs=True, location="device")
    with pytest.raises(ALoRAError, match="nothing has passed through model.layers.0.self_attn.q_proj"):
        unused.check_seen()
    assert not any(module._forward_hooks for module in model.modules())
