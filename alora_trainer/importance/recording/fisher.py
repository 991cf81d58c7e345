"""The diagonal Fisher information of the adapted weights: the importance of elastic weight consolidation (EWC).

At the weights that the model has, over N samples of text (Kirkpatrick et al. 2017, arXiv 1612.00796), elementwise:

    sample:  F = 1/N sum_b (dL_b/dW)**2            L_b the mean cross-entropy of sample b's own tokens
    batch:   F = 1/N sum_batches (B dL/dW)**2      L the mean cross-entropy of a batch's tokens, B its samples

`sample` is the empirical Fisher. `batch` is what the official code of EWCLoRA computes (compute_fisher_matrix.py of
szxiangjn/world-model-for-language-model); the two are the same for batches of one sample, and for larger ones `batch` also
has the products of different samples' gradients.

Nothing runs the model on one sample at a time. For ``y = W x`` the gradient of sample b is ``sum_t g_bt x_bt'``, with x and
``g = dL/dy`` as they pass through the layer: hooks take both, multiply them batched over samples for a block of W's rows,
square, and add up. Cost: 2 m n flops a token like a weight gradient, and no temporary beyond a block for each sample.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layers
from safetensors import SafetensorError, safe_open
from torch import nn

from alora_trainer.basics.safetensors_writer import write_tensors
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.full import FullWeight, full_weights
from alora_trainer.weights.row_blocks import BLOCK_ELEMENTS, BLOCK_ELEMENTS_GPU

KINDS = ("sample", "batch")
LOCATIONS = ("device", "cpu")
_IGNORED_LABEL = -100
_PROGRESS = ("samples", "tokens", "batches", "seconds")


@dataclass(frozen=True)
class FisherConfig:
    """The recipe's section on Fisher information, for the methods that need it.

    Attributes:
        samples: blocks of general text that it is estimated over; fewer, if the text has fewer.
        batch_size: blocks in a pass. Of no effect on the estimate by sample; part of what `ewclora_batch` means.
        weights: "adapted" is those that the recipe's LoRA adapts, "all" every linear layer but the output head, whatever is
            adapted later (the official code estimates these, and norms and embeddings beside, which its penalty never reads).
        location: where the sums are kept, "device" or "cpu".
        storage: the map's storage format, see `importance.storage`.

    Raises:
        ALoRAError: a value is out of range or unknown.
    """

    samples: int = 20000
    batch_size: int = 8
    weights: str = "adapted"
    location: str = "device"
    storage: str = "float32"

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ALoRAError(f"fisher.{name}={getattr(self, name)!r} must be at least 1")
        for name, known in (("weights", ("adapted", "all")), ("location", LOCATIONS)):
            if getattr(self, name) not in known:
                raise ALoRAError(f"fisher.{name}={getattr(self, name)!r} is unknown: use one of {', '.join(known)}")
        storage_format(self.storage)


@dataclass(frozen=True)
class FisherEstimate:
    """What `estimate_fisher` found.

    Attributes:
        omega: F by weight name, (out_features, in_features), in host memory.
        samples, tokens: how many went into it; tokens are those that were predicted.
        batches: in how many passes.
        seconds: how long that took, over all the times that it was begun.
    """

    omega: dict[str, torch.Tensor]
    samples: int
    tokens: int
    batches: int
    seconds: float


class SquaredGradients:
    """Sums of squared gradients of every adapted weight, by hooks on the adapter's layers.

    Args:
        weights: the adapted weights.
        kind: "sample" or "batch", see the module's text.
        location: where the sums are kept: "device" beside the weights, or "cpu" in host memory.

    Raises:
        ALoRAError: an unknown kind or location; a weight belongs to a layer whose gradient is no plain outer product.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], kind: str = "sample", location: str = "device") -> None:
        _check_choices(kind, location)
        for weight in weights:
            if isinstance(weight.layer, (lora_layers._ConvNd, lora_layers.ParamWrapper)):
                raise ALoRAError(
                    f"the Fisher information knows linear and embedding layers, and {weight.name} is a "
                    f"{type(weight.layer).__name__}: leave it out of target_modules"
                )
        self.kind = kind
        self.sums = {
            w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device if location == "device" else "cpu")
            for w in weights
        }
        self._samples = 0
        self._seen: set[str] = set()
        self._handles = [weight.layer.register_forward_hook(self._watch(weight)) for weight in weights]

    def units(self, batch: Mapping[str, torch.Tensor]) -> Iterable[Mapping[str, torch.Tensor]]:
        """What is passed through the model at a time: the whole batch."""
        return (batch,)

    def end_unit(self) -> None:
        """Nothing to do: the hooks have seen all."""

    def begin_batch(self, samples: int) -> None:
        """Say how many samples the next forward pass has."""
        self._samples = samples
        self._seen = set()

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, weight: AdaptedWeight) -> Any:
        embedding = isinstance(weight.layer, lora_layers.Embedding)

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if not (isinstance(output, torch.Tensor) and output.requires_grad):
                return
            features = inputs[0].detach()

            def add(gradient: torch.Tensor) -> None:
                self._check(weight, gradient)
                if embedding:
                    self._add_embedding(weight, features, gradient)
                else:
                    self._add_linear(weight, features, gradient)

            output.register_hook(add)

        return hook

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


