"""Second moments of what passes through adapted layers, and squared gradients in a basis: sums that curvature is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layers

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.layer_hooks import LayerHooks


def _check_linear(weights: Sequence[AdaptedWeight]) -> None:
    for weight in weights:
        if weight.is_embedding or isinstance(weight.layer, (lora_layers._ConvNd, lora_layers.ParamWrapper)):
            raise ALoRAError(
                f"curvature knows linear layers, and {weight.name} is a {type(weight.layer).__name__}: leave it out of "
                "target_modules"
            )


class LayerMoments:
    """Sums of x x' over a layer's inputs and of g g' over the gradients of its outputs, while batches pass through the model.

    Layers that are given the very same tensor (the projections of an attention layer, say) share the sum over it.

    Args:
        weights: those that are meant; linear layers.
        outputs: whether all of g g' is summed up; if not, only its trace.
        location: where the sums are kept: "device" beside the weights, or "cpu".

    Attributes:
        leaders: by weight name, whose input it shares; its own name if nobody's.

    Raises:
        ALoRAError: a weight is of no linear layer.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], *, outputs: bool, location: str) -> None:
        _check_linear(weights)
        self._weights = weights
        self._outputs = outputs
        self._location = location
        self.leaders: dict[str, str] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        self._mask = torch.zeros(0)
        self._last: tuple[str, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sum up what passes through the layers within the block."""
        handles = [w.layer.register_forward_hook(self._see_input(w)) for w in self._weights]
        handles += [w.layer.register_forward_hook(self._see_output(w)) for w in self._weights]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def begin(self, mask: torch.Tensor) -> None:
        """Say which tokens (B, T) of the next batch are real."""
        self._mask, self._last = mask, None

    def inputs(self) -> dict[str, torch.Tensor]:
        """By leader, the mean of x x' (n, n) over the rows that it was given, in float64."""
        return {name: total.double() / self._rows[name] for name, total in self._inputs.items()}

    def output(self, name: str, tokens: int) -> torch.Tensor:
        """``1 / tokens sum g g'`` (m, m), or the mean of its diagonal alone, in float64.

        Raises:
            ALoRAError: nothing has passed through the layer.
        """
        if name not in self._gradients:
            raise ALoRAError(
                f"nothing has passed through {name} that a prediction depends on: give it more text, or leave it out of "
                "target_modules"
            )
        return self._gradients[name].double() / tokens

    def _see_input(self, weight: AdaptedWeight) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            features = inputs[0].detach()
            shared = self._last is not None and self._last[1] is inputs[0]
            leader = self._last[0] if shared and self._last is not None else weight.name
            if self.leaders.setdefault(weight.name, leader) != leader:
                raise ALoRAError(
                    f"{weight.name} does not share its input with {self.leaders[weight.name]} in every batch: leave it out of "
                    "target_modules"
                )
            if shared:
                return
            self._last = (weight.name, inputs[0])
            x = self._real(features, weight)
            self._add(self._inputs, weight, x.T @ x)
            self._rows[weight.name] = self._rows.get(weight.name, 0) + len(x)

        return hook

    def _see_output(self, weight: AdaptedWeight) -> Callable[..., None]:
        def add(gradient: torch.Tensor) -> None:
            g = gradient.detach().reshape(-1, gradient.shape[-1]).to(weight.dtype)
            # Padding has no influence on any prediction: its gradients are zero.
            self._add(self._gradients, weight, g.T @ g if self._outputs else g.square().sum() / g.shape[1])

        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(add)

        return hook

    def _real(self, features: torch.Tensor, weight: AdaptedWeight) -> torch.Tensor:
        rows = features.reshape(-1, features.shape[-1]).to(weight.dtype)
        if bool(self._mask.all()):
            return rows
        if len(rows) != self._mask.numel():
            raise ALoRAError(
                f"{weight.name} is given other rows than the batch's tokens (a mixture of experts?), so that padding cannot be "
                "told apart: use packed text without padding"
            )
        return rows[self._mask.flatten()]

    def _add(self, sums: dict[str, torch.Tensor], weight: AdaptedWeight, part: torch.Tensor) -> None:
        part = part if self._location == "device" else part.cpu()
        if weight.name in sums:
            sums[weight.name] += part
        else:
            sums[weight.name] = part.clone()


class RotatedSquares:
    """Sums over sequences of the squared gradients ``(U' (sum_tokens g x') V)**2``, the rest of either basis as one number.

    Args:
        weights: those that are meant; linear layers.
        bases: what has their U and V.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], bases: Mapping[str, InBasis]) -> None:
        _check_linear(weights)
        self._weights = weights
        self._vectors = {
            w.name: (
                bases[w.name].output_vectors(w.dtype).to(w.device),
                bases[w.name].input_vectors(w.dtype).to(w.device),
            )
            for w in weights
        }
        self._sums: dict[str, torch.Tensor] = {}
        self._shape = (0, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sum up what passes through the layers within the block."""
        hooks = LayerHooks(self._weights, self._add)
        try:
            yield
        finally:
            hooks.close()

    def begin(self, mask: torch.Tensor) -> None:
        """Say how many sequences and tokens (B, T) the next batch has."""
        self._shape = (mask.shape[0], mask.shape[1])

    def omega(self, name: str, tokens: int) -> torch.Tensor:
        """Omega (k + 1, h + 1), in float64."""
        (u, v), total = self._vectors[name], self._sums[name] / tokens
        k, h = u.shape[1], v.shape[1]
        total[k] /= max(u.shape[0] - k, 1)
        total[:, h] /= max(v.shape[0] - h, 1)
        return total.clamp_min(0)

    def _add(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        if gradient.shape[:2] != self._shape:
            raise ALoRAError(
                f"{weight.name} does not see one row a token (a mixture of experts?), so that sequences cannot be told apart: "
                "leave it out of target_modules, or record importance 'kronecker'"
            )
        u, v = self._vectors[weight.name]
        for x, g in zip(features.to(weight.dtype), gradient.detach().to(weight.dtype), strict=True):
            p, q = g @ u, x @ v
            kept = (p.T @ q).double().square()
            # |U_i' M|**2, |M V_j|**2 and |M|**2 of M = sum g x', from the products of tokens with each other.
            of_inputs, of_outputs = (x @ x.T).double(), (g @ g.T).double()
            rows = ((of_inputs @ p.double()) * p).sum(0)
            columns = ((of_outputs @ q.double()) * q).sum(0)
            total = (of_inputs * of_outputs).sum()
            part = kept.new_zeros(kept.shape[0] + 1, kept.shape[1] + 1)
            part[:-1, :-1] = kept
            part[:-1, -1], part[-1, :-1] = rows - kept.sum(1), columns - kept.sum(0)
            part[-1, -1] = total - rows.sum() - columns.sum() + kept.sum()
            if weight.name in self._sums:
                self._sums[weight.name] += part
            else:
                self._sums[weight.name] = part
