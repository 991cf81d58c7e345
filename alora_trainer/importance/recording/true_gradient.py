"""The true gradient of an adapted weight, which LoRA training never forms: for the `exact` estimator.

For ``y = W x`` it is the sum over tokens of ``dL/dy x'``. Hooks on PEFT's layers take x and dL/dy as they pass, and add the
product up over the micro-batches of an optimizer step. Cost: 2 m n flops a token and one more (m, n) matrix per weight,
like the weight gradients of full fine-tuning; the layers' inputs stay alive until the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layers

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import AdaptedWeight


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
        self._handles = [weight.layer.register_forward_hook(self._watch(weight)) for weight in weights]

    def _watch(self, weight: AdaptedWeight) -> Any:
        total = self._sums[weight.name]
        embedding = isinstance(weight.layer, lora_layers.Embedding)

        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if not (module.training and isinstance(output, torch.Tensor) and output.requires_grad):
                return
            features = inputs[0].detach()

            def add(gradient: torch.Tensor) -> None:
                rows = gradient.flatten(0, -2).to(total.dtype)
                if embedding:
                    total.index_add_(1, features.flatten(), rows.T)
                else:
                    total.addmm_(rows.T, features.flatten(0, -2).to(total.dtype))

            output.register_hook(add)

        return hook

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
        for handle in self._handles:
            handle.remove()
