"""The path integral in other coordinates: along two orthonormal bases instead of the weight's rows and columns.

    w'_ij = -sum_t (U' g_t V)_ij (U' D_t V)_ij,    Delta' = U' Delta V,    Omega' = max(w', 0) / (Delta'**2 + xi)

so that eq. 13-15 of arXiv 2501.13669 hold as they are, element by element, and what comes out is a free Omega in a basis
(EK-FAC's kind). Along the unit vectors it is the paper's importance. A basis may be kept in part: the rest of a side is one
more direction, and its numbers are means over all that is orthogonal to the kept ones, however that is cut into directions.

A step's movement is thin, ``D = L R``, and so is all that has to be turned. The means over the rest come from products of thin
matrices with each other, for instance over the inputs' rest of h' = n - h dimensions

    (1/h') sum_j (U'g Z)_ij (U'D Z)_ij = (1/h') sum_p (U' g Z Z' R')_ip (U' L)_ip,    Z Z' = I - V V'

and are put beside the turned factors, as one row and one column more, with ones beside the movement's: a product of thin
factors again, which is folded in as any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from alora_trainer.importance.kinds.eigenbasis import turned
from alora_trainer.importance.kinds.ekfac import OMEGA, EkfacOmega, HalfEkfacOmega
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis
from alora_trainer.importance.recording.estimators import StepFactors
from alora_trainer.weights.steps import Factors, Matrix


class Rotation:
    """Turns one weight's steps into the directions of a basis.

    Args:
        basis: importance in a basis, of which the directions alone count.
        device: where the steps are.
        dtype: what they are computed in.

    Attributes:
        shape: (k + 1, h + 1): the kept directions of outputs and inputs, and the rest of both.
    """

    def __init__(self, basis: InBasis, device: torch.device, dtype: torch.dtype) -> None:
        here = basis.to(device)
        assert isinstance(here, InBasis)
        self._u, self._v = here.output_vectors(dtype), here.input_vectors(dtype)
        self.shape = rotated_shape(basis)
        self._rest = tuple(size - kept for size, kept in zip(basis.shape, basis.kept, strict=True))

    def step(self, step: StepFactors) -> StepFactors:
        """The factors of ``g'`` and ``D'`` with ``g' * D'`` (elementwise, (k + 1, h + 1)) the step's share of ``-w'``."""
        movement = step.movement
        assert isinstance(movement, Factors)  # of adapters alone, as the recorder sees to
        within = self._turned(movement)
        column, row, corner = self._means(step.gradient, movement, within)
        one = corner.new_ones(())
        return StepFactors(
            _bordered(self._turned_matrix(step.gradient), column, row, corner),
            _bordered_factors(within, torch.ones_like(column), torch.ones_like(row), one),
        )

    def total(self, movement: Factors) -> Factors:
        """``Delta'`` (k + 1, h + 1); in the rest the root of the mean of its squares."""
        within = self._turned(movement)
        means = self._means(movement, movement, within)
        return _bordered_factors(within, *(mean.clamp_min(0).sqrt() for mean in means))

    def _turned(self, matrix: Factors) -> Factors:
        return Factors(turned(self._u, matrix.left), matrix.right @ self._v)

    def _turned_matrix(self, matrix: Matrix) -> Matrix:
        if isinstance(matrix, Factors):
            return self._turned(matrix)
        return (self._u.T @ matrix) @ self._v

    def _means(
        self, gradient: Matrix, movement: Factors, within: Factors
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means of ``g' * D'`` over the inputs' rest (k,), the outputs' rest (h,), and both; 0 where there is none."""
        outputs, inputs = (max(rest, 1) for rest in self._rest)
        left = movement.left - self._u @ within.left if self._rest[0] else torch.zeros_like(movement.left)
        right = movement.right - within.right @ self._v.T if self._rest[1] else torch.zeros_like(movement.right)
        by_right, by_left = _product(gradient, right.T), _product_left(left.T, gradient)
        column = ((self._u.T @ by_right) * within.left).sum(1) / inputs
        row = ((by_left @ self._v) * within.right).sum(0) / outputs
        return column, row, (left * by_right).sum() / (outputs * inputs)


def rotated_shape(basis: InBasis) -> tuple[int, int]:
    """(k + 1, h + 1) of an Omega in a basis."""
    k, h = basis.kept
    return k + 1, h + 1


def ekfac_along(basis: InBasis, omega: torch.Tensor) -> EkfacOmega:
    """Omega' (k + 1, h + 1) with the directions of `basis`, as exactly as it keeps them."""
    dtype = basis.vectors_dtype
    vectors = {OUTPUT_VECTORS: basis.output_vectors(dtype), INPUT_VECTORS: basis.input_vectors(dtype)}
    format = HalfEkfacOmega if dtype == HalfEkfacOmega.vectors_dtype else EkfacOmega
    return format(basis.shape, vectors | {OMEGA: omega.float()})


def directions_digest(bases: Mapping[str, InBasis]) -> str:
    """What tells these directions from others; empty for none."""
    if not bases:
        return ""
    digest = hashlib.sha256()
    for name, basis in bases.items():
        digest.update(f"{name} {basis.shape} {basis.kept}".encode())
        for vectors in (basis.output_vectors(torch.float32), basis.input_vectors(torch.float32)):
            digest.update(vectors.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _product(matrix: Matrix, right: torch.Tensor) -> torch.Tensor:
    return matrix.left @ (matrix.right @ right) if isinstance(matrix, Factors) else matrix @ right


def _product_left(left: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    return (left @ matrix.left) @ matrix.right if isinstance(matrix, Factors) else left @ matrix


def _bordered(matrix: Matrix, column: torch.Tensor, row: torch.Tensor, corner: torch.Tensor) -> Matrix:
    """``[[matrix, column], [row, corner]]``, as thin factors where the matrix is such."""
    if isinstance(matrix, Factors):
        return _bordered_factors(matrix, column, row, corner)
    last = torch.cat([row, corner[None]])[None]
    return torch.cat([torch.cat([matrix, column[:, None]], dim=1), last])


def _bordered_factors(matrix: Factors, column: torch.Tensor, row: torch.Tensor, corner: torch.Tensor) -> Factors:
    """The same of thin factors: of a rank higher by two."""
    k, h = len(column), len(row)
    rank = matrix.left.shape[1]
    left, right = column.new_zeros(k + 1, rank + 2), row.new_zeros(rank + 2, h + 1)
    left[:k, :rank], left[:k, rank], left[k, rank + 1] = matrix.left, column, 1
    right[:rank, :h], right[rank, h], right[rank + 1, :h], right[rank + 1, h] = matrix.right, 1, row, corner
    return Factors(left, right)
