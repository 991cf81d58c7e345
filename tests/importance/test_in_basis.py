"""Importance in a basis against dense float64 references: measures, products, sums, and what its files may hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.eigenbasis import eigen_side, symmetric
from alora_trainer.importance.kinds.ekfac import EkfacOmega, uniform_ekfac
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import (
    CovarianceOmega,
    HalfKroneckerOmega,
    KroneckerOmega,
    uniform_covariance,
    uniform_kronecker,
)
from tests.dense_metric import dense_metric, moments, random_importance

KINDS = ("kronecker", "ekfac", "covariance")
cases = st.builds(
    random_importance,
    kind=st.sampled_from(KINDS),
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    kept=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    seed=st.integers(0, 1000),
)


@settings(max_examples=40, deadline=None)
@given(stored=cases)
def test_measure_diagonal_and_product_are_those_of_the_dense_metric(stored: InBasis) -> None:
    metric, (m, n) = dense_metric(stored), stored.shape
    measure = stored.measure()
    assert measure.trace == pytest.approx(float(metric.trace()), rel=1e-5)
    assert measure.norm == pytest.approx(float(metric.norm()), rel=1e-5)
    assert measure.least >= 0
    torch.testing.assert_close(stored.diagonal().double(), metric.diagonal().view(m, n), rtol=1e-4, atol=1e-5)
    movement = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = (metric @ movement.flatten()).view(m, n)
    torch.testing.assert_close(stored.apply(movement), expected, rtol=1e-4, atol=1e-5)


def test_all_directions_kept_is_the_matrix_itself_and_none_its_mean() -> None:
    matrix = moments(6, seed=3)
    whole, nothing = eigen_side(matrix), eigen_side(matrix, 0)
    torch.testing.assert_close(symmetric(whole.vectors, whole.values), matrix)
    torch.testing.assert_close(
        symmetric(nothing.vectors, nothing.values), matrix.trace() / 6 * torch.eye(6, dtype=torch.float64)
    )
    for keep in range(7):  # whatever is kept, the trace is
        side = eigen_side(matrix, keep)
        assert float(symmetric(side.vectors, side.values).trace()) == pytest.approx(float(matrix.trace()))
        assert side.mean(6) == pytest.approx(float(matrix.trace()) / 6)


def test_a_share_of_the_trace_keeps_no_more_directions_than_it_needs() -> None:
    matrix = torch.diag(torch.tensor([1.0, 8.0, 1.0, 6.0], dtype=torch.float64))
    for share, kept in ((0.4, 1), (0.5, 1), (0.51, 2), (14 / 16, 2), (0.9, 3), (1.0, 4)):
        assert eigen_side(matrix, share=share).vectors.shape[1] == kept
    assert eigen_side(matrix, keep=1, share=0.99).vectors.shape[1] == 1


@pytest.mark.parametrize("uniform", [uniform_kronecker, uniform_ekfac, uniform_covariance])
def test_uniform_importance_is_a_multiple_of_the_identity(uniform: Any) -> None:
    stored = uniform((3, 4), 0.25)
    torch.testing.assert_close(dense_metric(stored), 0.25 * torch.eye(12, dtype=torch.float64))
    assert stored.measure().trace == pytest.approx(3.0)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(2, 5), n=st.integers(2, 5), seed=st.integers(0, 1000))
def test_the_sum_of_two_kronecker_products_is_the_nearest_one(m: int, n: int, seed: int) -> None:
    """Against the singular value decomposition of all of the rearranged sum (Van Loan and Pitsianis 1993)."""
    one, other = (random_importance("kronecker", m, n, (m, n), seed + i) for i in range(2))
    total = dense_metric(one) + dense_metric(other)
    rearranged = total.view(m, n, m, n).permute(0, 2, 1, 3).reshape(m * m, n * n)
    u, s, v = torch.linalg.svd(rearranged, full_matrices=False)
    nearest = torch.kron((s[0] * u[:, 0]).view(m, m), v[0].view(n, n))
    nearest *= total.trace() / nearest.trace()
    torch.testing.assert_close(dense_metric(one.add(other)), nearest, rtol=1e-3, atol=1e-4 * float(total.norm()))


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(2, 5),
    n=st.integers(2, 5),
    kept=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 99),
)
def test_the_sum_of_two_in_a_free_omega_is_exact_on_the_diagonal_of_its_basis(
    m: int, n: int, kept: tuple[int, int], seed: int
) -> None:
    one = random_importance("ekfac", m, n, (m, n), seed)
    earlier = random_importance("ekfac", m, n, kept, seed + 1)
    basis = torch.kron(one.output_vectors(torch.float64), one.input_vectors(torch.float64))
    expected = (basis.T @ (dense_metric(one) + dense_metric(earlier)) @ basis).diagonal().view(m, n)
    added = one.add(earlier)
    torch.testing.assert_close(added.parts["omega"][:m, :n].double(), expected, rtol=1e-4, atol=1e-5)
    assert added.measure().trace == pytest.approx(one.measure().trace + earlier.measure().trace, rel=1e-5)


def test_the_sum_of_two_covariances_is_exact_where_all_is_kept() -> None:
    one, other = (random_importance("covariance", 3, 4, (0, 4), seed) for seed in (1, 2))
    torch.testing.assert_close(
        dense_metric(one.add(other)), dense_metric(one) + dense_metric(other), rtol=1e-4, atol=1e-5
    )


def test_what_a_strangers_file_may_not_hold() -> None:
    stored = random_importance("kronecker", 5, 4, (2, 2), 0)
    skewed = stored.parts["input_vectors"].clone()
    skewed[0] += 0.1
    negative = -stored.parts["output_values"]
    for changes, message in (
        ({"input_vectors": skewed}, "input vectors of the importance of w are not orthonormal"),
        ({"output_vectors": stored.parts["output_vectors"] * float("nan")}, "hold NaN"),
        (
            {"output_values": negative, "input_values": -stored.parts["input_values"]},
            "eigenvalues of the importance of w hold NaN or negative",
        ),
    ):
        with pytest.raises(ALoRAError, match=message):
            KroneckerOmega(stored.shape, stored.parts | changes).check_parts("w")
    stored.check_parts("w")
    HalfKroneckerOmega.of(
        (5, 4), eigen_side(moments(5, 0).float(), 3), eigen_side(moments(4, 1).float(), 3)
    ).check_parts("w")
    assert random_importance("ekfac", 5, 4, (2, 2), 0).measure().least >= 0
    free = random_importance("ekfac", 5, 4, (2, 2), 0)
    assert EkfacOmega(free.shape, free.parts | {"omega": -free.parts["omega"]}).measure().least < 0


@pytest.mark.parametrize("kind", [KroneckerOmega, EkfacOmega, CovarianceOmega])
def test_sizes_that_do_not_fit_are_refused(kind: type[InBasis]) -> None:
    shape = (5, 4)
    good = {
        "output_vectors": (5, 2), "output_values": (3,), "input_vectors": (4, 3), "input_values": (4,), "omega": (3, 4)
    }  # fmt: skip
    parts = {name: good[name] for name in kind.part_types(shape)}
    kind.check_free_sizes(shape, parts)
    for name in parts:
        for wrong in ((9,), (6,)) if "values" in name else ((shape[0], 9),):
            with pytest.raises(ValueError, match="do not fit|does not fit|dimensions"):
                kind.check_free_sizes(shape, parts | {name: wrong})


@settings(max_examples=30, deadline=None)
@given(stored=cases)
def test_stored_bytes_are_those_of_the_parts(stored: InBasis) -> None:
    (m, n), keep = stored.shape, 2
    of_two = random_importance(stored.kind, m, n, (keep, keep), 0)
    assert type(stored).stored_bytes((m, n), keep) == of_two.nbytes
    whole = random_importance(stored.kind, m, n, (m, n), 0)
    assert type(stored).stored_bytes((m, n)) == type(stored).made_bytes((m, n)) == whole.nbytes
    shared = type(stored).stored_bytes((m, n), keep, inputs_shared=True)
    assert shared == of_two.nbytes - of_two.parts["input_vectors"].nbytes
    half = FORMATS.find(f"{stored.kind}_bfloat16")
    assert stored.part_types_as(half) == stored.convert(half).present_part_types
    assert stored.convert(half).part_types_as(type(stored)) == stored.present_part_types
