"""theta* of all weights together: an adapter with its configuration, the weights themselves, or the base as it was."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import PEFT_PREFIX, FullReference, Reference, no_movement, same_tensor


class Theta(Mapping[str, Any], ABC):
    """theta*: the weights at which importance was measured. A mapping of weight names to their references.

    Two are equal if they have the same weights, bit by bit.

    Attributes:
        parameterization: what was trained.
    """

    parameterization: ClassVar[Parameterization]

    def holds(self, parameterization: Parameterization) -> bool:
        """Whether a training of this parameterization can be held at theta*."""
        return self.parameterization is parameterization

    def __init__(self, references: Mapping[str, Any]) -> None:
        self._references = dict(references)

    def __getitem__(self, name: str) -> Any:
        return self._references[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)

    @abstractmethod
    def restricted(self, names: Sequence[str]) -> Theta:
        """theta* of some weights alone.

        Raises:
            ALoRAError: these cannot be told from the others.
        """

    @abstractmethod
    def with_unmoved(self, shapes: Mapping[str, tuple[int, int]]) -> Theta:
        """The same with further weights, by name and (m, n), which were not trained: their theta* is their base weight.

        Raises:
            ALoRAError: the weights themselves were trained, so that there is no base weight beside theirs.
        """


class AdapterTheta(Theta):
    """theta* of a training with LoRA.

    Args:
        references: of every adapted weight, by its name in the base model.
        state: the whole adapter as PEFT's own state dict (``get_peft_model_state_dict``), so that it can be saved; empty for a
            theta* that is never saved.
        config: PEFT's configuration of it; None for a theta* that is never saved.
    """

    parameterization = Parameterization.ADAPTER

    def __init__(
        self,
        references: Mapping[str, Reference],
        state: Mapping[str, torch.Tensor] | None = None,
        config: Any = None,
    ) -> None:
        super().__init__(references)
        self.state = dict(state or {})
        self.config = config

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, AdapterTheta)
            and self.keys() == other.keys()
            and all(self[name].equals(other[name]) for name in self)
            and self.state.keys() == other.state.keys()
            and all(same_tensor(tensor, other.state[key]) for key, tensor in self.state.items())
        )

    def restricted(self, names: Sequence[str]) -> AdapterTheta:
        """theta* of some weights alone: their tensors, and a configuration that adapts these weights and no others.

        Raises:
            ALoRAError: the adapter has stacks of experts, whose configuration names parameters and not weights.
        """
        if set(names) == set(self):
            return self
        references = {name: self[name] for name in names}
        if self.config is None:
            return AdapterTheta(references)
        if self.config.target_parameters:
            raise ALoRAError(
                "a map with stacks of experts (target_parameters) is taken whole: leave the choice of layers out"
            )
        kept = {
            key: tensor
            for key, tensor in self.state.items()
            if any(key.startswith(f"{PEFT_PREFIX}{name}.lora_") for name in names)
        }
        config = copy.deepcopy(self.config)
        config.target_modules = set(names)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = config.modules_to_save = None
        config.bias, config.trainable_token_indices = "none", None
        return AdapterTheta(references, kept, config)

    def with_unmoved(self, shapes: Mapping[str, tuple[int, int]]) -> AdapterTheta:
        unmoved = {name: no_movement(shape) for name, shape in shapes.items()}
        return AdapterTheta(self._references | unmoved, self.state, self.config)


class BaseTheta(Theta):
    """theta* is the base weights themselves: importance was measured there, and no adapter belongs to it.

    Any adapter that starts at zero is at this theta*, whatever its rank and target modules, and so is the base model itself.

    Args:
        shapes: (m, n) of every weight, by name.
    """

    parameterization = Parameterization.ADAPTER  # in whose terms it is said: a movement of zero

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__({name: no_movement(shape) for name, shape in shapes.items()})

    def holds(self, parameterization: Parameterization) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BaseTheta)
            and self.keys() == other.keys()
            and all(self[name].shape == other[name].shape for name in self)
        )

    def restricted(self, names: Sequence[str]) -> BaseTheta:
        return BaseTheta({name: self[name].shape for name in names})

    def with_unmoved(self, shapes: Mapping[str, tuple[int, int]]) -> BaseTheta:
        return BaseTheta({name: reference.shape for name, reference in self.items()} | dict(shapes))


class FullTheta(Theta):
    """theta* of a training of the model's own weights.

    Args:
        references: of every weight, by name.
    """

    parameterization = Parameterization.FULL

    def __init__(self, references: Mapping[str, FullReference]) -> None:
        super().__init__(references)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FullTheta)
            and self.keys() == other.keys()
            and all(self[name].equals(other[name]) for name in self)
        )

    def restricted(self, names: Sequence[str]) -> FullTheta:
        return FullTheta({name: self[name] for name in names})

    def with_unmoved(self, shapes: Mapping[str, tuple[int, int]]) -> FullTheta:
        raise ALoRAError(
            f"{next(iter(shapes))} was not recorded, and where the weights themselves are tuned there is no base weight to "
            "hold it at: record it, or say missing='free'"
        )
