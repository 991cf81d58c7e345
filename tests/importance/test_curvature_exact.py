"""Curvature against what it stands for: exact Fisher information, Hessians of KL, and sums over all labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from alora_trainer.importance.kinds.eigenbasis import eigen_side, symmetric
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.recording import curvature, curvature_sides
from alora_trainer.importance.recording.curvature import estimate_curvature
from tests.dense_metric import dense_metric
from tests.importance.per_sequence import Toy, base_weight, squares_in_basis
from tests.importance.test_curvature import batches


def linear(size: int, inner: int, vocabulary: int, weight: torch.Tensor | None = None) -> Any:
    """Logits that are linear in one adapted weight (inner, size)."""
    torch.manual_seed(0)
    layer = nn.Linear(size, inner, bias=False)
    layer.weight.data.zero_() if weight is None else layer.weight.data.copy_(weight)
    toy = Toy(layer, size, vocabulary, inner)
    return get_peft_model(toy.double(), LoraConfig(r=2, target_modules=["body"])).double()


def hessian_of_kl(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Of the mean of KL(p || p_moved) over inputs (N, n), by the weight's movement (mn, mn): no gradient of a sample in it."""
    toy = model.base_model.model
    weight, head = base_weight(model, "body").detach(), toy.head.weight.detach()
    before = (features @ weight.T @ head.T).log_softmax(-1)

    def kl(movement: torch.Tensor) -> torch.Tensor:
        moved = (features @ (weight + movement.view_as(weight)).T @ head.T).log_softmax(-1)
        return (before.exp() * (before - moved)).sum(-1).mean()

    return torch.autograd.functional.hessian(kl, torch.zeros(weight.numel(), dtype=torch.float64))


def test_where_gradients_do_not_depend_on_inputs_k_fac_is_the_exact_fisher_information() -> None:
    """With a weight of zero all labels are alike likely whatever the input: a text that has every pair of an input and a
    label once is the expectation itself, and no sample of it."""
    model = linear(size=3, inner=4, vocabulary=5)
    ids = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    data = [{"input_ids": ids, "labels": ids}]
    exact = hessian_of_kl(model, model.base_model.model.tokens.weight.detach())
    stored = estimate_curvature(model, data, labels="text").importance["body"]
    torch.testing.assert_close(dense_metric(stored), exact, rtol=1e-5, atol=1e-6 * float(exact.norm()))
    # And Omega of EK-FAC is then the product of eigenvalues.
    squares = estimate_curvature(model, data, "ekfac", labels="text").importance["body"]
    torch.testing.assert_close(
        squares.omega_rows(slice(0, 4), torch.float64)[:, :3],
        stored.omega_rows(slice(0, 4), torch.float64)[:, :3],
        rtol=1e-4,
        atol=1e-6 * float(exact.norm()),
    )


def test_with_one_input_and_drawn_labels_it_is_the_exact_fisher_information_but_for_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    model = linear(3, 4, 5, torch.randn(4, 3, generator=generator))
    ids = torch.full((50, 40), 2)
    exact = hessian_of_kl(model, model.base_model.model.tokens.weight.detach()[2:3])
    for kind in ("kronecker", "ekfac"):
        stored = estimate_curvature(model, [{"input_ids": ids}], kind, draws=5).importance["body"]
        found = dense_metric(stored)
        # EK-FAC keeps the diagonal in its basis, and loses the rest: here, only what chance has put there.
        assert float((found - exact).norm() / exact.norm()) < 0.1, kind
        assert stored.measure().trace == pytest.approx(float(exact.trace()), rel=0.05)