class PlainSquaredGradients:
    """The same for a model whose own parameters train: from autograd's gradients, which know no samples apart.

    So "sample" passes one sample at a time through the model. Norms, biases and tied embeddings come out right, too.

    Args:
        weights, kind, location: as `SquaredGradients` has them.
    """

    def __init__(self, weights: Sequence[FullWeight], kind: str = "sample", location: str = "device") -> None:
        _check_choices(kind, location)
        self.kind = kind
        self.sums = {
            w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device if location == "device" else "cpu")
            for w in weights
        }
        self._weights = list(weights)

    def units(self, batch: Mapping[str, torch.Tensor]) -> Iterable[Mapping[str, torch.Tensor]]:
        """The batch, or its samples one by one."""
        if self.kind == "batch":
            return (batch,)
        count = len(batch["labels"])
        return ({key: value[i : i + 1] for key, value in batch.items()} for i in range(count))

    def begin_batch(self, samples: int) -> None:
        """Nothing to prepare."""

    def end_unit(self) -> None:
        """Square what the backward pass left."""
        for weight in self._weights:
            (gradient,) = weight.gradients()
            total = self.sums[weight.name]
            total += gradient.square_().to(total.device)

    def close(self) -> None:
        """Nothing to take off."""


def _check_choices(kind: str, location: str) -> None:
    for value, known, what in ((kind, KINDS, "kind"), (location, LOCATIONS, "location")):
        if value not in known:
            raise ALoRAError(f"fisher.{what}={value!r} is unknown: use one of {', '.join(known)}")


