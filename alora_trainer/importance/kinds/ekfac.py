"""Element-wise importance in the eigenvectors of a Kronecker product: EK-FAC (George et al. 2018, arXiv 1806.03884).

The eigenvectors are those of `kronecker`; Omega is free, ``Omega_ij = E[(U_i' g x' V_j)**2]``: the exact diagonal in this
basis, where the Kronecker product has the products of two means.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from alora_trainer.importance.kinds.elementwise import permuted
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis, vectors_type
from alora_trainer.importance.kinds.kind import Importance, PartType

EKFAC = "ekfac"
OMEGA = "omega"


class EkfacOmega(InBasis):
    """``R = sum_ij Omega_ij |U_i' D V_j|**2`` with a free Omega.

    Parts: ``output_vectors`` (m, k), ``input_vectors`` (n, h), ``omega`` (k + 1, h + 1); its last row and column are means over
    what is not kept.
    """

    kind = EKFAC
    format = "ekfac"
    listed = False

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {
            OUTPUT_VECTORS: vectors_type(shape, 0, cls.vectors_dtype),
            INPUT_VECTORS: vectors_type(shape, 1, cls.vectors_dtype),
            OMEGA: (torch.float32, (-1, -1)),
        }

    @classmethod
    def kept_part_types(cls, shape: tuple[int, int], kept: tuple[int, int]) -> dict[str, PartType]:
        return {
            OUTPUT_VECTORS: vectors_type(shape, 0, cls.vectors_dtype, kept[0]),
            INPUT_VECTORS: vectors_type(shape, 1, cls.vectors_dtype, kept[1]),
            OMEGA: (torch.float32, (kept[0] + 1, kept[1] + 1)),
        }

    @classmethod
    def check_free_sizes(cls, shape: tuple[int, int], found: Mapping[str, tuple[int, ...]]) -> None:
        super().check_free_sizes(shape, found)
        if found[OMEGA] != (found[OUTPUT_VECTORS][1] + 1, found[INPUT_VECTORS][1] + 1):
            raise ValueError(f"an omega of {' x '.join(map(str, found[OMEGA]))} does not fit the vectors")

    def omega_rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts[OMEGA][rows].to(dtype)

    def weigh_inputs(self, values: torch.Tensor) -> torch.Tensor:
        return self.parts[OMEGA].to(values.dtype) @ values

    def weigh_outputs(self, values: torch.Tensor) -> torch.Tensor:
        return self.parts[OMEGA].to(values.dtype).T @ values

    def add(self, earlier: Importance) -> Importance:
        """The sum in this one's basis: of the earlier one, the diagonal there.

        That of ``sum_ab Omega_ab (u_a u_a') kron (v_b v_b')`` in other directions is Omega weighed by the squared products of
        the directions, ``(u'u_a)**2`` and ``(v'v_b)**2``.
        """
        assert isinstance(earlier, InBasis)
        earlier_here = earlier.to(self.parts[OMEGA].device)
        assert isinstance(earlier_here, InBasis)
        outputs = _overlap(self.output_vectors(torch.float64), earlier_here.output_vectors(torch.float64))
        inputs = _overlap(self.input_vectors(torch.float64), earlier_here.input_vectors(torch.float64))
        there = outputs @ earlier_here.weigh_inputs(inputs.T)
        return type(self)(self.shape, self.parts | {OMEGA: (self.parts[OMEGA].double() + there).float()})

    def shuffled(self, generator: torch.Generator) -> EkfacOmega:
        """The numbers in a random order, of kept directions and of the rests each among themselves: norm and trace stay."""
        omega, (k, h) = self.parts[OMEGA].clone(), self.kept
        for part in (omega[:k, :h], omega[:k, h:], omega[k:, :h]):
            part.copy_(permuted(part, generator))
        return type(self)(self.shape, self.parts | {OMEGA: omega})


class HalfEkfacOmega(EkfacOmega):
    """The same with the eigenvectors in bfloat16."""

    format = "ekfac_bfloat16"
    vectors_dtype = torch.bfloat16


def uniform_ekfac(shape: tuple[int, int], value: float) -> EkfacOmega:
    """``M = value I``: no direction kept on either side."""
    nothing = {OUTPUT_VECTORS: torch.zeros(shape[0], 0), INPUT_VECTORS: torch.zeros(shape[1], 0)}
    return EkfacOmega(shape, nothing | {OMEGA: torch.full((1, 1), value)})


def _overlap(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(k + 1, h + 1): how much of each of one's own directions (d, k) lies in each of the other's (d, h), and in the rest.

    Each row sums to 1. A row's direction is the mean over all of what is not kept, where it is the last.
    """
    k, h, size = own.shape[1], other.shape[1], own.shape[0]
    shares = own.new_zeros(k + 1, h + 1)
    shares[:k, :h] = (own.T @ other).square()
    shares[:k, h] = (1 - shares[:k, :h].sum(1)).clamp_min(0)
    if k < size:
        shares[k, :h] = (1 - shares[:k, :h].sum(0)).clamp_min(0) / (size - k)
        shares[k, h] = ((size - h) - shares[:k, h].sum()).clamp_min(0) / (size - k)
    return shares
