"""An adapter's first directions against dense references in float64: of one weight, without a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.dense import DenseOmega
from alora_trainer.importance.kinds.eigenbasis import symmetric
from alora_trainer.importance.kinds.kronecker import CovarianceOmega, KroneckerOmega
from alora_trainer.trainer.initialization.directions import (
    contrastive_directions,
    default_mean_square,
    leading_right_vectors,
    natural_directions,
    null_space_directions,
)
from alora_trainer.trainer.initialization.general_metric import GeneralMetric
from tests.dense_metric import moments, random_importance

CPU = torch.device("cpu")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for what the eigenvectors, kept in float32, lack in being orthonormal."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=generator(seed), dtype=torch.float64)


def dense_sides(importance, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """G and S with what is added to them, written out."""
    sides = []
    for vectors, values in (
        (importance.output_vectors(torch.float64), importance.output_values.double()),
        (importance.input_vectors(torch.float64), importance.input_values.double()),
    ):
        matrix = symmetric(vectors, values)
        sides.append(matrix + damping * matrix.trace() / len(matrix) * torch.eye(len(matrix), dtype=torch.float64))
    return sides[0], sides[1]


def inverse_root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4))


@given(SHAPES, st.sampled_from(["kronecker", "covariance"]), st.sampled_from([0.001, 0.1, 2.0]))
@settings(max_examples=60, deadline=None)
def test_natural_directions_are_those_of_the_dense_singular_vectors(sizes, kind, damping):
    m, n, k, h, rank = sizes
    rank = min(rank, m, n)
    importance = random_importance(kind, m, n, (min(k, m), min(h, n)), seed=m + 10 * n)
    gradient = random(m, n, seed=3)
    found = natural_directions(gradient, GeneralMetric.of("w", importance, damping, CPU), rank)
    g, s = dense_sides(importance, damping)
    whitened = inverse_root(g) @ gradient @ inverse_root(s)
    # By what they are: two that are nearly as long may stand for each other.
    within = found @ torch.linalg.inv(inverse_root(s))
    close(within @ within.T, torch.eye(rank, dtype=torch.float64))
    close((whitened @ within.T).norm(dim=0), torch.linalg.svdvals(whitened)[:rank])


@given(st.integers(2, 9), st.integers(0, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_contrastive_directions_are_the_leading_generalised_eigenvectors(n, h, rank):
    rank = min(rank, n)
    importance = random_importance("covariance", 4, n, (4, min(h, n)), seed=n)
    domain = moments(n, seed=77)
    a = contrastive_directions(domain, GeneralMetric.of("w", importance, 0.05, CPU), rank)
    _, s = dense_sides(importance, 0.05)
    close(a @ s @ a.T, torch.eye(rank, dtype=torch.float64))
    ratios = torch.linalg.eigvals(torch.linalg.solve(s, domain)).real.sort(descending=True).values[:rank]
    close(a @ domain @ a.T / ratios[0], torch.diag(ratios / ratios[0]))


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_of_a_gradient_of_low_rank_the_other_directions_are_orthonormal_to_it(p, n, rank):
    rank = min(rank, n)
    matrix = torch.outer(random(p, seed=1), random(n, seed=2))
    vectors = leading_right_vectors(matrix, rank)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(rank, dtype=torch.float64), atol=1e-9, rtol=0)
    leading = random(n, seed=2)
    assert abs(float(vectors[:, 0] @ leading / leading.norm())) == pytest.approx(1)
    assert all(float(column[column.abs().argmax()]) > 0 for column in vectors.T)


@given(st.integers(2, 9), st.integers(0, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_null_space_directions_are_where_general_inputs_are_smallest(n, h, rank):
    rank = min(rank, n)
    importance = random_importance("covariance", 4, n, (4, min(h, n)), seed=n)
    a = null_space_directions(GeneralMetric.of("w", importance, 0.1, CPU), rank)
    close(a @ a.T, torch.eye(rank, dtype=torch.float64))
    _, s = dense_sides(importance, 0.0)
    expected = torch.linalg.eigvalsh(s)
    # What is not kept has one number, which may lie above some that are kept.
    if h >= n:
        close((a @ s @ a.T).diagonal() / expected.max(), expected[:rank] / expected.max())
    elif rank <= n - h:
        assert float((a @ importance.input_vectors(torch.float64)).abs().max() if h else 0) < 1e-5


def fall_per_rise(a: torch.Tensor, gradient: torch.Tensor, g: torch.Tensor, s: torch.Tensor) -> float:
    """With A fixed, by how much the best B lowers a linear loss ``<M, B A>`` at ``tr((BA)' G (BA) S) = 1``: exact."""
    inner = a @ s @ a.T
    # With C = G^1/2 B inner^1/2, the rise is |C|^2 and the fall <G^-1/2 M A' inner^-1/2, C>.
    return float((inverse_root(g) @ gradient @ a.T @ inverse_root(inner)).norm())


@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_other_start_learns_more_for_the_same_rise(m, n, rank, seed):
    importance = random_importance("kronecker", m, n, (m, n), seed=seed)
    metric = GeneralMetric.of("w", importance, 1e-6, CPU)
    g, s = dense_sides(importance, 1e-6)
    gradient = random(m, n, seed=seed + 40)
    best = fall_per_rise(natural_directions(gradient, metric, rank), gradient, g, s)
    others = [random(rank, n, seed=one) for one in range(5)]
    others += [torch.linalg.svd(gradient).Vh[:rank], torch.linalg.eigh(s).eigenvectors[:, :rank].T]
    assert all(fall_per_rise(other, gradient, g, s) <= best * (1 + 1e-9) for other in others)


def test_ekfac_has_the_sides_of_the_nearest_sums():
    """Of an Omega of rank one, both are what Kronecker importance says."""
    kronecker = random_importance("kronecker", 5, 6, (3, 4), seed=8)
    ekfac = random_importance("ekfac", 5, 6, (3, 4), seed=8)
    omega = kronecker.omega_rows(slice(0, 4), torch.float32)
    ekfac = type(ekfac)(ekfac.shape, ekfac.parts | {"omega": omega})
    gradient = random(5, 6, seed=1)
    one, other = (natural_directions(gradient, GeneralMetric.of("w", each, 0.1, CPU), 2) for each in (kronecker, ekfac))
    scale = one.norm() / other.norm()
    torch.testing.assert_close(one, other * scale, rtol=1e-4, atol=1e-6)


def test_a_side_that_is_zero_says_nothing():
    importance = random_importance("kronecker", 4, 5, (4, 5), seed=2)
    nothing = torch.zeros_like(importance.output_values)
    silent = KroneckerOmega(importance.shape, importance.parts | {"output_values": nothing})
    gradient = random(4, 5, seed=2)
    found = natural_directions(gradient, GeneralMetric.of("w", silent, 0.1, CPU), 2)
    inputs_alone = CovarianceOmega(
        importance.shape, {key: importance.parts[key] for key in ("input_vectors", "input_values")}
    )
    expected = natural_directions(gradient, GeneralMetric.of("w", inputs_alone, 0.1, CPU), 2)
    torch.testing.assert_close(found, expected)


def test_importance_of_elements_is_refused():
    dense = DenseOmega((2, 2), {"omega": torch.ones(2, 2)})
    with pytest.raises(ALoRAError, match="importance of w is of its elements.*--importance kronecker"):
        GeneralMetric.of("w", dense, 0.1, CPU)


def test_the_default_scale_is_pefts():
    from torch import nn

    torch.manual_seed(0)
    a = torch.empty(400, 50)
    nn.init.kaiming_uniform_(a, a=5**0.5)  # as `peft.tuners.lora.LoraLayer.reset_lora_parameters`
    x = torch.randn(2000, 50)
    measured = float((x @ a.T).square().mean())
    assert measured == pytest.approx(default_mean_square(float(x.square().sum(1).mean()), 50), rel=0.03)
