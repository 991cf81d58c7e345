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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from alora_trainer.basics.processes import Processes, place
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.ekfac import EKFAC, OMEGA, EkfacOmega
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis
from alora_trainer.importance.kinds.kronecker import COVARIANCE, KRONECKER, CovarianceOmega, KroneckerOmega
from alora_trainer.importance.recording.curvature_checkpoint import (
    CurvatureCheckpoint,
    Progress,
    Saved,
    own_checkpoint,
)
from alora_trainer.importance.recording.curvature_parts import CurvatureEstimate, FinishedPart, of_part, split
from alora_trainer.importance.recording.curvature_passes import Passes
from alora_trainer.importance.recording.curvature_sides import check_sides, decompose, not_finite
from alora_trainer.importance.recording.drawn_labels import LABELS
from alora_trainer.importance.recording.layer_moments import LayerMoments, check_layers, check_whole
from alora_trainer.importance.recording.rotated_squares import Bases, RotatedSquares
from alora_trainer.importance.recording.squared_gradients import LOCATIONS
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights

CURVATURES = (KRONECKER, EKFAC, COVARIANCE)


# What importance of a kind is made as.
_MADE: Mapping[str, type[InBasis]] = {KRONECKER: KroneckerOmega, EKFAC: EkfacOmega, COVARIANCE: CovarianceOmega}


def estimate_curvature(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    kind: str = KRONECKER,
    *,
    labels: str = "sampled",
    draws: int = 1,
    tokens: int | None = None,
    keep: int | None = None,
    share: float | None = None,
    seed: int = 0,
    location: str = "device",
    parts: int = 1,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
) -> CurvatureEstimate:
    """The curvature of the adapted weights' base, at the weights that the model has.

    Args:
        model: itself, in no wrapper of several processes, with a trainable LoRA adapter, whose target modules say which weights
            are meant. A fresh adapter is zero, so that the curvature is that of the base. The model is run in evaluation mode,
            and its gradients are left alone.
        batches: ``input_ids`` (B, T), perhaps ``attention_mask``, and ``labels`` (-100 where nothing is predicted) for "text";
            gone through twice for EK-FAC, as often for each of several parts, and again from the beginning where a checkpoint
            is gone on from. Of several processes, each gives its own share.
        kind: "kronecker", "ekfac" or "covariance".
        labels: "sampled" from the model's predictions, or the "text"'s own.
        draws: how often labels are sampled for each batch; each is a backward pass.
        tokens: stop after the batch in which so many have been predicted (by this process); None takes all.
        keep: eigenvectors on either side at most; None for all.
        share: as many as hold this share of the trace, at most `keep`; None for `keep`.
        seed: of the sampled labels; each batch of each process has a generator of its own (`batch_generator`).
        location: where sums are kept: "device" beside the weights, or "cpu" in host memory. Either way they are decomposed on
            the device, one at a time, in float64.
        parts: the weights are taken in so many parts, one after the other, each with passes of its own: the sums of one part
            alone are held at a time.
        checkpoint: a file that what was found so far is kept in; if it is there, the estimate goes on from it, to the same
            bits. The caller removes it. Of several processes each has its own (`own_checkpoint`), and so have several parts
            (`of_part`, and another one with ``-found`` in its name for what is finished).
        checkpoint_every: batches between two writings of it.

    Raises:
        ALoRAError: a setting is unknown; there is no token to predict; a layer's gradient is no plain outer product, or nothing
            has passed through it; a side of a weight is too large to decompose; the checkpoint is of another estimate.
        Diverged: the curvature of a weight is not finite.
    """
    for value, known, what in (
        (kind, CURVATURES, "kind"),
        (labels, LABELS, "labels"),
        (location, LOCATIONS, "location"),
    ):
        if value not in known:
            raise ALoRAError(f"{what}={value!r} is unknown: use one of {', '.join(known)}")
    _check_numbers(labels, draws=draws, tokens=tokens, keep=keep, share=share, parts=parts, every=checkpoint_every)
    if (kind == EKFAC or parts > 1) and isinstance(batches, Iterator):
        raise ALoRAError(
            "EK-FAC and several parts go through the text more than once, and it comes from an iterator: give a list or a "
            "DataLoader"
        )
    weights = adapted_weights(model)
    check_whole(weights)
    check_layers(weights)
    embeddings = frozenset(w.name for w in weights if w.is_embedding)
    check_sides({w.name: w.shape for w in weights}, embeddings, kind != COVARIANCE, keep)
    request = _Request(model, kind, labels, draws, tokens, keep, share, seed, location, checkpoint, checkpoint_every)
    groups = split(weights, parts)
    estimates = [request.measured(batches, own, number, len(groups)) for number, own in enumerate(groups, start=1)]
    return reduce(CurvatureEstimate.joined, estimates)


def _check_numbers(
    labels: str, *, draws: int, tokens: int | None, keep: int | None, share: float | None, parts: int, every: int
) -> None:
    if draws < 1 or (draws > 1 and labels != "sampled"):
        raise ALoRAError(f"draws={draws}: sample labels at least once, and the text's own labels exactly once")
    numbers = (("tokens", tokens, 1), ("keep", keep, 0), ("parts", parts, 1), ("checkpoint_every", every, 1))
    for name, number, least in numbers:
        if number is not None and number < least:
            raise ALoRAError(f"{name}={number} must be at least {least}")
    if share is not None and not 0 < share <= 1:
        raise ALoRAError(f"share={share} must be more than 0 and at most 1, the whole trace")


