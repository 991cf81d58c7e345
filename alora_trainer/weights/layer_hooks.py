"""What passes through adapted layers: the input of each and the gradient of its output, while the model runs.

For ``y = W x`` the gradient of W is the sum over tokens of ``dL/dy x'``, which LoRA training never forms. Whoever needs more of
it than the factors' own gradients show takes x and dL/dy from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.products import Products

See = Callable[[AdaptedWeight, torch.Tensor, torch.Tensor], None]


class LayerHooks:
    """Calls ``see(weight, features, gradient)`` in every backward pass, once for every use of a layer in the forward pass.

    `features` is the layer's input, detached: (..., n), or token ids (...) for an embedding. `gradient` is dL/dy, (..., m),
    with whatever loss scaling the backward pass has. The inputs stay alive until the backward pass.

    Args:
        weights: the adapted weights, whose layers are watched until `close`.
        see: what to do with both.
        training_only: pass over what the model does in evaluation mode.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], see: See, *, training_only: bool = False) -> None:
        self._see = see
        self._training_only = training_only
        self._products = Products(weights, self._watch)

    def _watch(self, weight: AdaptedWeight, features: torch.Tensor, output: Any) -> None:
        if not (isinstance(output, torch.Tensor) and output.requires_grad):
            return
        if self._training_only and not weight.layer.training:
            return
        features = features.detach()
        output.register_hook(lambda gradient: self._see(weight, features, gradient))

    def close(self) -> None:
        """Take the hooks off the model."""
        self._products.close()