def _sample_row_blocks(rows: int, columns: int, samples: int, device: torch.device) -> Iterator[slice]:
    """Slices of W's rows so small that a block for every sample has at most `BLOCK_ELEMENTS` elements in all."""
    elements = BLOCK_ELEMENTS_GPU if device.type == "cuda" else BLOCK_ELEMENTS
    height = min(rows, max(1, elements // (columns * samples)))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def estimate_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    kind: str = "sample",
    location: str = "device",
    samples: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    full: bool = False,
) -> FisherEstimate:
    """The diagonal Fisher information of `model`'s adapted weights over text, at the weights that it has.

    Args:
        model: with a trainable LoRA adapter, whose target modules say which weights are meant. A fresh adapter is zero,
            so that F is that of the base weights. The model is run in evaluation mode, and its gradients are cleared.
        batches: ``input_ids``, ``labels`` (-100 where nothing is predicted) and perhaps ``attention_mask``, each (B, T);
            the same ones in the same order where a checkpoint is gone on from.
        kind: "sample" or "batch", see the module's text.
        location: where the sums are kept: "device" or "cpu".
        samples: stop after this many (the last batch is cut); None takes all.
        checkpoint: a file that the sums so far are kept in; if it is there, the estimate goes on from it. The caller removes
            it.
        checkpoint_every: batches between two writings of it.
        full: of the model's own trainable parameters; there is no adapter.

    Raises:
        ALoRAError: there is no sample; a gradient is not finite; a layer is not supported; the checkpoint is of another
            estimate.
    """
    squares: SquaredGradients | PlainSquaredGradients
    if full:
        squares = PlainSquaredGradients(full_weights(model), kind, location)
    else:
        squares = SquaredGradients(adapted_weights(model), kind, location)
    device = next(p.device for p in model.parameters() if p.requires_grad)
    progress: dict[str, float] = dict.fromkeys(_PROGRESS, 0)
    if checkpoint is not None and checkpoint.is_file():
        progress = _load(squares, checkpoint)
    start, before = time.perf_counter(), progress["seconds"]
    try:
        with _evaluation_mode(model):
            for batch in itertools.islice(batches, int(progress["batches"]), None):
                if samples is not None and progress["samples"] >= samples:
                    break
                left = None if samples is None else samples - int(progress["samples"])
                taken = {key: value[:left] for key, value in batch.items()}
                for unit in squares.units(taken):
                    _add_unit(model, squares, unit, progress, device)
                progress["batches"] += 1
                progress["seconds"] = before + time.perf_counter() - start
                if checkpoint is not None and progress["batches"] % checkpoint_every == 0:
                    _save(squares, progress, checkpoint)
    finally:
        squares.close()
        model.zero_grad(set_to_none=True)
    if progress["samples"] == 0:
        raise ALoRAError("the Fisher information needs at least one sample of text: give it general text")
    omega = {name: (total / progress["samples"]).cpu() for name, total in squares.sums.items()}
    for name, values in omega.items():
        if not bool(torch.isfinite(values.sum())):
            raise ALoRAError(
                f"the Fisher information of {name} is not finite: load the model in another dtype (model.dtype)"
            )
    return FisherEstimate(
        omega,
        samples=int(progress["samples"]),
        tokens=int(progress["tokens"]),
        batches=int(progress["batches"]),
        seconds=progress["seconds"],
    )


def _add_unit(
    model: nn.Module,
    squares: SquaredGradients | PlainSquaredGradients,
    batch: Mapping[str, torch.Tensor],
    progress: dict[str, float],
    device: torch.device,
) -> None:
    inputs = {key: value.to(device) for key, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    squares.begin_batch(len(labels))
    # The squared gradients come out of hooks: what autograd leaves in the small factors is of no use, and would grow.
    model.zero_grad(set_to_none=True)
    losses = token_losses(model(**inputs, use_cache=False).logits[:, :-1], labels)
    counts = (labels != _IGNORED_LABEL).sum(1)
    if squares.kind == "sample":
        loss = (losses.sum(1) / counts.clamp_min(1)).sum()
    else:
        loss = losses.sum() / counts.sum().clamp_min(1) * len(labels)
    loss.backward()
    squares.end_unit()
    progress["samples"] += len(labels)
    progress["tokens"] += int(counts.sum())


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of every token, (B, T), from logits (B, T, V); zero where the label is -100."""
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    losses = nn.functional.cross_entropy(
        wide.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=_IGNORED_LABEL
    )
    return losses.view(labels.shape)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _save(squares: SquaredGradients | PlainSquaredGradients, progress: Mapping[str, float], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_tensors(partial, squares.sums, {"kind": squares.kind} | {key: str(value) for key, value in progress.items()})
    os.replace(partial, path)


def _load(squares: SquaredGradients | PlainSquaredGradients, path: Path) -> dict[str, float]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["kind"] != squares.kind or set(file.keys()) != set(squares.sums):
                raise ALoRAError(f"{path} belongs to another estimate: remove it, and begin anew")
            for name, total in squares.sums.items():
                total.copy_(file.get_tensor(name))
            return {key: float(metadata[key]) for key in _PROGRESS}
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): remove it, and begin anew") from error
