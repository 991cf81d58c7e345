"""`initialize_adapter`: start a LoRA adapter in the directions where the domain is learned and forgetting is cheapest."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alora_trainer.artefact.importance_map import ImportanceMap, as_map
from alora_trainer.basics.processes import Processes, together
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.recording.layer_moments import INPUTS, LayerMoments, with_float64
from alora_trainer.trainer.initialization.directions import (
    contrastive_directions,
    default_mean_square,
    null_space_directions,
)
from alora_trainer.trainer.initialization.domain_passes import (
    Batch,
    Domain,
    MeanGradients,
    SketchedGradients,
    WholeGradients,
    add_up,
)
from alora_trainer.trainer.initialization.general_metric import GeneralMetric, checked_curvature
from alora_trainer.trainer.initialization.settings import (
    CONTRASTIVE,
    GRADIENT,
    NATURAL_GRADIENT,
    NULL_SPACE,
    SKETCH,
    check_settings,
)
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.start import StartFrom


@dataclass(frozen=True)
class Initialization:
    """How an adapter's first directions were chosen.

    Attributes:
        kind: "natural_gradient", "contrastive", "gradient" or "null_space".
        damping: share of the mean eigenvalue that was added to both sides of the general curvature.
        memory: what was kept of the gradients or moments: "device", "cpu" or "sketch".
        items, tokens: of the domain that were looked at, by all processes.
        digest: of these items' tokens, whatever their order.
    """

    kind: str
    damping: float
    memory: str
    items: int
    tokens: int
    digest: str


def initialize_adapter(
    model: nn.Module,
    importance: ImportanceMap | str | os.PathLike[str],
    dataloader: Iterable[Mapping[str, torch.Tensor]],
    kind: str = NATURAL_GRADIENT,
    *,
    items: int = 512,
    damping: float = 0.01,
    memory: str = "device",
    missing: str = "error",
) -> Initialization:
    """Choose the A of a fresh LoRA adapter by the domain and a map of general curvature; B stays zero.

    The model's outputs are what they were, bit for bit, and the adapter is PEFT's ordinary one. A keeps the scale of PEFT's
    own start: the mean square of A x over the domain's inputs, one number a layer. See `directions` for the equations.

    Args:
        model: the base model with a fresh, trainable LoRA adapter of any rank on linear layers.
        importance: a map of kronecker, ekfac or covariance importance of this base model, or its folder or Hub id.
        dataloader: batches of the domain, as the model takes them: ``input_ids`` (B, T), ``labels``, perhaps
            ``attention_mask``. Of several processes, each gives its own share, of a batch at least.
        kind: "natural_gradient", which needs backward passes, or "contrastive", which needs forward passes alone. To compare
            with: "gradient", the domain's own leading directions (LoRA-GA's), and "null_space", where general inputs are
            smallest (LoRA-Null's), whatever the domain.
        items: rows of the domain at most (of this process); batches are taken whole.
        damping: added to the curvature, as a share of its mean eigenvalue.
        memory: "device" or "cpu" keeps a matrix of each weight's size (of its inputs' size squared for "contrastive") there;
            "sketch" keeps thin products in twice the passes.
        missing: weights that the map does not have: "error" refuses them, anything else leaves their start as it is.

    Raises:
        ALoRAError: a setting is unknown; the map is for another model, or of elements; the adapter is not fresh, not LoRA's, or
            of layers that are not linear; a batch has no labels, or there is none.
    """
    check_settings(kind, items=items, damping=damping, memory=memory)
    importance = as_map(importance)
    weights = importance.check_model(model, start=StartFrom.BARE, missing=missing)
    chosen = check_weights(weights, importance)
    device = chosen[0].device
    batches = first_batches(dataloader, items, device)
    counts, rows = [predicted(batch) for batch in batches], sum(len(batch["input_ids"]) for batch in batches)
    domain = Domain(model, batches, lambda batch: _loss(model, batch), counts, rows)
    return choose_directions(chosen, importance, domain, kind=kind, damping=damping, memory=memory)


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    loss = model(**batch, use_cache=False).loss
    if loss is None:
        raise ALoRAError("the batches have no labels, so that there is no loss of the domain: add labels to them")
    return loss  # type: ignore[no-any-return]


def first_batches(
    dataloader: Iterable[Mapping[str, torch.Tensor]], items: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Batches from the beginning, until they have so many rows, on `device`.

    Raises:
        ALoRAError: there is none.
    """
    batches: list[dict[str, torch.Tensor]] = []
    rows = 0
    for batch in dataloader:
        batches.append({name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)})
        rows += len(batch["input_ids"])
        if rows >= items:
            break
    if not batches:
        raise ALoRAError("there is no item of the domain to choose the adapter's first directions by")
    return batches


