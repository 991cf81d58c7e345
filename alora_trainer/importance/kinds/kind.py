"""What importance is: a positive semidefinite metric on a weight's movement, of some kind and in some storage format."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from alora_trainer.errors import ALoRAError

# dtype and shape of one tensor that a format stores.
PartType = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Measure:
    """How large a metric M is.

    Attributes:
        trace: trace M, whose mean over all elements is the unit that importance is normalised by.
        norm: ``||M||_F``, the root of the summed squares of its eigenvalues: w_l of arXiv 2501.13669 eq. 17.
        least: its least eigenvalue, which is negative where M is no metric.
    """

    trace: float
    norm: float
    least: float


class Importance(ABC):
    """How much one weight's movements D (m, n) matter: ``R = <D, M D>``, for a positive semidefinite M.

    A subclass is one storage format of one kind. A kind says what M is ("elementwise": diagonal, ``M = diag(Omega)``), a
    format which tensors M is kept as. Nothing else in the package knows how a format works inside.

    Args:
        shape: (m, n) of the weight.
        parts: the format's tensors by part name; the empty name stands for the tensor of a format that has only one.

    Attributes:
        kind: the kind's name, as in `KINDS`.
        format: the format's name, as in `FORMATS`: lower-case letters, digits and underscores, as it is a part of file names.
        listed: whether `alora plan` says what importance takes in this format.
        layer_weights: the setting of w_l that is meant where none is given: "l2" for its norm, "none" for importance that is
            on one scale over all layers as it is measured.
        lam: the strength lambda that is meant where neither one nor a budget is given.
        shareable: the parts that several weights may have in common, which are then kept once.
    """

    kind: ClassVar[str]
    format: ClassVar[str]
    listed: ClassVar[bool] = True
    shareable: ClassVar[tuple[str, ...]] = ()
    layer_weights: ClassVar[str] = "l2"
    lam: ClassVar[float] = 0.01

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, torch.Tensor]) -> None:
        self.shape = shape
        self.parts = dict(parts)

    @classmethod
    @abstractmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        """dtype and shape of every part, for a weight of `shape`; a size of -1 is free, see `check_free_sizes`."""

    @classmethod
    def made_part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        """`part_types` as they are when importance is recorded in this format or converted to it: no size is free."""
        return cls.part_types(shape)

    def part_types_as(self, to: type[Importance]) -> dict[str, PartType]:
        """dtype and shape of the parts that this one has in another format of its kind, once converted."""
        return self.present_part_types if to is type(self) else to.made_part_types(self.shape)

    @classmethod
    def made_bytes(cls, shape: tuple[int, int]) -> int:
        """Bytes that the importance of a weight of `shape` takes when it is recorded in this format or converted to it."""
        return sum(math.prod(sizes) * dtype.itemsize for dtype, sizes in cls.made_part_types(shape).values())

    @classmethod
    def check_free_sizes(cls, shape: tuple[int, int], found: Mapping[str, tuple[int, ...]]) -> None:
        """Look at the sizes that `part_types` leaves free, in a stranger's file.

        Args:
            shape: of the weight.
            found: the parts' shapes, which fit `part_types` in everything else.

        Raises:
            ValueError: they cannot be.
        """
        if not all(size > 0 for sizes in found.values() for size in sizes):
            raise ValueError("a part is empty")

    @classmethod
    def parameters(cls) -> dict[str, int]:
        """Numbers that the parts cannot be read without; they are written beside them."""
        return {}

    @property
    def present_part_types(self) -> dict[str, PartType]:
        """dtype and shape of the parts as they are."""
        return {name: (part.dtype, tuple(part.shape)) for name, part in self.parts.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def to(self, device: torch.device | str) -> Importance:
        """The same on another device."""
        return type(self)(self.shape, {name: part.to(device) for name, part in self.parts.items()})

    def equals(self, other: Importance) -> bool:
        """Whether kind, format and every element of every part are the same, wherever they are."""
        return (
            (self.kind, self.format, self.shape) == (other.kind, other.format, other.shape)
            and self.present_part_types == other.present_part_types
            and all(torch.equal(part.cpu(), other.parts[name].cpu()) for name, part in self.parts.items())
        )

    @abstractmethod
    def check_parts(self, name: str) -> None:
        """Look at the parts of a stranger's file themselves, where `measure` would not show what is wrong with them.

        Args:
            name: of the weight, for the message.

        Raises:
            ALoRAError: they hold values that the format cannot have.
        """

    @abstractmethod
    def measure(self) -> Measure:
        """How large M is; NaN or infinite where its parts are."""

    @abstractmethod
    def diagonal(self) -> torch.Tensor:
        """M's diagonal as a matrix (m, n), float32 or float64: how much each element matters when it moves alone."""

    @abstractmethod
    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        """``M D`` of a movement D (m, n), in its dtype and on its device, where the parts must be, too."""

    @abstractmethod
    def add(self, earlier: Importance) -> Importance:
        """The sum of both metrics, in this one's format.

        Args:
            earlier: of the same kind and shape, on any device, in any format.
        """

    def convert(self, to: type[Importance]) -> Importance:
        """The same in another storage format of its kind.

        Raises:
            ALoRAError: the format is of another kind.
        """
        if to is type(self):
            return self
        raise ALoRAError(
            f"importance kept as {self.format!r} ({self.kind}) cannot be converted to {to.format!r}, which keeps {to.kind} "
            "importance: leave the format out, or name one of its own kind"
        )

    def shuffled(self, generator: torch.Generator) -> Importance:
        """A control: as large as this one, and with what matters put to random places.

        Raises:
            ALoRAError: there is no such control for this kind.
        """
        raise ALoRAError(f"there is no shuffled control of {self.kind} importance: use 'uniform' or 'even'")


@dataclass(frozen=True)
class Kind:
    """What all storage formats of one kind of importance have in common.

    Attributes:
        name: as in `Importance.kind`.
        uniform: ``uniform(shape, value)``: importance ``M = value I`` of this kind for a weight (m, n), in a format that takes
            no memory of the weight's size where there is one.
        formula: R of one weight's movement D, in plain characters; empty where a card need not say it.
        meaning: what it is, for a card: a sentence or two.
    """

    name: str
    uniform: Callable[[tuple[int, int], float], Importance]
    formula: str = ""
    meaning: str = ""
