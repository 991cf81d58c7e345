"""The diagonal Fisher information of the adapted weights: the importance of elastic weight consolidation (EWC).

At the weights that the model has, over N samples of text (Kirkpatrick et al. 2017, arXiv 1612.00796), elementwise:

    sample:  F = 1/N sum_b (dL_b/dW)**2            L_b the mean cross-entropy of sample b's own tokens
    batch:   F = 1/N sum_batches (B dL/dW)**2      L the mean cross-entropy of a batch's tokens, B its samples

`sample` is the empirical Fisher. `batch` is what the official code of EWCLoRA computes (compute_fisher_matrix.py of
szxiangjn/world-model-for-language-model); the two are the same for batches of one sample, and for larger ones `batch` also
has the products of different samples' gradients. With labels drawn from the model's own predictions instead of the text's
(`drawn_labels`) both are estimates of the diagonal of the *true* Fisher information of samples: drawn labels are independent,
so that products of different ones have no mean.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from alora_trainer.basics.files import replacing
from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.basics.progress import ShownProgress
from alora_trainer.basics.safetensors_writer import write_tensors
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.recording.drawn_labels import (
    IGNORED_LABEL,
    LABELS,
    batch_generator,
    draw_in_place_of,
    wide,
)
from alora_trainer.importance.recording.squared_gradients import (
    LOCATIONS,
    AdaptedSquares,
    FullSquares,
    SquaredGradients,
)
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.parameterization import Parameterization

logger = logging.getLogger(__name__)

# By the name of an estimator of Fisher information in a map's provenance: how it is estimated, for the map's card.
FISHER_DESCRIPTIONS = {
    "fisher": "the diagonal of the empirical Fisher information: squared gradients of the base weights, sample by sample",
    "fisher_batch": "squared gradients of the base weights over whole batches, as EWCLoRA was published",
    "fisher_true": "the diagonal of the true Fisher information: squared gradients of the base weights, sample by sample, with "
    "labels drawn from the model's own predictions",
}
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
        storage: the map's storage format, a name in `FORMATS`.

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
        storage_format(self.storage, "fisher.storage", kind=ELEMENTWISE)


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


def estimate_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    kind: str = "sample",
    labels: str = "text",
    seed: int = 0,
    location: str = "device",
    samples: int | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    parameterization: Parameterization = Parameterization.ADAPTER,
) -> FisherEstimate:
    """The diagonal Fisher information of `model`'s trained weights over text, at the weights that it has.

    Args:
        model: with a trainable LoRA adapter, whose target modules say which weights are meant. A fresh adapter is zero,
            so that F is that of the base weights. The model is run in evaluation mode, and its gradients are cleared.
        batches: ``input_ids``, ``labels`` (-100 where nothing is predicted) and perhaps ``attention_mask``, each (B, T);
            the same ones in the same order where a checkpoint is gone on from.
        kind: "sample" or "batch", see the module's text.
        labels: the "text"'s own, or "sampled" from the model's predictions at the places where the text's has one.
        seed: of the sampled labels; each batch has a generator of its own.
        location: where the sums are kept: "device" or "cpu".
        samples: stop after this many (the last batch is cut); None takes all.
        checkpoint: a file that the sums so far are kept in; if it is there, the estimate goes on from it. The caller removes
            it.
        checkpoint_every: batches between two writings of it.
        parameterization: of what; FULL is the model's own trainable parameters, and there is no adapter.

    Raises:
        ALoRAError: a setting is unknown; there is no sample; a gradient is not finite, or all are zero; a layer is not
            supported; the checkpoint is of another estimate.
    """
    if labels not in LABELS:
        raise ALoRAError(f"labels={labels!r} is unknown: use one of {', '.join(LABELS)}")
    squares = _squares(model, parameterization, kind, location)
    # What a checkpoint must agree in: with the text's own labels no seed matters.
    settings = {"kind": kind} | ({"labels": labels, "seed": str(seed)} if labels == "sampled" else {})
    device = next(p.device for p in model.parameters() if p.requires_grad)
    progress: dict[str, float] = dict.fromkeys(_PROGRESS, 0)
    try:
        if checkpoint is not None and checkpoint.is_file():
            progress = _load(squares, settings, checkpoint)
        start, before = time.perf_counter(), progress["seconds"]
        shown = ShownProgress(
            "measuring Fisher information", samples, logger, unit="samples", first=int(progress["samples"])
        )
        with evaluation_mode(model), torch.enable_grad(), shown:
            for batch in itertools.islice(batches, int(progress["batches"]), None):
                if samples is not None and progress["samples"] >= samples:
                    break
                left = None if samples is None else samples - int(progress["samples"])
                taken = {key: value[:left] for key, value in batch.items()}
                labelled = (
                    _text_labels if labels == "text" else _drawn_labels(seed, int(progress["batches"]) + 1, device)
                )
                for unit in squares.units(taken):
                    _add_unit(model, squares, unit, progress, labelled)
                shown.advance(len(taken["input_ids"]))
                progress["batches"] += 1
                progress["seconds"] = before + time.perf_counter() - start
                if checkpoint is not None and progress["batches"] % checkpoint_every == 0:
                    _save(squares, settings | {key: str(value) for key, value in progress.items()}, checkpoint)
    finally:
        squares.close()
        model.zero_grad(set_to_none=True)
    return _estimate(squares, progress)


def _estimate(squares: SquaredGradients, progress: Mapping[str, float]) -> FisherEstimate:
    if progress["samples"] == 0:
        raise ALoRAError("the Fisher information needs at least one sample of text: give it general text")
    omega = {name: (total / progress["samples"]).cpu() for name, total in squares.sums.items()}
    for name, values in omega.items():
        if not bool(torch.isfinite(values.sum())):
            raise ALoRAError(
                f"the Fisher information of {name} is not finite: load the model in another dtype (model.dtype)"
            )
    if not any(bool(values.any()) for values in omega.values()):
        raise ALoRAError(
            f"the Fisher information over {progress['samples']:.0f} samples is zero everywhere, so that it would hold nothing: "
            "look whether the text has more than one token a sample, and whether the weights get a gradient"
        )
    return FisherEstimate(
        omega,
        samples=int(progress["samples"]),
        tokens=int(progress["tokens"]),
        batches=int(progress["batches"]),
        seconds=progress["seconds"],
    )


def _squares(model: nn.Module, parameterization: Parameterization, kind: str, location: str) -> SquaredGradients:
    if parameterization is Parameterization.FULL:
        return FullSquares(full_weights(model), kind, location)
    return AdaptedSquares(adapted_weights(model), kind, location)


# From labels (B, T) of the text and the logits (B, T, V) to those that gradients are taken of.
_Labelled = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _text_labels(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return labels


def _drawn_labels(seed: int, number: int, device: torch.device) -> _Labelled:
    generator = batch_generator(seed, number, device)
    return lambda labels, logits: draw_in_place_of(labels, logits, generator)


def _add_unit(
    model: nn.Module,
    squares: SquaredGradients,
    batch: Mapping[str, torch.Tensor],
    progress: dict[str, float],
    labelled: _Labelled,
) -> None:
    device = next(p.device for p in model.parameters() if p.requires_grad)
    inputs = {key: value.to(device) for key, value in batch.items()}
    labels = inputs.pop("labels")[:, 1:]
    squares.begin_batch(len(labels))
    # The squared gradients come out of hooks: what autograd leaves in the small factors is of no use, and would grow.
    model.zero_grad(set_to_none=True)
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    losses = token_losses(logits, labelled(labels, logits))
    counts = (labels != IGNORED_LABEL).sum(1)
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
    losses = nn.functional.cross_entropy(
        wide(logits).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED_LABEL
    )
    return losses.view(labels.shape)


def _save(squares: SquaredGradients, metadata: Mapping[str, str], path: Path) -> None:
    with replacing(path) as partial:
        write_tensors(partial, squares.sums, metadata)


def _load(squares: SquaredGradients, settings: Mapping[str, str], path: Path) -> dict[str, float]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            of = {key: metadata[key] for key in ("kind", "labels", "seed") if key in metadata}
            if of != settings or set(file.keys()) != set(squares.sums):
                raise ALoRAError(f"{path} belongs to another estimate: remove it, and begin anew")
            for name, total in squares.sums.items():
                total.copy_(file.get_tensor(name))
            return {key: float(metadata[key]) for key in _PROGRESS}
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): remove it, and begin anew") from error
