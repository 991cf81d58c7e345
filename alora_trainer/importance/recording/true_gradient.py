"""The true gradient of an adapted weight, which LoRA training never forms: for the `exact` estimator.

It is the sum over tokens of ``dL/dy x'`` as they pass through the layer (`LayerHooks`), added up over the micro-batches of an
optimizer step. Cost: 2 m n flops a token and one more (m, n) matrix per weight,
like the weight gradients of full fine-tuning; the layers' inputs stay alive until the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import layer as lora_layers

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.layer_hooks import LayerHooks
from alora_trainer.weights.steps import Matrix, Step


class TrueGradients:
    """Sums of ``dL/dW`` of every adapted weight since `reset`, with whatever loss scaling the backward pass had.

    Args:
        weights: the adapted weights.

    Raises:
        ALoRAError: a weight belongs to a layer whose gradient is no plain outer product (convolutions).
    """

    def __init__(self, weights: Sequence[AdaptedWeight]) -> None:
        self._sums = {w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device) for w in weights}
        for weight in weights:
            if not isinstance(weight.layer, (lora_layers.Linear, lora_layers.Embedding)):
                raise ALoRAError(
                    f"record='exact' knows linear and embedding layers only, and {weight.name} is a "
                    f"{type(weight.layer).__name__}: use record='projected'"
                )
        self._hooks = LayerHooks(weights, self._add, training_only=True)

    def _add(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        total = self._sums[weight.name]
        rows = gradient.flatten(0, -2).to(total.dtype)
        if weight.is_embedding:
            total.index_add_(1, features.flatten(), rows.T)
        else:
            total.addmm_(rows.T, features.flatten(0, -2).to(total.dtype))

    def take(self, scale: float) -> dict[str, torch.Tensor]:
        """The sums divided by the loss scaler's `scale` and averaged over processes, as DDP does with its gradients.

        The tensors are the running sums themselves: use them before `reset`.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        processes = torch.distributed.get_world_size() if distributed else 1
        for total in self._sums.values():
            if processes > 1:
                torch.distributed.all_reduce(total)
            if scale * processes != 1:
                total.div_(scale * processes)
        return self._sums

    def reset(self) -> None:
        """Begin a new optimizer step."""
        for total in self._sums.values():
            total.zero_()

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.close()


@dataclass(frozen=True)
class KnownGradient:
    """A step whose gradient is the weight's own, (m, n), and not what LoRA's factors show of it."""

    step: Step
    known: torch.Tensor

    @property
    def learning_rate(self) -> float:
        return self.step.learning_rate

    def gradient(self) -> torch.Tensor:
        return self.known

    def movement(self) -> Matrix:
        return self.step.movement()
