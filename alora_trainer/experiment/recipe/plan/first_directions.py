"""What choosing a fresh adapter's first directions takes, before its training begins."""

from __future__ import annotations

from alora_trainer.experiment.recipe.plan.curvature import EIGEN_FLOPS, CurvatureModel
from alora_trainer.experiment.recipe.plan.memory import Memory, MemoryModel, Pass, Variant
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.initialization.settings import BY_GRADIENT, CONTRASTIVE, SKETCH
from alora_trainer.trainer.initialization.sketch import sketch_width

_SINGLE, _DOUBLE = 4, 8


class ChoosingModel:
    """Bytes and work of it.

    Args:
        memory: of the planned model.
        curvature: of the map that it is chosen by.
        config: how it is chosen.
        omega: bytes of that map.
    """

    def __init__(self, memory: MemoryModel, curvature: CurvatureModel, config: ALoRAConfig, omega: int) -> None:
        self._memory = memory
        self._config = config
        self._omega = omega
        self._weights = [(weight.shape, weight.rank) for weight in memory.planned.weights]
        self._inputs = curvature.distinct_inputs

    @property
    def passes(self) -> tuple[int, int]:
        """How often the items go forward and back, and how often forward alone."""
        if self._config.init_adapter not in BY_GRADIENT:
            return 0, 1
        return (2 if self._config.init_memory == SKETCH else 1), 1

    def peak(self, shape: Pass, variant: Variant) -> Memory:
        """What the device holds: no optimizer yet, but what is summed up, and one weight's decomposition."""
        parts = self._memory.training(shape, variant)
        del parts["optimizer"]
        parts["bases"] = self._omega
        if self._config.init_memory != "cpu" or self._memory.host:
            parts["sums"] = self._sums()
        # One at a time, in float64: the whitened matrix, a product with its transpose, and the eigenvectors of that.
        parts["a decomposition"] = max(_DOUBLE * (m * n + 2 * min(m, n) ** 2) for (m, n), _ in self._weights)
        return Memory(parts)

    def _sums(self) -> int:
        if self._config.init_adapter == CONTRASTIVE:
            return _SINGLE * sum(n * n for n in self._inputs)
        if self._config.init_adapter not in BY_GRADIENT:
            return 0
        if self._config.init_memory == SKETCH:
            return _SINGLE * sum(sketch_width(shape, rank) * sum(shape) for shape, rank in self._weights)
        return _SINGLE * self._memory.adapted_elements

    def flops(self, tokens: int) -> float:
        """Beside the passes through the model: products over `tokens`, and decompositions."""
        if self._config.init_adapter == CONTRASTIVE:
            products = 2.0 * tokens * sum(n * n for n in self._inputs)
        elif self._config.init_adapter not in BY_GRADIENT:
            products = 0.0
        elif self._config.init_memory == SKETCH:
            products = 8.0 * tokens * sum(sketch_width(shape, rank) * sum(shape) for shape, rank in self._weights)
        else:
            products = 2.0 * tokens * self._memory.adapted_elements
        return products + EIGEN_FLOPS * sum(float(min(shape)) ** 3 for shape, _ in self._weights)
