"""The two ways in which a training moves a model's weights: through LoRA's factors, or as they are."""

from __future__ import annotations

from enum import Enum


class Parameterization(Enum):
    """What the parameters are that a training moves.

    ADAPTER: thin factors beside frozen weights, ``W0 + s B A`` (a PEFT adapter).
    FULL: the model's own weights, as Synaptic Intelligence and EWC were published.

    Which weights of a model each of them means, `weights.model_weights.trained_weights` says.
    """

    ADAPTER = "adapter"
    FULL = "full"

    @classmethod
    def of(cls, full_parameters: bool) -> Parameterization:
        """What the setting `full_parameters` of `ALoRAConfig` means."""
        return cls.FULL if full_parameters else cls.ADAPTER

    @property
    def full_parameters(self) -> bool:
        """The value of the setting `full_parameters` of `ALoRAConfig` that means this."""
        return self is Parameterization.FULL

    @property
    def words(self) -> str:
        """What is trained, for a message: "a LoRA adapter" or "whole weights"."""
        return _WORDS[self]


_WORDS = {Parameterization.ADAPTER: "a LoRA adapter", Parameterization.FULL: "whole weights"}