@dataclass(frozen=True)
class _Request:
    """What `estimate_curvature` was asked for, by its names."""

    model: nn.Module
    kind: str
    labels: str
    draws: int
    tokens: int | None
    keep: int | None
    share: float | None
    seed: int
    location: str
    checkpoint: Path | None
    checkpoint_every: int

    def measured(
        self, batches: Iterable[Mapping[str, torch.Tensor]], own: list[AdaptedWeight], number: int, parts: int
    ) -> CurvatureEstimate:
        """Of the weights `own`, which are the part `number` of so many."""
        file = self._file(own, number, parts)
        passes = Passes(self.model, self.labels, self.draws, self.tokens, self.seed, file)
        estimate = _Estimate(self.kind, own, passes, self.keep, self.share, self.location)
        if parts == 1:
            return estimate.of(batches)
        whole = None if file.path is None else file.path.with_name(f"{file.path.stem}-found{file.path.suffix}")
        finished = FinishedPart(replace(file, path=whole), _MADE[self.kind], own[0].device)
        found = finished.read({weight.name: weight.shape for weight in own})
        if found is None:
            found = estimate.of(batches)
            finished.write(found)
        return found

    def _file(self, own: list[AdaptedWeight], number: int, parts: int) -> CurvatureCheckpoint:
        known = ("kind", "labels", "draws", "tokens", "keep", "share", "seed")
        settings = {name: getattr(self, name) for name in known} | {"processes": list(place())}
        weights = {w.name: [list(w.shape), str(w.dtype), w.base_sample()] for w in own}
        path = own_checkpoint(self.checkpoint) if self.checkpoint is not None else None
        return CurvatureCheckpoint(of_part(path, number, parts), self.checkpoint_every, settings | {"weights": weights})


@dataclass
class _Estimate:
    """One estimate on its way.

    Attributes:
        kind, weights, passes, keep, share, location: as `estimate_curvature` has them.
    """

    kind: str
    weights: list[AdaptedWeight]
    passes: Passes
    keep: int | None
    share: float | None
    location: str

    def of(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> CurvatureEstimate:
        """Pass the batches through, from where a checkpoint is."""
        saved = self.passes.checkpoint.read()
        if self.kind == EKFAC and _second(saved, self.weights[0].device):
            assert saved is not None
            bases, progress = Bases.of_state(saved.tensors, saved.facts), saved.progress
            return self._squared(batches, bases, progress, saved.tensors)
        clock = time.perf_counter()
        moments = LayerMoments(self.weights, outputs=self.kind != COVARIANCE, location=self.location)
        progress = Progress()
        if saved is not None:
            moments.restore(saved.tensors, saved.facts)
            progress = saved.progress
            clock -= progress.seconds
            del saved  # or what is decomposed would stay in memory
        self.passes.run(1, batches, moments, progress)
        tokens, number = self._counted(progress)
        moments.agree(Processes())
        moments.check_seen()
        sizes = {w.name: w.shape[0] for w in self.weights}
        leaders = moments.leaders
        outputs, inputs = decompose(moments, sizes, tokens * self.passes.draws, self.keep, self.share)
        seconds = time.perf_counter() - clock
        if self.kind == EKFAC:
            u, v = ({name: one.vectors for name, one in sides.items()} for sides in (outputs, inputs))
            return self._squared(batches, Bases(u, v, leaders, tokens, number), Progress(seconds=seconds), None)
        made = CovarianceOmega if self.kind == COVARIANCE else KroneckerOmega
        importance: dict[str, InBasis] = {
            w.name: made.of(w.shape, outputs[w.name], inputs[leaders[w.name]]) for w in self.weights
        }
        return CurvatureEstimate(importance, tokens, number, seconds)

    def _squared(
        self,
        batches: Iterable[Mapping[str, torch.Tensor]],
        bases: Bases,
        progress: Progress,
        tensors: Mapping[str, torch.Tensor] | None,
    ) -> CurvatureEstimate:
        """The second pass of EK-FAC.

        Args:
            tensors: of a checkpoint of it.
        """
        clock = time.perf_counter() - progress.seconds
        squares = RotatedSquares(self.weights, bases, self.passes.draws)
        if tensors is not None:
            squares.restore(tensors)
        elif self.passes.checkpoint.path is not None:
            self.passes.checkpoint.write(Saved(2, progress, *squares.state()))
        self.passes.run(2, batches, squares, progress)
        importance: dict[str, InBasis] = {}
        processes = Processes()
        for weight in self.weights:
            name = weight.name
            processes.sum([squares.sums[name]])
            omega = squares.omega(name, bases.tokens * self.passes.draws)
            if not bool(torch.isfinite(omega).all()):
                raise not_finite(name)
            vectors = {OUTPUT_VECTORS: bases.outputs[name], INPUT_VECTORS: bases.inputs[bases.leaders[name]]}
            importance[name] = EkfacOmega(weight.shape, vectors | {OMEGA: omega.float().cpu()})
        return CurvatureEstimate(importance, bases.tokens, bases.batches, time.perf_counter() - clock)

    def _counted(self, progress: Progress) -> tuple[int, int]:
        """Tokens and batches of all processes."""
        counts = {"tokens": progress.tokens, "batches": progress.batches}
        totals = Processes().totals(counts, self.weights[0].device)
        if totals["tokens"] == 0:
            raise ALoRAError("curvature needs at least one token to predict: give it general text")
        return int(totals["tokens"]), int(totals["batches"])


def _second(saved: Saved | None, device: torch.device) -> bool:
    """Whether the second pass is gone on with, on all processes alike."""
    processes = Processes()
    there = processes.total(float(saved is not None and saved.number == 2), device)
    if there not in (0, processes.count):
        raise ALoRAError(
            "some processes were stopped in the first pass over the text and others in the second: remove their checkpoints, "
            "and begin anew"
        )
    return there > 0
