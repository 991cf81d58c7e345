"""The two ways in which a training moves a model's weights: through LoRA's factors, or as they are."""

from __future__ import annotations

from enum import Enum


class Parameterization(Enum):
    """What the parameters are that a training moves.

    ADAPTER: thin factors beside frozen weights, ``W0 + s B A`` (a PEFT adapter).
    FULL: the model's own weights, as Synaptic Intelligence and EWC were published.
    """

    ADAPTER = "adapter"
    FULL = "full"
