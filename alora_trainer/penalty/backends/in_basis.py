"""The penalty of importance in a basis: its bases times thin factors, then what is left is of the bases' kept size.

With ``D = L R`` (L (m, p), R (p, n)), and for a Kronecker product:

    R     = <L' G L, R S R'>
    dR/dB = 2 s G L (R S A'),    dR/dA = 2 s (B' G L) R S

and else by the four parts of D in the kept directions of both sides, of one, and of none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import KroneckerOmega
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult
from alora_trainer.penalty.backends.pull import implicit_factor, pairs
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.row_blocks import row_blocks
from alora_trainer.weights.steps import Factors


def basis_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """R and its gradients by A (r, n) and B (m, r); see `Backend.__call__` for the arguments."""
    here = importance.to(a.device)
    assert isinstance(here, InBasis)  # as `_misfit` sees to
    value, by_a, by_b = _product(here, drift, a, b)
    return PenaltyResult(value, by_a.mul_(2 * scaling), by_b.mul_(2 * scaling))


def _product(
    importance: InBasis, drift: Factors, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``<D, M D>`` (float64), ``B' M D`` (r, n) and ``M D A'`` (m, r)."""
    if isinstance(importance, KroneckerOmega):
        left, right = importance.multiply_outputs(drift.left), importance.multiply_inputs(drift.right)
        outputs = drift.left.double().T @ left.double()
        inputs = right.double() @ drift.right.double().T
        return (outputs * inputs).sum(), (b.T @ left) @ right, left @ (right @ a.T)
    return _free_product(importance, drift, a, b)


def _free_product(
    importance: InBasis, drift: Factors, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype, (k, h) = a.dtype, importance.kept
    u, v = importance.output_vectors(dtype), importance.input_vectors(dtype)
    p, q = u.T @ drift.left, drift.right @ v  # (k, p), (p, h): in the kept directions
    left_rest, right_rest = drift.left - u @ p, drift.right - q @ v.T  # (m, p), (p, n): in no kept one
    a_kept, b_kept = a @ v, u.T @ b  # (r, h), (k, r)
    (last,) = importance.omega_rows(slice(k, k + 1), dtype)
    by_input, rest = last[:h], last[h]
    gram_left, gram_right = left_rest.double().T @ left_rest.double(), right_rest.double() @ right_rest.double().T
    value = ((q.double() * by_input.double()) @ q.double().T * gram_left).sum() + rest.double() * (
        gram_left * gram_right
    ).sum()
    weighted_q = q * by_input
    # M D A' and B' M D, as their parts outside of the kept outputs, and (row by row below) inside.
    md_a = left_rest @ (weighted_q @ a_kept.T + rest * (right_rest @ a.T))
    b_md_v = (b.T @ left_rest) @ weighted_q  # (r, h), to be turned by V'
    b_md = rest * ((b.T @ left_rest) @ right_rest)
    right_a, kept_a = right_rest @ a.T, a.new_empty(k, a.shape[0])
    weighted_p = torch.empty_like(p)
    for rows in row_blocks(k, h + 1, a.device) if k else ():
        omega = importance.omega_rows(rows, dtype)
        both = p[rows] @ q
        weighted = omega[:, :h] * both
        weighted_p[rows] = omega[:, h:] * p[rows]
        value += (weighted * both).sum(dtype=torch.float64)
        kept_a[rows] = weighted @ a_kept.T + weighted_p[rows] @ right_a
        b_md_v += b_kept[rows].T @ weighted
    value += (weighted_p.double().T @ p.double() * gram_right).sum()
    b_md += (b_kept.T @ weighted_p) @ right_rest
    return value, b_md + b_md_v @ v.T, md_a + u @ kept_a


def pull_in_basis(
    weight: AdaptedWeight,
    importance: Importance,
    drift: Callable[[torch.Tensor, torch.Tensor], Factors],
    strength_a: float,
    strength_b: float,
) -> torch.Tensor:
    """The decoupled update (see `pull`): in the basis, every direction of the outputs (then inputs) has a system r x r."""
    here = importance.to(weight.device)
    assert isinstance(here, InBasis)
    a, b = weight.a.to(weight.dtype), weight.b.to(weight.dtype)
    value, _, gradient = _product(here, drift(a, b), a, b)
    if strength_b > 0:
        grams = here.weigh_inputs(_grams(a.T, here.input_vectors(a.dtype)))
        vectors = here.output_vectors(a.dtype)
        weight.b.add_(_steps(gradient, grams, vectors, weight.scaling, strength_b).to(weight.b.dtype))
        b = weight.b.to(weight.dtype)
    if strength_a > 0:
        _, gradient, _ = _product(here, drift(a, b), a, b)
        grams = here.weigh_outputs(_grams(b, here.output_vectors(b.dtype)))
        vectors = here.input_vectors(b.dtype)
        weight.a.add_(_steps(gradient.T, grams, vectors, weight.scaling, strength_a).T.to(weight.a.dtype))
    return value


def _grams(factor: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(h + 1, r (r + 1) / 2) in float64: for factor (d, r), ``f f'`` of its part in each direction, and that of the rest."""
    upper, lower = pairs(factor.shape[1], factor.device)
    wide = factor.double()
    kept = (vectors.T @ factor).double()
    rest = wide - vectors.double() @ (vectors.double().T @ wide)
    return torch.cat([kept[:, upper] * kept[:, lower], (rest.T @ rest)[upper, lower][None]])


def _steps(
    gradient: torch.Tensor, grams: torch.Tensor, vectors: torch.Tensor, scaling: float, strength: float
) -> torch.Tensor:
    """(d, r): in every kept direction i the solution of ``(I / t + 2 s**2 G_i) d_i = -2 s gradient_i``, and in the rest."""
    rotated = vectors.T @ gradient
    # Twice: what the vectors' rounding leaves of the kept directions would meet the rest's far smaller stiffness.
    rest = gradient - vectors @ rotated
    rest = (rest - vectors @ (vectors.T @ rest)).double().mul(-2 * scaling)
    solved = torch.empty_like(rotated)
    for rows, factor in _factors(grams[:-1], gradient.shape[1], scaling, strength, gradient.dtype):
        right = rotated[rows].double().mul(-2 * scaling)[:, :, None]
        solved[rows] = torch.cholesky_solve(right, factor)[:, :, 0].to(gradient.dtype)
    factor = implicit_factor(grams[-1:], gradient.shape[1], scaling, strength, gradient.dtype)[0]
    outside = torch.cholesky_solve(rest.T, factor).T.to(gradient.dtype)
    return vectors @ solved + outside


def _factors(
    grams: torch.Tensor, rank: int, scaling: float, strength: float, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    for rows in row_blocks(grams.shape[0], rank * rank) if len(grams) else ():
        yield rows, implicit_factor(grams[rows], rank, scaling, strength, dtype)


def _misfit(importance: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    if isinstance(importance, InBasis):
        return None
    return f"it computes importance in a basis, and this is {importance.kind}"


IN_BASIS = Backend("in_basis", basis_penalty, _misfit, preference=50, pull=pull_in_basis)
