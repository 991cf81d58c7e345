"""What general text says of the directions of a weight: both sides of its curvature, damped, to the power of -1/2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.eigenbasis import EigenSide, multiply
from alora_trainer.importance.kinds.ekfac import OMEGA, EkfacOmega
from alora_trainer.importance.kinds.in_basis import InBasis, dimensions
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import KroneckerOmega


def checked_curvature(name: str, importance: Importance) -> InBasis:
    """A weight's importance, which directions can be chosen by.

    Raises:
        ALoRAError: it is of elements.
    """
    if not isinstance(importance, InBasis):
        raise ALoRAError(
            f"the importance of {name} is of its elements, and the adapter's first directions are chosen by curvature: "
            "give a map of kronecker, ekfac or covariance importance (alora record --importance kronecker)"
        )
    return importance


@dataclass(frozen=True)
class GeneralMetric:
    """``(G + d)^-1/2`` of a weight's outputs and ``(S + d)^-1/2`` of its inputs, in float64.

    Each d is `damping` times the mean eigenvalue of its side. A matrix of zeros says nothing of any direction, and is taken
    for a multiple of the identity. Both are known by their eigenvectors, so that no square matrix is made.

    Attributes:
        outputs, inputs: the eigenvectors of G and S, with the powers for values.
    """

    outputs: EigenSide
    inputs: EigenSide

    @classmethod
    def of(cls, name: str, importance: Importance, damping: float, device: torch.device) -> GeneralMetric:
        """That of a weight's importance.

        Args:
            name: of the weight, for the message.
            importance: in a basis: G and S themselves, or (EK-FAC) what is nearest to both: the sums of Omega over the other
                side. The inputs' covariance alone has a multiple of the identity for G.
            damping: above 0.
            device: where it is used; it has float64.

        Raises:
            ALoRAError: the importance is of elements.
        """
        sides = (_wide(side, device) for side in _sides(checked_curvature(name, importance)))
        return cls(*(_inverse_root(side, size, damping) for side, size in zip(sides, importance.shape, strict=True)))

    @classmethod
    def euclidean(cls, shape: tuple[int, int], device: torch.device) -> GeneralMetric:
        """The identity on both sides: what general text says is not asked for."""
        outputs, inputs = (
            EigenSide(
                torch.zeros(size, 0, dtype=torch.float64, device=device),
                torch.ones(1, dtype=torch.float64, device=device),
            )
            for size in shape
        )
        return cls(outputs, inputs)

    def whiten_outputs(self, left: torch.Tensor) -> torch.Tensor:
        """``(G + d)^-1/2 left``, (m, p)."""
        return multiply(self.outputs.vectors, self.outputs.values, left)

    def whiten_inputs(self, right: torch.Tensor) -> torch.Tensor:
        """``right (S + d)^-1/2``, (p, n)."""
        return multiply(self.inputs.vectors, self.inputs.values, right.T).T


def _sides(importance: InBasis) -> tuple[EigenSide, EigenSide]:
    u, v = importance.output_vectors(), importance.input_vectors()
    if isinstance(importance, KroneckerOmega):
        return EigenSide(u, importance.output_values), EigenSide(v, importance.input_values)
    assert isinstance(importance, EkfacOmega)
    (m, n), (k, h) = importance.shape, importance.kept
    omega = importance.parts[OMEGA].double()
    of_outputs = omega @ dimensions(h, n).to(omega) / n
    return EigenSide(u, of_outputs), EigenSide(v, omega.T @ dimensions(k, m).to(omega) / m)


def _wide(side: EigenSide, device: torch.device) -> EigenSide:
    return EigenSide(side.vectors.to(device, torch.float64), side.values.to(device, torch.float64))


def _inverse_root(side: EigenSide, size: int, damping: float) -> EigenSide:
    mean = side.mean(size)
    if mean == 0:
        return EigenSide(side.vectors, torch.ones_like(side.values))
    return EigenSide(side.vectors, (side.values + damping * mean).rsqrt())
