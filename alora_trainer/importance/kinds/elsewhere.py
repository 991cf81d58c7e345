"""The importance of a weight that another process keeps: how large it is, and nothing of what it says."""

from __future__ import annotations

from typing import NoReturn

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.kind import Importance, Measure, PartType


class Elsewhere(Importance):
    """Stands for the importance of a weight that this process did not read (see `artefact.reading.load_share`).

    It has no parts, and so takes no memory. Made by `elsewhere`, which gives it the kind and format of what is there.

    Args:
        shape: (m, n) of the weight.
        measured: how large the importance is, as the process that has it found.
    """

    def __init__(self, shape: tuple[int, int], measured: Measure) -> None:
        super().__init__(shape, {})
        self._measured = measured

    def measure(self) -> Measure:
        return self._measured

    def to(self, device: torch.device | str) -> Importance:
        return self

    def _missing(self) -> NoReturn:
        raise ALoRAError(
            f"the importance of this weight {self.shape} is kept by another process, and this one did not read it: read the "
            "whole map with ImportanceMap.from_pretrained"
        )

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {}

    def part_types_as(self, to: type[Importance]) -> dict[str, PartType]:
        self._missing()

    def check_parts(self, name: str) -> None:
        self._missing()

    def diagonal(self) -> torch.Tensor:
        self._missing()

    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        self._missing()

    def add(self, earlier: Importance) -> Importance:
        self._missing()

    def convert(self, to: type[Importance]) -> Importance:
        self._missing()

    def equals(self, other: Importance) -> bool:
        self._missing()

    def shuffled(self, generator: torch.Generator) -> Importance:
        self._missing()


def elsewhere(shape: tuple[int, int], like: type[Importance], measured: Measure) -> Importance:
    """What stands for the importance of a weight that another process keeps in the format `like`."""
    facts = {"kind": like.kind, "format": like.format, "layer_weights": like.layer_weights, "lam": like.lam}
    made: type[Elsewhere] = type(f"{like.__name__}Elsewhere", (Elsewhere,), facts)
    return made(shape, measured)
