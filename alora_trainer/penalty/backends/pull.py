"""The decoupled penalty: an update of its own after the optimizer's step, stable for any lambda.

A penalty in the loss goes through the optimizer, and Adam divides its gradient by the same root of second moments as the
data's. As AdamW takes weight decay out of the gradient (Loshchilov and Hutter 2019), this takes the penalty out: after the
optimizer's step with learning rate eta, the weights move by a step of size ``eta lambda`` on ``P = w_l R_l`` alone. The step is
implicit (proximal): with the other factor fixed, P is quadratic in a factor, and splits into its rows or columns:

    B, row i:     (I / t + H_i) d = -g_i,   H_i = 2 s**2 sum_j Omega_ij a_j a_j',   g = dR/dB,   t = eta lambda w_l
    then A, column j, with the new B:       H_j = 2 s**2 sum_i Omega_ij b_i b_i',   g = dR/dA

For a small t this is the gradient step ``-t g``. For any t it cannot raise the penalty: each half minimises
``P + |d|**2 / 2 t``, whose value at d = 0 is P. B and A at once would not have this property, as each would undo the same
drift again. A lambda without bound leads to the least squares of the drift in the rows of B, then in the columns of A.

To stay solvable in float32, 1 / t is kept above a small share of H's trace, which bounds t (row by row) from above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch

from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import PulledFactors, thin_factors
from alora_trainer.weights.row_blocks import row_blocks
from alora_trainer.weights.steps import Factors

# 1 / t is at least this share of the trace of H, which float32's sums over a row leave uncertain by about a tenth of it.
_SMALLEST_RIDGE = {torch.float32: 1e-5, torch.float64: 1e-11}
# Elements of a temporary: the packed matrices H of one group of rows or columns.
_GROUP_ELEMENTS = 1 << 21


def pull_back(
    factors: PulledFactors,
    importance: Importance,
    drift: Callable[[torch.Tensor, torch.Tensor], Factors],
    strength_a: float,
    strength_b: float,
) -> torch.Tensor:
    """Pull one weight's factors towards its anchor, B first, in place.

    Args:
        factors: of the adapted weight; they are changed.
        importance: of the weight, element-wise, (m, n).
        drift: the difference from the anchor as factors, from A (r, n) and B (m, r).
        strength_a, strength_b: t = learning rate * lambda * w_l of either factor; 0 leaves that factor as it is.

    Returns:
        ``R = sum Omega D**2`` before the pull, a float64 scalar.
    """
    a, b = factors.a.to(factors.dtype), factors.b.to(factors.dtype)
    omega = importance.to(factors.device)
    systems = _systems(omega, drift(a, b))
    move_b = torch.zeros_like(b)
    value = torch.zeros((), dtype=torch.float64, device=b.device)
    for rows, gradient, gram, part in systems.of_rows(a):
        value += part
        if strength_b > 0:
            move_b[rows] = _implicit_step(gradient, gram, a.shape[0], factors.scaling, strength_b)
    if strength_b > 0:
        factors.b.add_(move_b.to(factors.b.dtype))
        b = factors.b.to(factors.dtype)
    if strength_a > 0:
        systems = _systems(omega, drift(a, b))
        move_a = torch.zeros_like(a)
        for columns, gradient, gram in systems.of_columns(b):
            move_a[:, columns] = _implicit_step(gradient, gram, a.shape[0], factors.scaling, strength_a).T
        factors.a.add_(move_a.to(factors.a.dtype))
    return value


def _systems(importance: Importance, drift: Factors) -> _BlockedSystems | _FactoredSystems:
    factors = thin_factors(importance)
    return (
        _BlockedSystems(cast(Elementwise, importance), drift) if factors is None else _FactoredSystems(*factors, drift)
    )


def _implicit_step(
    gradient: torch.Tensor, gram: torch.Tensor, rank: int, scaling: float, strength: float
) -> torch.Tensor:
    """The solutions d (k, r) of ``(I / t + 2 s**2 G_i) d_i = -2 s gradient_i``, for `gram` the G_i's upper triangles."""
    factor = implicit_factor(gram, rank, scaling, strength, gradient.dtype)
    right = gradient.to(factor.dtype).mul(-2 * scaling)[:, :, None]
    return torch.cholesky_solve(right, factor)[:, :, 0].to(gradient.dtype)