def predicted(batch: Batch) -> int:
    """How many tokens a batch's loss is a mean over; of one without labels, its rows."""
    labels = batch.get("labels")
    return len(batch["input_ids"]) if labels is None else int((labels[:, 1:] != -100).sum())


def check_weights(weights: Sequence[Any], importance: ImportanceValues) -> list[AdaptedWeight]:
    """The weights whose directions are chosen: those that the map has.

    Raises:
        ALoRAError: one is not of a linear layer or an expert, or in DeepSpeed's pieces, or not there; its B is not zero;
            its rank is larger than its inputs.
    """
    chosen = [weight for weight in weights if weight.name in importance]
    for weight in chosen:
        if weight.parameter_a.is_meta or hasattr(weight.parameter_a, "ds_id"):
            raise ALoRAError(
                f"the factors of {weight.name} are not loaded, or in DeepSpeed's pieces, and its first directions are written "
                "into them: use FSDP2 or data parallelism (torchrun), or initialise the adapter before"
            )
        if weight.is_embedding or weight.parameter_a.ndim != 2:
            raise ALoRAError(
                f"first directions are chosen for linear layers and experts, and {weight.name} is a "
                f"{type(weight.layer).__name__}: leave it out of target_modules"
            )
        if bool(weight.b.any()):
            raise ALoRAError(
                f"the adapter of {weight.name} is not fresh (its B is not zero), and its first directions can be chosen before "
                "it has learned anything alone: start from a new adapter, as get_peft_model makes it by default"
            )
        if weight.rank > weight.shape[1]:
            raise ALoRAError(f"{weight.name} has {weight.shape[1]} inputs, and a rank of {weight.rank}: lower its rank")
    if not chosen:
        raise ALoRAError("the importance map has none of the adapted weights, so that no direction can be chosen by it")
    return chosen


def check_map(importance: ImportanceValues, names: Iterable[str], kind: str) -> None:
    """Raises ALoRAError if the importance of one of these weights is of elements, which a start of this kind cannot use."""
    if kind != GRADIENT:
        for name in names:
            checked_curvature(name, importance.stored(name))


def choose_directions(
    weights: Sequence[AdaptedWeight],
    importance: ImportanceValues,
    domain: Domain,
    *,
    kind: str,
    damping: float,
    memory: str,
) -> Initialization:
    """Set the A of every weight; of several processes, all call this together, and all get the same.

    Args:
        weights: as `check_weights` gives them.
        importance: the general curvature.
        domain: this process's share.
        kind, damping, memory: see `initialize_adapter`.

    Raises:
        ALoRAError: the importance is of elements; the domain is not passed over then.
    """
    check_map(importance, [weight.name for weight in weights], kind)

    def metric_of(weight: AdaptedWeight) -> GeneralMetric:
        device = with_float64(weight.device)
        if kind == GRADIENT:
            return GeneralMetric.euclidean(weight.shape, device)
        return GeneralMetric.of(weight.name, importance.stored(weight.name), damping, device)

    if kind == CONTRASTIVE:
        _contrastive(weights, metric_of, domain, memory)
    elif kind == NULL_SPACE:
        _set(weights, lambda weight: null_space_directions(metric_of(weight), weight.rank))
        _scale_over(weights, domain)
    else:
        sketched = memory == SKETCH
        gradients: MeanGradients = (
            SketchedGradients(weights, metric_of) if sketched else WholeGradients(weights, memory)
        )
        _natural(weights, metric_of, domain, gradients)
    return _facts(domain, kind, damping, memory)


def _natural(weights: Sequence[AdaptedWeight], metric_of: Any, domain: Domain, gradients: MeanGradients) -> None:
    for _ in range(gradients.passes):
        domain.backward(weights, gradients.see)
        gradients.end_pass()
    _set(weights, lambda weight: gradients.directions(weight, metric_of(weight)))
    _scale_over(weights, domain)


