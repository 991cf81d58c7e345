"""Curvature of a model's own predictions, weight by weight: Kronecker factors, EK-FAC or the inputs' covariance, in one or two
passes over text and without any training.

For a layer y = W x, with N tokens and g the gradient by y of the summed log-likelihood of labels,

    G = 1/N sum g g',    S = 1/N sum x x',    R = tr(D' G D S)                                  (K-FAC)
    Omega_ij = 1/N sum_sequences (U_i' (sum_tokens g x') V_j)**2                                (EK-FAC, in their eigenvectors)

so that ``R / 2`` estimates how much KL(p_base || p) rises a token by a movement D of this weight alone. With labels drawn from
the model's own predictions this is the true Fisher information (Martens 2020, arXiv 1412.1193); with the text's it is the
empirical one. Martens and Grosse 2015 (arXiv 1503.05671) have K-FAC; tokens are taken for independent ("expand" in Eschenhagen
et al. 2023, arXiv 2311.00636). George et al. 2018 (arXiv 1806.03884) have EK-FAC.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.errors import ALoRAError, Diverged
from alora_trainer.importance.kinds.eigenbasis import EigenSide, eigen_side
from alora_trainer.importance.kinds.ekfac import EKFAC, OMEGA, EkfacOmega
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis
from alora_trainer.importance.kinds.kronecker import COVARIANCE, KRONECKER, CovarianceOmega, KroneckerOmega
from alora_trainer.importance.recording.drawn_labels import (
    IGNORED_LABEL,
    LABELS,
    batch_generator,
    draw_labels,
    wide,
)
from alora_trainer.importance.recording.layer_moments import LayerMoments, RotatedSquares
from alora_trainer.importance.recording.squared_gradients import LOCATIONS
from alora_trainer.weights.adapted import adapted_weights

CURVATURES = (KRONECKER, EKFAC, COVARIANCE)


@dataclass(frozen=True)
class CurvatureEstimate:
    """What `estimate_curvature` found.

    Attributes:
        importance: by weight name, in host memory.
        tokens, batches: how many went into it.
        seconds: how long that took, over all the times that it was begun.
    """

    importance: dict[str, InBasis]
    tokens: int
    batches: int
    seconds: float


def estimate_curvature(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]] | Any,
    kind: str = KRONECKER,
    *,
    labels: str = "sampled",
    draws: int = 1,
    tokens: int | None = None,
    keep: int | None = None,
    share: float | None = None,
    seed: int = 0,
    location: str = "device",
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
) -> CurvatureEstimate:
    """The curvature of the adapted weights' base, at the weights that the model has.

    Args:
        model: with a trainable LoRA adapter, whose target modules say which weights are meant. A fresh adapter is zero, so that
            the curvature is that of the base. The model is run in evaluation mode, and its gradients are left alone.
        batches: ``input_ids`` (B, T), perhaps ``attention_mask``, and ``labels`` (-100 where nothing is predicted) for "text";
            gone through twice for EK-FAC.
        kind: "kronecker", "ekfac" or "covariance".
        labels: "sampled" from the model's predictions, or the "text"'s own.
        draws: how often labels are sampled for each batch; each is a backward pass.
        tokens: stop after the batch in which so many have been predicted; None takes all.
        keep: eigenvectors on either side at most; None for all.
        share: as many as hold this share of the trace, at most `keep`; None for `keep`.
        seed: of the sampled labels; each batch has a generator of its own.
        location: where sums are kept: "device" beside the weights, or "cpu" in host memory.

    Raises:
        ALoRAError: a setting is unknown; there is no token to predict; a layer's gradient is no plain outer product, or nothing
            has passed through it.
        Diverged: the curvature of a weight is not finite.
    """
    for value, known, what in (
        (kind, CURVATURES, "kind"),
        (labels, LABELS, "labels"),
        (location, LOCATIONS, "location"),
    ):
        if value not in known:
            raise ALoRAError(f"{what}={value!r} is unknown: use one of {', '.join(known)}")
    if draws < 1 or (draws > 1 and labels != "sampled"):
        raise ALoRAError(f"draws={draws}: sample labels at least once, and the text's own labels exactly once")
    start = time.perf_counter()
    weights = adapted_weights(model)
    moments = LayerMoments(weights, outputs=kind != COVARIANCE, location=location)
    passes = _Passes(model, labels, draws, tokens, seed)
    with moments.watching():
        counted, number = passes.run(batches, moments.begin)
    if counted == 0:
        raise ALoRAError("curvature needs at least one token to predict: give it general text")
    importance: dict[str, InBasis] = {}
    inputs = {leader: _side(s, leader, keep, share) for leader, s in moments.inputs().items()}
    for weight in weights:
        output = moments.output(weight.name, counted * draws)
        own = inputs[moments.leaders[weight.name]]
        if kind == COVARIANCE:
            mean = EigenSide(own.vectors.new_zeros(weight.shape[0], 0), output[None])
            importance[weight.name] = CovarianceOmega.of(weight.shape, mean, own)
        else:
            importance[weight.name] = KroneckerOmega.of(weight.shape, _side(output, weight.name, keep, share), own)
    if kind == EKFAC:
        squares = RotatedSquares(weights, importance)
        with squares.watching():
            passes.run(batches, squares.begin)
        importance = {name: _with_omega(one, squares, name, counted * draws) for name, one in importance.items()}
    return CurvatureEstimate(importance, counted, number, time.perf_counter() - start)


def _with_omega(bases: InBasis, squares: RotatedSquares, name: str, tokens: int) -> InBasis:
    """A free Omega in the bases of a Kronecker product."""
    omega = squares.omega(name, tokens)
    _check(omega, name)
    vectors = {part: bases.parts[part] for part in (OUTPUT_VECTORS, INPUT_VECTORS)}
    return EkfacOmega(bases.shape, vectors | {OMEGA: omega.float().cpu()})


def _side(matrix: torch.Tensor, name: str, keep: int | None, share: float | None) -> EigenSide:
    _check(matrix, name)
    side = eigen_side(matrix, keep, share)
    return EigenSide(side.vectors.cpu(), side.values.cpu())


def _check(values: torch.Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise Diverged("the curvature", name, advice="load the model in another dtype, such as bfloat16 or float32")


@dataclass(frozen=True)
class _Passes:
    """The passes through the model, the same ones each time."""

    model: nn.Module
    labels: str
    draws: int
    tokens: int | None
    seed: int

    def run(self, batches: Iterable[Mapping[str, torch.Tensor]], begin: Any) -> tuple[int, int]:
        """Pass the batches through; how many tokens were predicted, and how many batches there were.

        Args:
            begin: called with the batch's mask (B, T) of real tokens before each.
        """
        factors = [p for p in self.model.parameters() if p.requires_grad]
        device = factors[0].device
        counted = number = 0
        with evaluation_mode(self.model), torch.enable_grad():
            for number, batch in enumerate(batches, start=1):
                inputs = {name: value.to(device) for name, value in batch.items()}
                labels = inputs.pop("labels", None)
                mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
                begin(mask)
                logits = self.model(**inputs, use_cache=False).logits
                rows, drawn = self._predictions(logits, labels, mask, number)
                for chosen in drawn:
                    loss = nn.functional.cross_entropy(rows, chosen, reduction="sum")
                    # By the factors, which lead back to every layer; what it finds for them is of no use.
                    torch.autograd.grad(loss, factors, retain_graph=self.draws > 1, allow_unused=True)
                counted += len(rows)
                if self.tokens is not None and counted >= self.tokens:
                    break
        return counted, number

    def _predictions(
        self, logits: torch.Tensor, labels: torch.Tensor | None, mask: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits (tokens, V) of every prediction, and the labels (tokens,) of each draw."""
        if self.labels == "text":
            if labels is None:
                raise ALoRAError("the text's own labels are asked for, and its batches have none: sample them")
            kept = labels[:, 1:] != IGNORED_LABEL
            return wide(logits[:, :-1][kept]), [labels[:, 1:][kept]]
        rows = wide(logits[mask])
        generator = batch_generator(self.seed, number, rows.device)
        return rows, [draw_labels(rows, generator) for _ in range(self.draws)]
