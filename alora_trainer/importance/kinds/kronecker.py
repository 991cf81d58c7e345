"""Importance as a Kronecker product: of the gradients' second moments on the outputs' side, and of the inputs' on the other.

For a layer y = W x, to second order and taking gradients and inputs for independent (K-FAC: Martens and Grosse 2015,
arXiv 1503.05671), the mean rise of KL(p_base || p) by a movement D is 1/2 R with

    R = tr(D' G D S),    G = E[g g'],    S = E[x x'],    g the gradient of the log-likelihood by y.

In the eigenvectors of G and S this is an Omega of rank one: the products of their eigenvalues. With G a multiple of the
identity it is the inputs' covariance alone, which needs no backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.eigenbasis import EigenSide, eigen_side, multiply, symmetric
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis, vectors_type
from alora_trainer.importance.kinds.kind import Importance, PartType

KRONECKER, COVARIANCE = "kronecker", "covariance"
OUTPUT_VALUES, INPUT_VALUES = "output_values", "input_values"


class KroneckerOmega(InBasis):
    """``R = tr(D' G D S)``; G and S by their leading eigenvectors, and the mean of the other eigenvalues.

    Parts: ``output_vectors`` (m, k), ``output_values`` (k + 1,), ``input_vectors`` (n, h) and ``input_values`` (h + 1,): the
    eigenvalues of G and of S, the mean of those that are not kept last, so that traces are kept.
    """

    kind = KRONECKER
    format = "kronecker"
    listed = False

    @classmethod
    def of(cls, shape: tuple[int, int], outputs: EigenSide, inputs: EigenSide) -> KroneckerOmega:
        """From both sides; see `eigen_side`."""
        parts = {OUTPUT_VECTORS: outputs.vectors.to(cls.vectors_dtype), OUTPUT_VALUES: outputs.values.float()}
        parts |= {INPUT_VECTORS: inputs.vectors.to(cls.vectors_dtype), INPUT_VALUES: inputs.values.float()}
        return cls(shape, parts)

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {
            OUTPUT_VECTORS: vectors_type(shape, 0, cls.vectors_dtype),
            OUTPUT_VALUES: (torch.float32, (-1,)),
            INPUT_VECTORS: vectors_type(shape, 1, cls.vectors_dtype),
            INPUT_VALUES: (torch.float32, (-1,)),
        }

    @classmethod
    def kept_part_types(cls, shape: tuple[int, int], kept: tuple[int, int]) -> dict[str, PartType]:
        types: dict[str, PartType] = {
            OUTPUT_VECTORS: vectors_type(shape, 0, cls.vectors_dtype, kept[0]),
            OUTPUT_VALUES: (torch.float32, (kept[0] + 1,)),
            INPUT_VECTORS: vectors_type(shape, 1, cls.vectors_dtype, kept[1]),
            INPUT_VALUES: (torch.float32, (kept[1] + 1,)),
        }
        return {part: types[part] for part in cls.part_types(shape)}

    @classmethod
    def check_free_sizes(cls, shape: tuple[int, int], found: Mapping[str, tuple[int, ...]]) -> None:
        super().check_free_sizes(shape, found)
        for vectors, values in ((OUTPUT_VECTORS, OUTPUT_VALUES), (INPUT_VECTORS, INPUT_VALUES)):
            if values in found and found[values][0] != (found[vectors][1] if vectors in found else 0) + 1:
                raise ValueError(f"{found[values][0]} {values.replace('_', ' ')} do not fit the vectors")

    @property
    def output_values(self) -> torch.Tensor:
        """The eigenvalues of G (k + 1,)."""
        return self.parts[OUTPUT_VALUES]

    @property
    def input_values(self) -> torch.Tensor:
        """The eigenvalues of S (h + 1,)."""
        return self.parts[INPUT_VALUES]

    def omega_rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return torch.outer(self.output_values[rows].to(dtype), self.input_values.to(dtype))

    def weigh_inputs(self, values: torch.Tensor) -> torch.Tensor:
        return torch.outer(self.output_values.to(values.dtype), self.input_values.to(values.dtype) @ values)

    def weigh_outputs(self, values: torch.Tensor) -> torch.Tensor:
        return torch.outer(self.input_values.to(values.dtype), self.output_values.to(values.dtype) @ values)

    def multiply_outputs(self, left: torch.Tensor) -> torch.Tensor:
        """``G left``, (m, p)."""
        return multiply(self.output_vectors(), self.output_values.to(left.dtype), left)

    def multiply_inputs(self, right: torch.Tensor) -> torch.Tensor:
        """``right S``, (p, n)."""
        return multiply(self.input_vectors(), self.input_values.to(right.dtype), right.T).T

    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        return self.multiply_inputs(self.multiply_outputs(movement))

    def check_parts(self, name: str) -> None:
        super().check_parts(name)
        # Two negative ones would make a product that is not.
        if not all(bool((values >= 0).all()) for values in (self.output_values, self.input_values)):
            raise ALoRAError(
                f"the eigenvalues of the importance of {name} hold NaN or negative values: record it again"
            )

    def add(self, earlier: Importance) -> Importance:
        """The Kronecker product that is nearest to the sum of both in the Frobenius norm (Van Loan and Pitsianis 1993).

        It is of combinations of both G and of both S, found from 2 x 2 numbers; its trace is set to that of the sum. As many
        directions are kept as the later one has.
        """
        assert isinstance(earlier, KroneckerOmega)
        there = earlier.to(self.input_values.device)
        assert isinstance(there, KroneckerOmega)
        both = (self, there)
        outputs, inputs = _nearest_product(
            [symmetric(one.output_vectors(torch.float64), one.output_values.double()) for one in both],
            [symmetric(one.input_vectors(torch.float64), one.input_values.double()) for one in both],
        )
        k, h = self.kept
        return self.of(self.shape, eigen_side(outputs, k), eigen_side(inputs, h))


class HalfKroneckerOmega(KroneckerOmega):
    """The same with the eigenvectors in bfloat16: half the size."""

    format = "kronecker_bfloat16"
    vectors_dtype = torch.bfloat16


class CovarianceOmega(KroneckerOmega):
    """``R = c tr(D S D')``: the second moments S of the layer's inputs, and one number c for its outputs.

    Parts: ``input_vectors`` (n, h) and ``input_values`` (h + 1,), with c in the values.
    """

    kind = COVARIANCE
    format = "covariance"

    @classmethod
    def of(cls, shape: tuple[int, int], outputs: EigenSide, inputs: EigenSide) -> CovarianceOmega:
        """With the mean eigenvalue of `outputs` for c."""
        scaled = inputs.values.double() * outputs.mean(shape[0])
        return cls(shape, {INPUT_VECTORS: inputs.vectors.to(cls.vectors_dtype), INPUT_VALUES: scaled.float()})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {INPUT_VECTORS: vectors_type(shape, 1, cls.vectors_dtype), INPUT_VALUES: (torch.float32, (-1,))}

    @property
    def output_values(self) -> torch.Tensor:
        return self.input_values.new_ones(1)

    def add(self, earlier: Importance) -> Importance:
        """The sum, which is of this kind, too: exact but for the directions that are not kept."""
        assert isinstance(earlier, CovarianceOmega)
        there = earlier.to(self.input_values.device)
        assert isinstance(there, CovarianceOmega)
        own, other = (symmetric(s.input_vectors(torch.float64), s.input_values.double()) for s in (self, there))
        side = eigen_side(own + other, self.kept[1])
        return type(self)(
            self.shape, {INPUT_VECTORS: side.vectors.to(self.vectors_dtype), INPUT_VALUES: side.values.float()}
        )


class HalfCovarianceOmega(CovarianceOmega):
    """The same with the eigenvectors in bfloat16."""

    format = "covariance_bfloat16"
    vectors_dtype = torch.bfloat16


def uniform_kronecker(shape: tuple[int, int], value: float) -> KroneckerOmega:
    """``M = value I``: no direction kept on either side."""
    nothing = {OUTPUT_VECTORS: torch.zeros(shape[0], 0), INPUT_VECTORS: torch.zeros(shape[1], 0)}
    return KroneckerOmega(shape, nothing | {OUTPUT_VALUES: torch.full((1,), value), INPUT_VALUES: torch.ones(1)})


def uniform_covariance(shape: tuple[int, int], value: float) -> CovarianceOmega:
    """``M = value I``: no direction kept."""
    return CovarianceOmega(shape, {INPUT_VECTORS: torch.zeros(shape[1], 0), INPUT_VALUES: torch.full((1,), value)})


def _nearest_product(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """G and S with ``G kron S`` nearest to ``sum_i G_i kron S_i`` in the Frobenius norm, and of the sum's trace.

    As vectors, the sum is ``X = g s'`` with the G_i as the columns of g and the S_i as those of s. X's leading left singular
    vector is ``g c`` with ``s's g'g c = sigma**2 c``: two numbers, and nothing of the matrices' size is decomposed.
    """
    g, s = (torch.stack([one.double().flatten() for one in side], dim=1) for side in (outputs, inputs))
    trace = sum(float(one.trace()) * float(other.trace()) for one, other in zip(outputs, inputs, strict=True))
    if trace == 0:
        return torch.zeros_like(outputs[0]), torch.zeros_like(inputs[0])
    gram_g, gram_s = g.T @ g, s.T @ s
    values, vectors = torch.linalg.eig(gram_s @ gram_g)
    # Of a matrix without negative elements, the leading vector has none either (Perron), but for its sign.
    leading = vectors[:, values.real.argmax()].real.abs()
    of_inputs = gram_g @ leading / (leading @ gram_g @ leading)
    nearest = (g @ leading).view_as(outputs[0]), (s @ of_inputs).view_as(inputs[0])
    return nearest[0], nearest[1] * (trace / (float(nearest[0].trace()) * float(nearest[1].trace())))
