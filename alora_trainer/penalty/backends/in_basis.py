"""The penalty of importance in a basis: its bases times thin factors, then what is left is of the bases' kept size.

With ``D = L R`` (L (m, p), R (p, n)), ``P = U' L`` and ``Q = R V`` in the kept directions, and what the rest adds:

    M D = U X V' + U Y R0 + L0 Z V' + w L0 R0,    L0 = L - U P,    R0 = R - Q V'
    X = Omega * (P Q),    Y = diag(Omega's last column) P,    Z = Q diag(Omega's last row),    w Omega's last element

Neither L0 nor R0 is formed: U is read twice, for ``U' L`` (and ``U' B``, where that is no part of it) and for ``U`` times
(k, r), and V likewise. A Kronecker product has no need of X, either: it is ``(g P) (Q s)``, for g and s the eigenvalues of
both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from alora_trainer.importance.kinds.eigenbasis import turned, turned_back
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import KroneckerOmega
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult, PulledFactors
from alora_trainer.penalty.backends.pull import implicit_factor, pairs
from alora_trainer.weights.row_blocks import block_rows, row_blocks
from alora_trainer.weights.steps import Factors


def basis_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """R and its gradients by A (r, n) and B (m, r); see `Backend.__call__` for the arguments."""
    here = importance.to(a.device)
    assert isinstance(here, InBasis)  # as `_misfit` sees to
    value, by_a, by_b = _product(here, drift, a, b, scaling)
    return PenaltyResult(value, by_a.mul_(2 * scaling), by_b.mul_(2 * scaling))


@dataclass(frozen=True)
class _Side:
    """One side of the movement and of the adapter, and both in the kept directions of that side's basis.

    Attributes:
        vectors: U (d, k), as it is kept.
        movement: (d, p): L, or R'.
        factor: (d, r): B, or A'.
        kept_movement, kept_factor: (k, p) and (k, r): U' times either.
        gram: (p, p), ``movement' movement``, in float64.
        mixed: (r, p), ``factor' movement``, in float64.
    """

    vectors: torch.Tensor
    movement: torch.Tensor
    factor: torch.Tensor
    kept_movement: torch.Tensor
    kept_factor: torch.Tensor
    gram: torch.Tensor
    mixed: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor, movement: torch.Tensor, factor: torch.Tensor, scaling: float) -> _Side:
        p, r = movement.shape[1], factor.shape[1]
        within, wide = movement.double(), factor.double()
        if torch.equal(movement[:, :r], factor * scaling):  # A's are always, B's are held to the base: turned once
            kept = turned(vectors, movement)
            kept_factor = kept[:, :r] / scaling
        else:
            kept = turned(vectors, torch.cat([movement, factor], dim=1))
            kept_factor = kept[:, p:]
        return cls(vectors, movement, factor, kept[:, :p], kept_factor, within.T @ within, wide.T @ within)

    @property
    def rest_gram(self) -> torch.Tensor:
        """(p, p) in float64: the part of `gram` outside of the kept directions."""
        kept = self.kept_movement.double()
        return self.gram - kept.T @ kept

    @property
    def rest_mixed(self) -> torch.Tensor:
        """(r, p) in float64: the part of `mixed` outside of the kept directions."""
        return self.mixed - self.kept_factor.double().T @ self.kept_movement.double()

    def out_of(self, within: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """``U within + (movement - U U' movement) outside``, (d, r), for (k, r) and (p, r)."""
        return self.movement @ outside + turned_back(self.vectors, within - self.kept_movement @ outside)


def _product(
    importance: InBasis, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``<D, M D>`` (float64), ``B' M D`` (r, n) and ``M D A'`` (m, r)."""
    outputs = _Side.of(importance.output_vectors(), drift.left, b, scaling)
    inputs = _Side.of(importance.input_vectors(), drift.right.T, a.T, 1.0)
    if isinstance(importance, KroneckerOmega):
        return _kronecker_product(importance, outputs, inputs)
    return _free_product(importance, outputs, inputs)


def _kronecker_product(
    importance: KroneckerOmega, outputs: _Side, inputs: _Side
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``G D S`` by both sides' weighed products with themselves, (p, p), and with the factors, (r, p)."""
    dtype = outputs.movement.dtype
    value = torch.ones((), dtype=torch.float64, device=outputs.movement.device)
    weighed = []
    for side, eigenvalues in ((outputs, importance.output_values), (inputs, importance.input_values)):
        values, kept = eigenvalues.double(), side.kept_movement.double()
        by_value = values[:-1, None] * kept
        value = value * (kept.T @ by_value + values[-1] * side.rest_gram)
        weighed.append(side.kept_factor.double().T @ by_value + values[-1] * side.rest_mixed)
    results = []
    for side, other, eigenvalues in (
        (inputs, weighed[0], importance.input_values),
        (outputs, weighed[1], importance.output_values),
    ):
        small, values = other.T.to(dtype), eigenvalues.to(dtype)
        results.append(side.out_of(values[:-1, None] * (side.kept_movement @ small), values[-1] * small))
    return value.sum(), results[0].T, results[1]


def _free_product(
    importance: InBasis, outputs: _Side, inputs: _Side
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype, (k, h) = outputs.movement.dtype, importance.kept
    (last,) = importance.omega_rows(slice(k, k + 1), dtype)
    p, q, a_kept, b_kept = outputs.kept_movement, inputs.kept_movement.T, inputs.kept_factor, outputs.kept_factor
    by_input, rest = last[:h], last[h]
    weighted_q = q * by_input  # Z
    left_rest, right_rest = outputs.rest_gram, inputs.rest_gram
    value = ((weighted_q.double() @ q.double().T) * left_rest).sum() + rest.double() * (left_rest * right_rest).sum()
    b_rest, a_rest = outputs.rest_mixed.to(dtype), inputs.rest_mixed.T.to(dtype)  # B' L0, R0 A'
    kept_a, weighted_p = p.new_empty(k, a_kept.shape[1]), torch.empty_like(p)
    b_kept_md = b_rest @ weighted_q  # (r, h)
    products = p.new_empty(2, block_rows(k, h + 1, p.device), h)
    for rows in row_blocks(k, h + 1, p.device) if k else ():
        omega = importance.omega_rows(rows, dtype)
        both = torch.mm(p[rows], q, out=products[0, : rows.stop - rows.start])
        weighted = torch.mul(omega[:, :h], both, out=products[1, : rows.stop - rows.start])
        weighted_p[rows] = omega[:, h:] * p[rows]
        value += torch.dot(weighted.reshape(-1), both.reshape(-1)).double()
        kept_a[rows] = weighted @ a_kept + weighted_p[rows] @ a_rest
        b_kept_md.addmm_(b_kept[rows].T, weighted)
    value += (weighted_p.double().T @ p.double() * right_rest).sum()
    by_b = outputs.out_of(kept_a, weighted_q @ a_kept + rest * a_rest)
    by_a = inputs.out_of(b_kept_md.T, (b_kept.T @ weighted_p + rest * b_rest).T)
    return value, by_a.T, by_b


def pull_in_basis(
    factors: PulledFactors,
    importance: Importance,
    drift: Callable[[torch.Tensor, torch.Tensor], Factors],
    strength_a: float,
    strength_b: float,
) -> torch.Tensor:
    """The decoupled update (see `pull`): in the basis, every direction of the outputs (then inputs) has a system r x r."""
    here = importance.to(factors.device)
    assert isinstance(here, InBasis)
    a, b = factors.a.to(factors.dtype), factors.b.to(factors.dtype)
    value, _, gradient = _product(here, drift(a, b), a, b, factors.scaling)
    if strength_b > 0:
        grams = here.weigh_inputs(_grams(a.T, here.input_vectors()))
        vectors = here.output_vectors()
        factors.b.add_(_steps(gradient, grams, vectors, factors.scaling, strength_b).to(factors.b.dtype))
        b = factors.b.to(factors.dtype)
    if strength_a > 0:
        _, gradient, _ = _product(here, drift(a, b), a, b, factors.scaling)
        grams = here.weigh_outputs(_grams(b, here.output_vectors()))
        vectors = here.input_vectors()
        factors.a.add_(_steps(gradient.T, grams, vectors, factors.scaling, strength_a).T.to(factors.a.dtype))
    return value


def _grams(factor: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(h + 1, r (r + 1) / 2) in float64: for factor (d, r), ``f f'`` of its part in each direction, and that of the rest."""
    upper, lower = pairs(factor.shape[1], factor.device)
    wide = factor.double()
    kept = turned(vectors, wide)
    rest = wide - turned_back(vectors, kept)
    return torch.cat([kept[:, upper] * kept[:, lower], (rest.T @ rest)[upper, lower][None]])


def _steps(
    gradient: torch.Tensor, grams: torch.Tensor, vectors: torch.Tensor, scaling: float, strength: float
) -> torch.Tensor:
    """(d, r): in every kept direction i the solution of ``(I / t + 2 s**2 G_i) d_i = -2 s gradient_i``, and in the rest."""
    rotated = turned(vectors, gradient)
    # Twice: what the vectors' rounding leaves of the kept directions would meet the rest's far smaller stiffness.
    rest = gradient - turned_back(vectors, rotated)
    rest = (rest - turned_back(vectors, turned(vectors, rest))).double().mul(-2 * scaling)
    solved = torch.empty_like(rotated)
    for rows, factor in _factors(grams[:-1], gradient.shape[1], scaling, strength, gradient.dtype):
        right = rotated[rows].double().mul(-2 * scaling)[:, :, None]
        solved[rows] = torch.cholesky_solve(right, factor)[:, :, 0].to(gradient.dtype)
    factor = implicit_factor(grams[-1:], gradient.shape[1], scaling, strength, gradient.dtype)[0]
    outside = torch.cholesky_solve(rest.T, factor).T.to(gradient.dtype)
    return turned_back(vectors, solved) + outside


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
