"""Sums of squared gradients over text, for the diagonal Fisher information (see `fisher`).

Nothing runs the model on one sample at a time. For ``y = W x`` the gradient of sample b is ``sum_t g_bt x_bt'``, with x and
``g = dL/dy`` as they pass through the layer: hooks take both, multiply them batched over samples for a block of W's rows,
square, and add up. Cost: 2 m n flops a token like a weight gradient, and no temporary beyond a block for each sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from peft.tuners.lora import layer as lora_layers

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.full_weight import FullWeight
from alora_trainer.weights.layer_hooks import LayerHooks
from alora_trainer.weights.row_blocks import BLOCK_ELEMENTS, BLOCK_ELEMENTS_GPU
from alora_trainer.weights.trained_weight import TrainedWeight

FISHER_KINDS = ("sample", "batch")
LOCATIONS = ("device", "cpu")


class SquaredGradients(ABC):
    """Sums of squared gradients of weights, while batches pass through their model.

    Args:
        weights: those that are meant.
        kind: "sample" or "batch", see `fisher`.
        location: where the sums are kept: "device" beside the weights, or "cpu" in host memory.

    Attributes:
        sums: (m, n) by weight name.

    Raises:
        ALoRAError: an unknown kind or location.
    """

    def __init__(self, weights: Sequence[TrainedWeight], kind: str, location: str) -> None:
        for value, known, what in ((kind, FISHER_KINDS, "kind"), (location, LOCATIONS, "location")):
            if value not in known:
                raise ALoRAError(f"fisher.{what}={value!r} is unknown: use one of {', '.join(known)}")
        self.kind = kind
        self.sums = {
            w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device if location == "device" else "cpu")
            for w in weights
        }

    @abstractmethod
    def units(self, batch: Mapping[str, torch.Tensor]) -> Iterable[Mapping[str, torch.Tensor]]:
        """What of a batch is passed through the model at a time."""

    @abstractmethod
    def begin_batch(self, samples: int) -> None:
        """Say how many samples the next forward pass has."""

    @abstractmethod
    def end_unit(self) -> None:
        """A backward pass has been made."""

    @abstractmethod
    def close(self) -> None:
        """Leave the model as it was."""


class AdaptedSquares(SquaredGradients):
    """Of every adapted weight, by hooks on the adapter's layers.

    Args:
        weights: the adapted weights.
        kind, location: as `SquaredGradients` has them.

    Raises:
        ALoRAError: a weight belongs to a layer whose gradient is no plain outer product.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], kind: str = "sample", location: str = "device") -> None:
        super().__init__(weights, kind, location)
        for weight in weights:
            if isinstance(weight.layer, (lora_layers._ConvNd, lora_layers.ParamWrapper)):
                raise ALoRAError(
                    f"the Fisher information knows linear and embedding layers, and {weight.name} is a "
                    f"{type(weight.layer).__name__}: leave it out of target_modules"
                )
        self._samples = 0
        self._seen: set[str] = set()
        self._hooks = LayerHooks(weights, self._add)

    def units(self, batch: Mapping[str, torch.Tensor]) -> Iterable[Mapping[str, torch.Tensor]]:
        return (batch,)

    def end_unit(self) -> None:
        pass  # the hooks have seen all

    def begin_batch(self, samples: int) -> None:
        self._samples = samples
        self._seen = set()

    def close(self) -> None:
        self._hooks.close()

    def _add(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        self._check(weight, gradient)
        if weight.is_embedding:
            self._add_embedding(weight, features, gradient)
        else:
            self._add_linear(weight, features, gradient)

    def _check(self, weight: AdaptedWeight, gradient: torch.Tensor) -> None:
        if gradient.shape[0] != self._samples:
            raise ALoRAError(
                f"{weight.name} does not see one row a sample ({gradient.shape[0]} for {self._samples}; a mixture of "
                "experts?), so that samples cannot be told apart: leave it out of target_modules"
            )
        if weight.name in self._seen:
            raise ALoRAError(
                f"{weight.name} is used twice in one pass, which the Fisher information does not support: "
                "leave it out of target_modules"
            )
        self._seen.add(weight.name)

    def _add_linear(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        total, dtype = self.sums[weight.name], weight.dtype
        samples = 1 if self.kind == "batch" else self._samples
        x = features.reshape(samples, -1, features.shape[-1]).to(dtype)
        g = gradient.reshape(samples, -1, gradient.shape[-1]).to(dtype).transpose(1, 2)
        for rows in _sample_row_blocks(*weight.shape, samples, x.device):
            block = torch.bmm(g[:, rows], x).square_().sum(0)
            total[rows] += block.to(total.device)

    def _add_embedding(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        """A token's column of W gets the sum of the gradients at its places; the columns of other tokens are not touched."""
        total, dtype = self.sums[weight.name], weight.dtype
        whole = self.kind == "batch"
        for ids, g in ((features, gradient),) if whole else zip(features, gradient, strict=True):
            tokens, places = torch.unique(ids.flatten(), return_inverse=True)
            rows = g.reshape(-1, g.shape[-1]).to(dtype)
            columns = torch.zeros(len(tokens), rows.shape[1], dtype=dtype, device=rows.device)
            columns.index_add_(0, places, rows)
            total.index_add_(1, tokens.to(total.device), columns.square_().T.to(total.device))


class FullSquares(SquaredGradients):
    """Of a model whose own parameters train: from autograd's gradients, which know no samples apart.

    So "sample" passes one sample at a time through the model. Norms, biases and tied embeddings come out right, too.

    Args:
        weights: the full weights.
        kind, location: as `SquaredGradients` has them.
    """

    def __init__(self, weights: Sequence[FullWeight], kind: str = "sample", location: str = "device") -> None:
        super().__init__(weights, kind, location)
        self._weights = list(weights)

    def units(self, batch: Mapping[str, torch.Tensor]) -> Iterable[Mapping[str, torch.Tensor]]:
        if self.kind == "batch":
            return (batch,)
        count = len(batch["labels"])
        return ({key: value[i : i + 1] for key, value in batch.items()} for i in range(count))

    def begin_batch(self, samples: int) -> None:
        pass  # autograd knows by itself

    def end_unit(self) -> None:
        for weight in self._weights:
            (gradient,) = weight.gradients()
            total = self.sums[weight.name]
            total += gradient.square_().to(total.device)

    def close(self) -> None:
        pass  # nothing was put on the model


def _sample_row_blocks(rows: int, columns: int, samples: int, device: torch.device) -> Iterator[slice]:
    """Slices of W's rows so small that a block for every sample has at most `BLOCK_ELEMENTS` elements in all."""
    elements = BLOCK_ELEMENTS_GPU if device.type == "cuda" else BLOCK_ELEMENTS
    height = min(rows, max(1, elements // (columns * samples)))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))
