"""How far a training moves every adapted weight from where it starts."""

from __future__ import annotations

from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.log_columns import rounded
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.steps import movement_factors


class StartingPoint:
    """Where the adapted weights stand before a training, to say afterwards how far each has moved."""

    def __init__(self, model: Any) -> None:
        self._before = [(weight, weight.a.double().clone(), weight.b.double().clone()) for weight in _adapted(model)]

    def drift(self) -> dict[str, float]:
        """``||W - W_start||_2`` (Frobenius) of every adapted weight, from the small factors (exact for small movements)."""
        norms = {}
        for weight, a, b in self._before:
            factors = movement_factors(a, b, weight.a.double(), weight.b.double(), weight.scaling)
            norms[weight.name] = rounded(factors.norm())
        return norms


def _adapted(model: Any) -> list[AdaptedWeight]:
    """The adapted weights; none where what is trained is not LoRA, or a variant whose movement is not ``s B A``."""
    try:
        return adapted_weights(model)
    except ALoRAError:
        return []  # the training itself is not the worse for it; its drift is just not known
