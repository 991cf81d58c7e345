"""What measuring curvature takes, and what a penalty by it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

from alora_trainer.experiment.recipe.plan.memory import Memory, MemoryModel, Pass, Variant
from alora_trainer.experiment.recipe.plan.step_trace import trace_step
from alora_trainer.importance.kinds.ekfac import EKFAC
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import COVARIANCE
from alora_trainer.importance.recording.curvature_config import CurvatureConfig
from alora_trainer.weights.adapted import AdaptedWeight

# Floating-point operations of an eigendecomposition with vectors, by the cube of the matrix's side (Golub and Van Loan, 8.3).
EIGEN_FLOPS = 9
_DOUBLE = 8


class CurvatureModel:
    """Bytes and work of curvature of a planned model's weights.

    Args:
        memory: of the planned model.
        settings: how curvature is measured and kept.
    """

    def __init__(self, memory: MemoryModel, settings: CurvatureConfig) -> None:
        self._memory = memory
        self._settings = settings
        self._shapes = {weight.name: weight.shape for weight in memory.planned.weights}
        self._leaders = _leaders(memory)

    @property
    def distinct_inputs(self) -> list[int]:
        """n of every input, those that several weights are given once."""
        return [n for name, (_, n) in self._shapes.items() if self._leaders[name] == name]

    def map_bytes(self, kind: str) -> int:
        """The importance of all weights, what several have in common once."""
        format = storage_format(self._settings.format(kind))
        assert issubclass(format, InBasis)
        return sum(
            format.stored_bytes(shape, self._settings.keep, inputs_shared=self._leaders[name] != name)
            for name, shape in self._shapes.items()
        )

    def measuring(self, kind: str) -> Callable[[Pass, Variant], Memory]:
        """What the device holds while curvature of this kind is measured."""

        def peak(shape: Pass, variant: Variant) -> Memory:
            parts = self._memory.training(shape, variant)
            del parts["optimizer"]
            sums = [n * n for n in self.distinct_inputs]
            sums += [] if kind == COVARIANCE else [m * m for m, _ in self._shapes.values()]
            if self._settings.location == "device" or self._memory.host:
                # Parts are of about one size, but none is less than a weight.
                parts["sums"] = 4 * max(sum(sums) // self._settings.parts, max(sums))
            # One at a time: the matrix, its eigenvectors and the workspace of their computation.
            parts["an eigendecomposition"] = 3 * _DOUBLE * max(sums)
            return Memory(parts)

        return peak

    def sum_bytes(self, kind: str) -> int:
        """The sums, wherever they are kept."""
        return self.measuring(kind)(Pass(1, 8), Variant()).parts.get("sums", 0)

    def flops(self, kind: str, tokens: int) -> float:
        """Beside the passes through the model: products of inputs and of gradients, and their eigenvectors."""
        inputs = self.distinct_inputs
        outputs = [] if kind == COVARIANCE else [m for m, _ in self._shapes.values()]
        draws = self._settings.draws
        products = 2.0 * tokens * (sum(n * n for n in inputs) + draws * sum(m * m for m in outputs))
        if kind == EKFAC:  # gradients and inputs in the bases, and the tokens of a sequence with each other
            products += 2.0 * tokens * draws * sum(m * m + n * n + m * n for m, n in self._shapes.values())
        return products + EIGEN_FLOPS * sum(float(side) ** 3 for side in (*inputs, *outputs))


def _leaders(memory: MemoryModel) -> Mapping[str, str]:
    """By weight, the first one that is given the very same input; found in a pass of a few tokens."""
    leaders: dict[str, str] = {}
    with _watching(memory, leaders):
        trace_step(memory.planned.model, batch_size=1, length=8, train=False)
    return leaders


@contextmanager
def _watching(memory: MemoryModel, leaders: dict[str, str]) -> Any:
    last: list[tuple[str, Any]] = []

    def watch(weight: AdaptedWeight) -> Any:
        name = weight.name

        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            # Experts in one parameter are given some of the tokens each.
            shared = bool(last) and last[-1][1] is inputs[0] and weight.stack is None
            leaders[name] = last[-1][0] if shared else name
            if not shared:
                last[:] = [(name, inputs[0])]

        return hook

    handles = [weight.layer.register_forward_hook(watch(weight)) for weight in memory.planned.weights]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
