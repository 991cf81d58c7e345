"""theta* of one weight: where importance was measured, and what the penalty pulls it towards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from alora_trainer.weights.parameterization import Parameterization

# What PEFT puts before a module's name in an adapter's file and in its model.
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Stack:
    """Where one expert's factors lie in those of its stack, which PEFT keeps in one pair (`target_parameters`).

    Attributes:
        module: PEFT's module, by its name in the adapter's file without PEFT's own prefix.
        expert: which one of the stack.
        experts: how many there are: A has their rows one expert after the other, B their columns in turn.
    """

    module: str
    expert: int
    experts: int

    def of_a(self, a: torch.Tensor) -> torch.Tensor:
        """This expert's A (r, n) in the stack's (experts * r, n)."""
        return a.unflatten(0, (self.experts, -1))[self.expert]

    def of_b(self, b: torch.Tensor) -> torch.Tensor:
        """This expert's B (m, r) in the stack's (m, r * experts)."""
        return b.unflatten(1, (-1, self.experts))[:, :, self.expert]


@dataclass(frozen=True, eq=False)
class Reference:
    """theta* of one adapted weight, ``W0 + scaling * b @ a``: a (r, n), b (m, r); one of a stack, if it is an expert."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    stack: Stack | None = None

    parameterization: ClassVar[Parameterization] = Parameterization.ADAPTER

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return self.b.shape[0], self.a.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> Reference:
        """The same with its factors on a device, in a dtype."""
        return Reference(self.a.to(device, dtype), self.b.to(device, dtype), self.scaling, self.stack)

    def equals(self, other: object) -> bool:
        """Whether the factors are the same bit by bit, and what they mean."""
        return (
            isinstance(other, Reference)
            and (self.scaling, self.stack) == (other.scaling, other.stack)
            and same_tensor(self.a, other.a)
            and same_tensor(self.b, other.b)
        )


@dataclass(frozen=True, eq=False)
class FullReference:
    """theta* of one weight that was tuned itself: the matrix (m, n), in the layout that the model stores."""

    weight: torch.Tensor

    parameterization: ClassVar[Parameterization] = Parameterization.FULL

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        rows, columns = self.weight.shape
        return rows, columns

    def to(self, device: torch.device, dtype: torch.dtype) -> FullReference:
        """The same on a device, in a dtype."""
        return FullReference(self.weight.to(device, dtype))

    def equals(self, other: object) -> bool:
        """Whether the weights are the same bit by bit."""
        return isinstance(other, FullReference) and same_tensor(self.weight, other.weight)


def no_movement(shape: tuple[int, int]) -> Reference:
    """The reference of a weight (m, n) at its own base weight: factors of rank 0."""
    rows, columns = shape
    return Reference(torch.zeros(0, columns), torch.zeros(rows, 0), 1.0)


def same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and elements, wherever they are."""
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