def test_more_draws_come_nearer_to_the_sum_over_all_labels(lora_model: Callable[..., Any]) -> None:
    """On a whole model: both of K-FAC's factors, and EK-FAC's Omega in the same basis."""
    model = lora_model(dtype=torch.float64, target_modules=["v_proj"]).eval()
    ids = batches(rows=1, length=4)[0]["input_ids"]
    name = "model.layers.0.self_attn.v_proj"
    covariance, weighted = every_label(model, name, ids)
    errors = []
    for draws in (10, 160):
        found = estimate_curvature(model, [{"input_ids": ids}], draws=draws, seed=draws).importance[name]
        g = found.output_vectors(torch.float64) @ torch.diag(found.parts["output_values"][:-1].double())
        outputs = g @ found.output_vectors(torch.float64).T
        squares = estimate_curvature(model, [{"input_ids": ids}], "ekfac", draws=draws, seed=draws).importance[name]
        expected = squares_in_basis(squares, weighted, transposed=False)
        omega = squares.parts["omega"][:-1, :-1].double()
        errors.append((
            float((outputs - covariance).norm() / covariance.norm()), float((omega - expected).norm() / expected.norm())
        ))  # fmt: skip
    for few, many in zip(*errors, strict=True):
        assert many < 0.2 and many < few / 2  # by chance alone, a quarter


def every_label(model: Any, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """``E[g g']`` a token, and gradients by the weight times the root of their label's probability a token."""
    weight = base_weight(model, name).requires_grad_(True)
    outputs: list[torch.Tensor] = []
    layer = model.base_model.model.get_submodule(name)
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    covariance, gradients = torch.zeros(weight.shape[0], weight.shape[0], dtype=torch.float64), []
    for row in ids:
        outputs.clear()
        predictions = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
        for value in predictions.flatten():
            by_output, by_weight = torch.autograd.grad(value, [outputs[0], weight], retain_graph=True)
            share = value.exp().detach() / ids.numel()
            covariance += share * by_output[0].T @ by_output[0]
            gradients.append(by_weight * share.sqrt())
    handle.remove()
    weight.requires_grad_(False)
    return covariance, gradients


def test_a_sum_is_let_go_before_the_next_one_is_decomposed(
    lora_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lora_model(target_modules=["q_proj", "v_proj", "down_proj"])
    refs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def decompose(moments: Any, *arguments: Any) -> Any:
        refs.extend(weakref.ref(total) for total in moments.sums.values())
        return curvature_sides.decompose(moments, *arguments)

    def eigen_side(*arguments: Any) -> Any:
        alive.append(sum(ref() is not None for ref in refs))
        return kept(*arguments)

    kept = curvature_sides.eigen_side
    monkeypatch.setattr(curvature, "decompose", decompose)
    monkeypatch.setattr(curvature_sides, "eigen_side", eigen_side)
    found: dict[str, InBasis] = estimate_curvature(model, batches(), keep=3).importance
    assert len(found) == 6 and len(refs) == 10  # q and v share their inputs
    assert alive == list(range(9, -1, -1))


def test_no_direction_kept_is_a_scaled_l2_and_all_of_them_is_no_truncation(lora_model: Callable[..., Any]) -> None:
    model, data = lora_model(target_modules=["k_proj"]), batches()
    for kind in ("kronecker", "ekfac", "covariance"):
        none, everything, free = (
            estimate_curvature(model, data, kind, keep=keep).importance["model.layers.0.self_attn.k_proj"]
            for keep in (0, 10**6, None)
        )
        assert none.kept == (0, 0)
        trace, elements = free.measure().trace, none.shape[0] * none.shape[1]
        expected = trace / elements * torch.eye(elements, dtype=torch.float64)
        torch.testing.assert_close(dense_metric(none), expected, rtol=1e-4, atol=0)
        assert all(torch.equal(values, free.parts[part]) for part, values in everything.parts.items())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=8, unique=True),
    st.none() | st.integers(0, 9),
    st.none() | st.floats(0.01, 1),
)
def test_a_diagonals_side_is_that_of_the_matrix(diagonal: list[float], keep: int | None, share: float | None) -> None:
    values = torch.tensor(diagonal, dtype=torch.float64)
    found = curvature_sides._diagonal_side(values, keep, share)
    expected = eigen_side(values.diag(), keep, share)
    assert found.vectors.shape == expected.vectors.shape
    both = [symmetric(one.vectors.double(), one.values) for one in (found, expected)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-12, atol=1e-9)
    assert float(both[0].trace()) == pytest.approx(sum(diagonal))