def implicit_factor(gram: torch.Tensor, rank: int, scaling: float, strength: float, dtype: torch.dtype) -> torch.Tensor:
    """Cholesky factors (k, r, r) of ``I / t + 2 s**2 G_i``, for `gram` (k, r (r + 1) / 2) the G_i's upper triangles.

    Args:
        gram: see above.
        rank: r.
        scaling: PEFT's ``scaling`` s.
        strength: t.
        dtype: of the computation that they were summed in, which says how near to singular they may come.
    """
    # float64 costs nothing here: the matrices are r x r.
    exact = torch.float32 if gram.device.type == "mps" else torch.float64
    upper, lower = pairs(rank, gram.device)
    hessian = gram.new_zeros(gram.shape[0], rank, rank, dtype=exact)
    hessian[:, upper, lower] = gram.to(exact)
    hessian[:, lower, upper] = gram.to(exact)
    hessian.mul_(2 * scaling**2)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal.add_((diagonal.sum(1) * _SMALLEST_RIDGE[dtype]).clamp_min(1 / strength)[:, None])
    return torch.linalg.cholesky(hessian)


def pairs(rank: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every element of an (r, r) matrix's upper triangle."""
    upper, lower = torch.triu_indices(rank, rank, device=device)
    return upper, lower


def _groups(count: int, rank: int) -> Iterator[slice]:
    """Slices of `count` rows or columns whose packed (r, r) matrices stay within `_GROUP_ELEMENTS`."""
    size = max(1, _GROUP_ELEMENTS // (rank * (rank + 1) // 2))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _BlockedSystems:
    """Gradients and Gram matrices from any format, block by block of Omega's rows."""

    def __init__(self, omega: Elementwise, drift: Factors) -> None:
        self._omega = omega
        self._drift = drift

    def of_rows(self, a: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """By block of rows: the slice, ``E A'`` (h, r), upper triangles of ``A diag(Omega_i) A'`` (h, r (r + 1) / 2), R."""
        upper, lower = pairs(a.shape[0], a.device)
        chunks = list(_chunks(upper.numel(), a.shape[1]))
        whole = (a[upper] * a[lower]).T if len(chunks) == 1 else None
        for rows in row_blocks(*self._omega.shape, a.device):
            omega = self._omega.rows(rows, a.dtype)
            d = self._drift.left[rows] @ self._drift.right
            e = omega * d
            if whole is not None:
                gram = omega @ whole
            else:
                gram = torch.cat([omega @ (a[upper[c]] * a[lower[c]]).T for c in chunks], dim=1)
            yield rows, e @ a.T, gram, torch.dot(e.reshape(-1), d.reshape(-1)).double()

    def of_columns(self, b: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """By group of columns: the slice, ``E' B`` (k, r), upper triangles of ``B' diag(Omega_j) B`` (k, r (r + 1) / 2)."""
        (m, n), rank = self._omega.shape, b.shape[1]
        upper, lower = pairs(rank, b.device)
        for columns in _groups(n, rank):
            count = columns.stop - columns.start
            gradient, gram = b.new_zeros(count, rank), b.new_zeros(count, upper.numel())
            for rows in row_blocks(m, n, b.device):
                omega = self._omega.rows(rows, b.dtype)[:, columns]
                part = b[rows]
                e = omega * (self._drift.left[rows] @ self._drift.right[:, columns])
                gradient.addmm_(e.T, part)
                gram.addmm_(omega.T, part[:, upper] * part[:, lower])
            yield columns, gradient, gram


def _chunks(pairs: int, columns: int) -> Iterator[slice]:
    size = max(1, _GROUP_ELEMENTS // columns)
    for start in range(0, pairs, size):
        yield slice(start, min(start + size, pairs))


class _FactoredSystems:
    """The same from Gram matrices of the thin factors: never (m, n). In float64, as `gram_penalty` is and why."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, drift: Factors) -> None:
        self._x, self._y = x.double(), y.double()
        self._p, self._q = drift.left.double(), drift.right.double().T

    def of_rows(self, a: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        yield from self._systems(self._x, self._p, self._y, self._q, a.double().T, a.dtype)

    def of_columns(self, b: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        for group, gradient, gram, _ in self._systems(self._y, self._q, self._x, self._p, b.double(), b.dtype):
            yield group, gradient, gram

    @staticmethod
    def _systems(
        own: torch.Tensor, own_drift: torch.Tensor, other: torch.Tensor, other_drift: torch.Tensor,
        factor: torch.Tensor, dtype: torch.dtype,
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:  # fmt: skip
        """For the side whose importance is `own` (k, C); `factor` (l, r) is the fixed one, of the other side."""
        rank = factor.shape[1]
        upper, lower = pairs(rank, factor.device)
        weighted = other[:, :, None] * factor[:, None, :]  # (l, C, r)
        cross = torch.einsum("ld,lcr->cdr", other_drift, weighted)
        grams = torch.einsum("lcr,ls->crs", weighted, factor)[:, upper, lower]
        squares = torch.einsum("lc,ld,le->cde", other, other_drift, other_drift)
        for group in _groups(own.shape[0], rank):
            x, p = own[group], own_drift[group]
            gradient = torch.einsum("kc,kd,cdr->kr", x, p, cross)
            value = torch.einsum("kc,kd,ke,cde->", x, p, p, squares)
            yield group, gradient.to(dtype), (x @ grams).to(dtype), value
