"""Importance in a basis as a penalty: value, gradients and the decoupled update against dense float64 references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.reading import verify_map
from alora_trainer.importance.kinds.ekfac import EkfacOmega
from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import HalfKroneckerOmega
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.backends import pull as elementwise_pull
from alora_trainer.penalty.backends.choice import choose
from alora_trainer.penalty.backends.in_basis import basis_penalty, pull_in_basis
from alora_trainer.weights import row_blocks
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.model_weights import present_theta
from alora_trainer.weights.steps import Factors, movement_factors
from tests.dense_metric import dense_metric, random_importance

KINDS = ["kronecker", "ekfac", "covariance"]
shapes: dict[str, Any] = {
    "kind": st.sampled_from(KINDS),
    "m": st.integers(1, 9),
    "n": st.integers(1, 9),
    "r": st.integers(1, 4),
    "kept": st.tuples(st.integers(0, 9), st.integers(0, 9)),
    "seed": st.integers(0, 2**20),
}


class Weight:
    """What a decoupled update needs of an adapted weight."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        self.parameter_a, self.parameter_b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.scaling, self.dtype, self.device = scaling, a.dtype, a.device

    a = property(lambda self: self.parameter_a.detach())
    b = property(lambda self: self.parameter_b.detach())


def made_factors(m: int, n: int, r: int, seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """A, B, A*, B*."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((r, n), (m, r), (r, n), (m, r))
    return [torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@settings(max_examples=40, deadline=None)
@given(block=st.integers(1, 40), **shapes)
def test_value_and_gradients_equal_autograd_through_the_dense_metric(
    dtype: torch.dtype, tolerance: float, block: int, kind: str, m: int, n: int, r: int, kept: Any, seed: int
) -> None:
    stored = random_importance(kind, m, n, kept, seed)
    a, b, a_star, b_star = made_factors(m, n, r, seed, dtype)
    size, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, block
    try:
        result = basis_penalty(stored, movement_factors(a_star, b_star, a, b, 1.7), a, b, 1.7)
    finally:
        row_blocks.BLOCK_ELEMENTS = size
    wide_a, wide_b = (x.double().requires_grad_() for x in (a, b))
    drift = (1.7 * (wide_b @ wide_a - b_star.double() @ a_star.double())).flatten()
    value = drift @ dense_metric(stored) @ drift
    value.backward()
    assert wide_a.grad is not None and wide_b.grad is not None
    scale = float(dense_metric(stored).norm())
    assert float(result.value) == pytest.approx(value.item(), rel=tolerance, abs=tolerance * scale)
    torch.testing.assert_close(result.gradient_a.double(), wide_a.grad, rtol=tolerance, atol=10 * tolerance * scale)
    torch.testing.assert_close(result.gradient_b.double(), wide_b.grad, rtol=tolerance, atol=10 * tolerance * scale)


def implicit_step(metric: torch.Tensor, a: torch.Tensor, b: torch.Tensor, target: torch.Tensor, strengths: Any) -> Any:
    """B, then A: each the exact minimiser of ``P + |d|**2 / 2 t``, all of its elements at once."""
    (m, r), n, s = b.shape, a.shape[1], 1.7
    for which, strength in ((1, strengths[1]), (0, strengths[0])):
        factor = (a, b)[which]

        def drift(moved: torch.Tensor, which: int = which, a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            own = (moved.view(r, n), b) if which == 0 else (a, moved.view(m, r))
            return (s * own[1] @ own[0] - target).flatten()

        jacobian = torch.autograd.functional.jacobian(drift, factor.flatten())
        hessian = 2 * jacobian.T @ metric @ jacobian
        gradient = 2 * jacobian.T @ metric @ drift(factor.flatten())
        step = torch.linalg.solve(torch.eye(len(hessian), dtype=torch.float64) / strength + hessian, gradient)
        moved = factor - step.view_as(factor)
        a, b = (moved, b) if which == 0 else (a, moved)
    return a, b


@settings(max_examples=40, deadline=None)
@given(exponent=st.floats(-5, 2), **shapes)
def test_the_decoupled_update_is_the_implicit_step(
    exponent: float, kind: str, m: int, n: int, r: int, kept: Any, seed: int
) -> None:
    stored = random_importance(kind, m, n, kept, seed)
    a, b, a_star, b_star = made_factors(m, n, r, seed)
    weight, metric, target = Weight(a, b, 1.7), dense_metric(stored), 1.7 * b_star @ a_star
    strengths = (10.0**exponent, 3 * 10.0**exponent)
    new_a, new_b = implicit_step(metric, a, b, target, strengths)
    drift = lambda x, y: movement_factors(a_star, b_star, x, y, 1.7)  # noqa: E731
    value = pull_in_basis(weight, stored, drift, *strengths)  # type: ignore[arg-type]
    before = (1.7 * b @ a - target).flatten()
    assert float(value) == pytest.approx(float(before @ metric @ before), rel=1e-5, abs=1e-7)
    # What is left is the ridge that keeps float64's systems solvable, and the float32 that the basis is kept in.
    assert float((weight.b - new_b).norm()) <= 1e-3 * float(new_b.norm())
    assert float((weight.a - new_a).norm()) <= 1e-3 * float(new_a.norm())


def test_unit_vectors_for_bases_are_element_wise_importance() -> None:
    """The one idea's first case: the same value, gradients and update as today's maps."""
    m, n, r = 5, 6, 2
    omega = torch.rand(m, n, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(m + 1, n + 1)
    padded[:m, :n] = omega
    rotated: InBasis = EkfacOmega(
        (m, n), {"output_vectors": torch.eye(m), "input_vectors": torch.eye(n), "omega": padded}
    )
    plain = store(omega)
    assert isinstance(plain, Elementwise)
    a, b, a_star, b_star = made_factors(m, n, r, 1)
    factors = Factors(torch.cat([b, -b_star], 1), torch.cat([a, a_star]))
    one, other = (choose(stored, "cpu", dtype=torch.float64)(stored, factors, a, b, 1.0) for stored in (rotated, plain))
    torch.testing.assert_close(one.value, other.value)
    torch.testing.assert_close(one.gradient_a, other.gradient_a)
    torch.testing.assert_close(one.gradient_b, other.gradient_b)
    weights = [Weight(a, b, 1.0) for _ in range(2)]
    drift = lambda x, y: movement_factors(a_star, b_star, x, y, 1.0)  # noqa: E731
    pull_in_basis(weights[0], rotated, drift, 0.3, 0.2)  # type: ignore[arg-type]
    elementwise_pull.pull_back(weights[1], plain, drift, 0.3, 0.2)  # type: ignore[arg-type]
    torch.testing.assert_close(weights[0].a, weights[1].a)
    torch.testing.assert_close(weights[0].b, weights[1].b)


@pytest.mark.parametrize("kept", [(3, 2), (5, 6), (0, 0)])
def test_an_omega_of_rank_one_is_a_kronecker_product(kept: tuple[int, int]) -> None:
    """The one idea's second case, and for an adapter that is held to the base as well as to where it was recorded."""
    m, n, r = 5, 6, 2
    product = random_importance("kronecker", m, n, kept, 3)
    bases = {name: part for name, part in product.parts.items() if name.endswith("_vectors")}
    free = EkfacOmega((m, n), bases | {"omega": product.omega_rows(slice(0, kept[0] + 1), torch.float32)})
    a, b, a_star, b_star = made_factors(m, n, r, 1)
    for drift in (Factors(1.7 * b, a), movement_factors(a_star, b_star, a, b, 1.7)):
        one, other = (basis_penalty(stored, drift, a, b, 1.7) for stored in (product, free))
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * float(one.gradient_b.norm())}
        torch.testing.assert_close(one.value, other.value, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(one.gradient_a, other.gradient_a, **tolerance)
        torch.testing.assert_close(one.gradient_b, other.gradient_b, **tolerance)


def test_a_basis_in_bfloat16_is_read_in_blocks_of_its_rows() -> None:
    """Without a copy in float32, and with the metric's own value and gradients, which its rounded directions make, too."""
    m, n, r = 9, 7, 2
    half = random_importance("kronecker", m, n, (4, 3), 5).convert(HalfKroneckerOmega)
    a, b, _, _ = made_factors(m, n, r, 1)
    size, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, 8
    try:
        result = basis_penalty(half, Factors(1.7 * b, a), a, b, 1.7)
    finally:
        row_blocks.BLOCK_ELEMENTS = size
    movement = 1.7 * b @ a
    product = half.apply(movement)
    torch.testing.assert_close(result.value, (product * movement).sum())
    torch.testing.assert_close(result.gradient_a, 2 * 1.7 * b.T @ product)
    torch.testing.assert_close(result.gradient_b, 2 * 1.7 * product @ a.T)


# ---- whole maps and trainings ----


def map_in_basis(model: Any, kind: str, kept: int = 3) -> ImportanceMap:
    weights = adapted_weights(model)
    omega = {w.name: random_importance(kind, *w.shape, (kept, kept), 7 * i) for i, w in enumerate(weights)}
    return ImportanceMap(omega, present_theta(model, weights))


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_saved_checked_and_read_in_either_format(lora_model: Any, tmp_path: Path, kind: str) -> None:
    importance = map_in_basis(lora_model(moved=True), kind)
    importance.save_pretrained(tmp_path / "map")
    config = verify_map(tmp_path / "map")
    assert (config.kind, config.storage) == (kind, kind)
    assert ImportanceMap.from_pretrained(tmp_path / "map") == importance
    half = ImportanceMap.from_pretrained(tmp_path / "map", storage=f"{kind}_bfloat16")
    assert half.nbytes < 0.65 * importance.nbytes
    half.save_pretrained(tmp_path / "half")
    again = ImportanceMap.from_pretrained(tmp_path / "half")
    assert again == half
    for name in importance:  # what bfloat16 loses is in its own measure
        assert again.layer_norms[name] == pytest.approx(importance.layer_norms[name], rel=1e-6)
    with pytest.raises(ALoRAError, match="cannot be converted to 'log8', which keeps elementwise importance"):
        importance.convert("log8")


@pytest.mark.parametrize(
    ("kind", "application"), [("kronecker", "coupled"), ("kronecker", "decoupled"), ("ekfac", "decoupled")]
)
def test_a_training_is_held_by_it(
    lora_model: Any, token_data: Any, training_arguments: Any, kind: str, application: str
) -> None:
    """The drift, measured by the metric itself, is far smaller than that of the same training without it."""
    drifts = []
    for lam in (0.0, 30.0):
        model = lora_model(moved=True)
        importance = map_in_basis(model, kind)
        config = ALoRAConfig(lam=lam, application=application, layer_weights="none")
        trainer = ALoRATrainer(
            model, training_arguments(max_steps=6), train_dataset=token_data(), importance=importance, alora=config
        )
        trainer.train()
        weights = adapted_weights(model)
        drifts.append(float(QuadraticPenalty(weights, importance, lam=1.0, layer_weights="none").evaluate().value))
        logged = [entry["penalty"] for entry in trainer.state.log_history if "penalty" in entry]
        assert (max(logged) > 0) == (lam > 0)
    assert drifts[1] < 0.5 * drifts[0]