def _scale_over(weights: Sequence[AdaptedWeight], domain: Domain) -> None:
    """Give every A the scale of PEFT's own start, by one more pass forward."""
    squares = {weight.name: torch.zeros(3, dtype=weight.dtype, device=weight.device) for weight in weights}
    chosen = {weight.name: weight.a.to(weight.dtype) for weight in weights}

    def see(weight: AdaptedWeight, rows: torch.Tensor) -> None:
        x = rows.to(weight.dtype)
        within = (x @ chosen[weight.name].T).square().sum()
        squares[weight.name] += torch.stack([within, x.square().sum(), x.new_tensor(float(len(x)))])

    domain.forward(weights, see)
    Processes().sum(list(squares.values()))
    for weight in weights:
        within, features, count = squares[weight.name].tolist()
        _scale(weight, within / (count * weight.rank), features / count)


def _contrastive(weights: Sequence[AdaptedWeight], metric_of: Any, domain: Domain, location: str) -> None:
    moments = LayerMoments(weights, outputs=False, location=location)
    with torch.no_grad(), moments.watching():
        for batch in domain.passed("inputs"):
            moments.begin(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool())
            domain.evaluate(batch)
            moments.end_forward()
    domain.keep_company()
    moments.agree(Processes())
    add_up(moments.sums.values(), weights[0].device)

    def of_inputs(weight: AdaptedWeight) -> torch.Tensor:
        leader = moments.leaders[weight.name]
        total = moments.sums[f"{INPUTS}.{leader}"].to(with_float64(weight.device), torch.float64)
        return total / moments.rows[leader]

    _set(weights, lambda weight: contrastive_directions(of_inputs(weight), metric_of(weight), weight.rank))
    for weight in weights:
        inputs, a = of_inputs(weight), weight.a.to(with_float64(weight.device), torch.float64)
        _scale(weight, float(((a @ inputs) * a).sum()) / weight.rank, float(inputs.trace()))


def _set(weights: Sequence[AdaptedWeight], directions: Any) -> None:
    """Let every process find the directions of its share of the weights, and all have them."""
    processes = Processes()
    owners = processes.owners({weight.name: weight.shape[0] * weight.shape[1] for weight in weights})
    for weight in weights:
        a = torch.zeros(weight.rank, weight.shape[1], dtype=weight.dtype, device=weight.device)
        if owners[weight.name] == processes.rank:
            found = directions(weight)
            # The numbers are of arbitrary scale: of half precision they might leave its range.
            a.copy_(found / found.norm())
        processes.from_owner(a, owners[weight.name])
        _put(weight, a)


def _put(weight: AdaptedWeight, a: torch.Tensor) -> None:
    with torch.no_grad():
        weight.put((a, weight.b))


def _scale(weight: AdaptedWeight, found: float, features: float) -> None:
    """Give A the scale of PEFT's own start.

    Args:
        found: the mean square of an element of A x.
        features: the mean of ``|x|**2``.
    """
    if not found > 0:
        raise ALoRAError(
            f"nothing that {weight.name} is given lies in the directions that were chosen for it: give more items (init_items)"
        )
    _put(weight, weight.a * (default_mean_square(features, weight.shape[1]) / found) ** 0.5)


def _facts(domain: Domain, kind: str, damping: float, memory: str) -> Initialization:
    own = sum(_digest(row) for batch in domain.batches for row in _token_rows(batch))
    processes = Processes()
    everyone = together({processes.rank: (domain.items, sum(map(_learned_tokens, domain.batches)), own)})
    items, tokens, digests = (sum(column) for column in zip(*everyone.values(), strict=True))
    return Initialization(kind, damping, memory, items, tokens, f"{digests % 2**256:064x}")


def _learned_tokens(batch: Batch) -> int:
    """How many tokens of a batch are learned: those with a label, or of a completion, or all that are real."""
    if "labels" in batch:
        return predicted(batch)
    for mask in ("completion_mask", "attention_mask"):
        if mask in batch:
            return int(batch[mask].sum())
    return batch["input_ids"].numel()


def _token_rows(batch: Batch) -> Iterable[torch.Tensor]:
    ids = batch["input_ids"].cpu()
    masks = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else itertools.repeat(None)
    for row, mask in zip(ids, masks, strict=False):
        yield row if mask is None else row[mask]


def _digest(row: torch.Tensor) -> int:
    return int.from_bytes(hashlib.sha256(row.to(torch.int64).numpy().tobytes()).digest(), "big")
