"""theta*: the weights at which importance was measured, and which the penalty holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.errors import ALoRAError

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


@dataclass(frozen=True)
class Reference:
    """theta* of one adapted weight, ``W0 + scaling * b @ a``: a (r, n), b (m, r); one of a stack, if it is an expert."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    stack: Stack | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class FullReference:
    """theta* of one weight that was tuned itself: the matrix (m, n), in the layout that the model stores."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weight.shape
        return rows, columns


def restricted(
    state: Mapping[str, torch.Tensor], config: Any, names: Iterable[str]
) -> tuple[dict[str, torch.Tensor], Any]:
    """theta* of some weights alone: their tensors, and a configuration that adapts these weights and no others.

    Raises:
        ALoRAError: the adapter has stacks of experts, whose configuration names parameters and not weights.
    """
    import copy

    if config.target_parameters:
        raise ALoRAError(
            "a map with stacks of experts (target_parameters) is taken whole: leave the choice of layers out"
        )
    names = list(names)
    kept = {
        key: tensor
        for key, tensor in state.items()
        if any(key.startswith(f"{PEFT_PREFIX}{name}.lora_") for name in names)
    }
    narrowed = copy.deepcopy(config)
    narrowed.target_modules = set(names)
    narrowed.exclude_modules = narrowed.layers_to_transform = narrowed.layers_pattern = narrowed.modules_to_save = None
    return kept, narrowed
