"""Second moments of what passes through adapted layers: the sums that Kronecker factors are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layers

from alora_trainer.basics.processes import Processes, together
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.products import Products

INPUTS, GRADIENTS = "inputs", "gradients"


def check_whole(weights: Sequence[AdaptedWeight]) -> None:
    """Raises ALoRAError for a model that is spread over processes."""
    for weight in weights:
        if weight.is_sharded:
            raise ALoRAError(
                f"{weight.name} is spread over processes, and curvature needs the whole model on each: give each process the "
                "model and its share of the text"
            )


def check_layers(weights: Sequence[AdaptedWeight]) -> None:
    """Raises ALoRAError unless all weights are of linear layers, experts or embeddings."""
    for weight in weights:
        if isinstance(weight.layer, lora_layers._ConvNd):
            raise ALoRAError(
                f"curvature knows linear layers, experts and embeddings, and {weight.name} is a "
                f"{type(weight.layer).__name__}: leave it out of target_modules"
            )


def embedding_scale(weight: AdaptedWeight) -> float:
    """What an embedding multiplies its columns by (Gemma's do)."""
    scale = weight.layer._get_embed_scale()
    return 1.0 if scale is None else float(scale)


def with_float64(device: torch.device) -> torch.device:
    """`device`, or host memory where it has no float64: Apple's GPUs."""
    return torch.device("cpu") if device.type == "mps" else device


class LayerMoments:
    """Sums of x x' over a layer's inputs and of g g' over the gradients of its outputs, while batches pass through the model.

    Layers that are given the very same tensor (the projections of an attention layer, say) share the sum over it. An
    embedding's inputs are unit vectors, one a token: their moments are a diagonal, the tokens' counts.

    Args:
        weights: those that are meant; of linear layers and embeddings.
        outputs: whether all of g g' is summed up; if not, only the mean of its diagonal.
        location: where the sums are kept: "device" beside the weights, or "cpu".

    Attributes:
        devices: by weight name, where its matrices are decomposed: where the weight is, or in host memory where that device has
            no float64.
        leaders: by weight name, whose input it shares; its own name if nobody's.
        rows: by leader, how many inputs there were.
        sums: "inputs.LEADER" (n, n), or (n,) of an embedding; "gradients.NAME" (m, m), or a number.

    Raises:
        ALoRAError: a weight is of another kind of layer.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], *, outputs: bool, location: str) -> None:
        check_layers(weights)
        self._weights = weights
        self._outputs = outputs
        self._location = location
        self.devices = {w.name: with_float64(w.device) for w in weights}
        self.leaders: dict[str, str] = {}
        self.rows: dict[str, int] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self._mask: torch.Tensor | None = None
        self._tokens = 0
        self._last: tuple[str, torch.Tensor, int] | None = None
        self._forward = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sum up what passes through the layers within the block."""
        products = Products(self._weights, self._see)
        try:
            yield
        finally:
            products.close()
            self._last = None

    def begin(self, mask: torch.Tensor) -> None:
        """Say which tokens (B, T) of the forward pass to come are real."""
        self._mask, self._tokens = (None if bool(mask.all()) else mask.flatten()), mask.numel()
        self._last, self._forward = None, True

    def end_forward(self) -> None:
        """What passes forward from here on is a recomputation (gradient checkpointing), which has been seen."""
        self._last, self._forward = None, False

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that `restore` needs, as tensors and as plain values."""
        return self.sums, {"leaders": self.leaders, "rows": self.rows}

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        places = self._places()
        self.sums = {key: tensor.to(places[key.partition(".")[2]]) for key, tensor in tensors.items()}
        self.leaders, self.rows = dict(facts["leaders"]), dict(facts["rows"])

    def agree(self, processes: Processes) -> None:
        """Make leaders, rows and the names of the sums those of all processes; a sum that only others have is zero here.

        Raises:
            ALoRAError: layers share their input on one process and not on another.
        """
        if processes.count == 1:
            return
        shapes = {key: (tuple(total.shape), total.dtype) for key, total in self.sums.items()}
        by_rank = together({processes.rank: (self.leaders, self.rows, shapes)})
        places = self._places()
        leaders: dict[str, str] = {}
        rows: dict[str, int] = {}
        for _, (there, counts, others) in sorted(by_rank.items()):
            for name, leader in there.items():
                if leaders.setdefault(name, leader) != leader:
                    raise _not_shared(name, leaders[name])
            for name, count in counts.items():
                rows[name] = rows.get(name, 0) + count
            for key, (shape, dtype) in others.items():
                if key not in self.sums:
                    self.sums[key] = torch.zeros(shape, dtype=dtype, device=places[key.partition(".")[2]])
        self.leaders, self.rows = leaders, rows
        self.sums = {key: self.sums[key] for key in sorted(self.sums)}

    def check_seen(self) -> None:
        """Raises ALoRAError if nothing has passed through a layer that a prediction depends on."""
        for weight in self._weights:
            if f"{GRADIENTS}.{weight.name}" not in self.sums:
                raise ALoRAError(
                    f"nothing has passed through {weight.name} that a prediction depends on: give it more text, or leave it "
                    f"out of {weight.listed_in}"
                )

    def _places(self) -> dict[str, torch.device]:
        """Where the sums are kept, by weight name."""
        return {w.name: w.device if self._location == "device" else torch.device("cpu") for w in self._weights}

    def _see(self, weight: AdaptedWeight, given: torch.Tensor, output: Any) -> None:
        if self._forward:
            self._see_input(weight, given)
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: self._see_gradient(weight, gradient))

    def _see_input(self, weight: AdaptedWeight, given: torch.Tensor) -> None:
        # The version tells a tensor from what it was before something changed it in place.
        shared = self._last is not None and self._last[1] is given and self._last[2] == given._version
        leader = self._last[0] if shared and self._last is not None else weight.name
        if self.leaders.setdefault(weight.name, leader) != leader:
            raise _not_shared(weight.name, self.leaders[weight.name])
        if not shared:
            self._last = (weight.name, given, given._version)
            self._add_input(weight, given.detach())

    def _see_gradient(self, weight: AdaptedWeight, gradient: torch.Tensor) -> None:
        g = gradient.detach().reshape(-1, gradient.shape[-1]).to(weight.dtype)
        # Padding has no influence on any prediction: its gradients are zero.
        key = f"{GRADIENTS}.{weight.name}"
        if self._outputs:
            self._add_product(key, weight, g)
        else:
            self._add(key, weight, g.square().sum() / g.shape[1])

    def _add_input(self, weight: AdaptedWeight, features: torch.Tensor) -> None:
        key = f"{INPUTS}.{weight.name}"
        if weight.is_embedding:
            tokens = self._real(features.reshape(-1), weight)
            counts = torch.bincount(tokens, minlength=weight.shape[1]).to(weight.dtype)
            self._add(key, weight, counts * embedding_scale(weight) ** 2)
        else:
            tokens = self._real(features.reshape(-1, features.shape[-1]), weight)
            self._add_product(key, weight, tokens.to(weight.dtype))
        self.rows[weight.name] = self.rows.get(weight.name, 0) + len(tokens)

    def _real(self, rows: torch.Tensor, weight: AdaptedWeight) -> torch.Tensor:
        if self._mask is None:
            return rows
        if len(rows) != self._tokens:
            raise ALoRAError(
                f"{weight.name} is given other rows than the batch's tokens (a mixture of experts?), so that padding cannot be "
                "told apart: use packed text without padding"
            )
        return rows[self._mask.to(rows.device)]

    def _add_product(self, key: str, weight: AdaptedWeight, rows: torch.Tensor) -> None:
        """Add ``rows' rows``; where the sum is beside it, without a second matrix of that size."""
        if key in self.sums and self._location == "device":
            self.sums[key].addmm_(rows.T, rows)
        else:
            self._add(key, weight, rows.T @ rows)

    def _add(self, key: str, weight: AdaptedWeight, part: torch.Tensor) -> None:
        part = part if self._location == "device" else part.cpu()
        if key in self.sums:
            self.sums[key] += part
        else:
            self.sums[key] = part


def _not_shared(name: str, leader: str) -> ALoRAError:
    if name == leader:
        return ALoRAError(
            f"{name} shares its input with another layer in some batches only: leave it out of target_modules"
        )
    return ALoRAError(f"{name} does not share its input with {leader} in every batch: leave it out of target_modules")
