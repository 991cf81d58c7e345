"""The domain through the base model: mean gradients of the weights, whole or as sketches, and moments of their inputs."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.basics.processes import Processes, place, together
from alora_trainer.basics.progress import ShownProgress
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.layer_moments import with_float64
from alora_trainer.trainer.initialization.directions import leading_right_vectors, natural_directions
from alora_trainer.trainer.initialization.general_metric import GeneralMetric
from alora_trainer.trainer.initialization.sketch import sketch_width
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.layer_hooks import LayerHooks
from alora_trainer.weights.products import Products
from alora_trainer.weights.sharding import is_sharded, reshard

logger = logging.getLogger(__name__)

Batch = Mapping[str, torch.Tensor]
# The loss of a batch as the trainer has it, a mean over what it counts.
LossOf = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True)
class Domain:
    """This process's share of the domain's items, and how the base model is asked about them.

    Attributes:
        model: the base model with a fresh adapter, whose B is zero.
        batches: on the model's device; the same ones in every pass.
        loss_of: the mean loss of a batch.
        counts: for every batch, over how much its loss is a mean.
        items: of the domain, in all batches.
        lacking: how many batches more another process has.

    Of several processes all make as many passes: FSDP2 gathers a group of layers at a time, which takes all of them, and TRL's
    losses count over all. A process with fewer batches passes its first one again for each that it lacks, and what passes then
    is not looked at. So all must make it together.

    Raises:
        ALoRAError: a process has no batch at all.
    """

    model: nn.Module
    batches: Sequence[Batch]
    loss_of: LossOf
    counts: Sequence[int]
    items: int
    lacking: int = field(init=False)

    def __post_init__(self) -> None:
        numbers = together({Processes().rank: len(self.batches)}).values()
        if min(numbers) == 0:
            raise ALoRAError(
                f"the adapter's first directions are chosen by the domain's items, and of {len(numbers)} processes some have "
                "none: raise init_items to the number of processes, or give more items"
            )
        object.__setattr__(self, "lacking", max(numbers) - len(self.batches))

    def passed(self, what: str) -> Iterator[Batch]:
        """The batches, one after the other, with a line or bar about how far it is.

        Args:
            what: is looked for in this pass.
        """
        quiet = place()[0] != 0
        with ShownProgress(
            f"choosing first directions: {what}", len(self.batches), logger, unit="batches", quiet=quiet
        ) as shown:
            for batch in self.batches:
                yield batch
                shown.advance()

    def backward(self, weights: Sequence[AdaptedWeight], see: Callable[..., None]) -> None:
        """Call ``see(weight, features, gradient)`` for every layer and batch, the gradients being those of summed losses."""
        hooks = LayerHooks(weights, see)
        try:
            with evaluation_mode(self.model), torch.enable_grad():
                for batch, count in zip(self.passed("gradients"), self.counts, strict=True):
                    self._differentiate(self.loss_of(batch) * count)
        finally:
            hooks.close()
        with evaluation_mode(self.model), torch.enable_grad():
            for _ in range(self.lacking):
                self._differentiate(self.loss_of(self.batches[0]))

    def _differentiate(self, loss: torch.Tensor) -> None:
        """By the factors, which lead back to every layer; what it finds for them is of no use."""
        factors = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not is_sharded(self.model):
            torch.autograd.grad(loss, factors, allow_unused=True)
            return
        # FSDP2 computes with whole parameters in the place of these, and lets go of them as gradients come to be.
        loss.backward()
        for factor in factors:
            factor.grad = None

    def forward(self, weights: Sequence[AdaptedWeight], see: Callable[[AdaptedWeight, torch.Tensor], None]) -> None:
        """Call ``see(weight, inputs)`` for every layer and batch, the inputs (tokens, n) being those of real tokens."""
        for batch in self.passed("scale"):
            mask = batch.get("attention_mask")
            real = None if mask is None or bool(mask.all()) else mask.flatten().bool()

            def rows(weight: AdaptedWeight, features: torch.Tensor, output: Any, real: Any = real) -> None:
                flat = features.detach().reshape(-1, features.shape[-1])
                # A mixture's experts are given some of the tokens, in an order of their own: padding is not told apart.
                see(weight, flat if real is None or len(real) != len(flat) else flat[real.to(flat.device)])

            products = Products(weights, rows)
            try:
                self.evaluate(batch)
            finally:
                products.close()
        self.keep_company()

    def evaluate(self, batch: Batch) -> None:
        """Pass a batch forward."""
        with evaluation_mode(self.model), torch.no_grad():
            self.loss_of(batch)
        reshard(self.model)

    def keep_company(self) -> None:
        """Pass forward what is lacking, after `batches`."""
        for _ in range(self.lacking):
            self.evaluate(self.batches[0])


class MeanGradients(Protocol):
    """What becomes of the gradients that pass: the directions of each weight."""

    passes: int

    def see(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        """A layer's inputs (..., n) and the gradient (..., m) of its outputs."""

    def end_pass(self) -> None:
        """A pass is over: what the processes found is added up."""

    def directions(self, weight: AdaptedWeight, metric: GeneralMetric) -> torch.Tensor:
        """A (r, n) of a weight, in float64."""


def _rows(features: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return features.reshape(-1, features.shape[-1]).to(dtype), gradient.reshape(-1, gradient.shape[-1]).to(dtype)


class WholeGradients:
    """The gradients themselves, one matrix of each weight's size; one pass.

    Args:
        weights: those that are meant.
        location: where they are kept: "device" beside the weights, or "cpu".
    """

    passes = 1

    def __init__(self, weights: Sequence[AdaptedWeight], location: str) -> None:
        self._location = location
        self._device = weights[0].device
        self._sums = {
            w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device if location == "device" else "cpu")
            for w in weights
        }

    def see(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        x, g = _rows(features, gradient.detach(), weight.dtype)
        if self._location == "device":
            self._sums[weight.name].addmm_(g.T, x)
        else:
            self._sums[weight.name] += (g.T @ x).cpu()

    def end_pass(self) -> None:
        add_up(self._sums.values(), self._device)

    def directions(self, weight: AdaptedWeight, metric: GeneralMetric) -> torch.Tensor:
        gradient = self._sums.pop(weight.name).to(with_float64(weight.device), torch.float64)
        check_gradient(weight, gradient)
        return natural_directions(gradient, metric, weight.rank)


class SketchedGradients:
    """The gradients' products with a few random directions, and in a second pass what these leave out (Halko et al. 2011,
    arXiv 0909.4061, in the general metric): memory p (m + n) for each weight, with p = 2 r + 16.

    With W = (S + d)^-1/2 and V = (G + d)^-1/2, the first pass finds ``Y = V M W R`` for a random R (n, p), whose columns span
    the leading left directions of H; the second ``Q' H`` for Q = orth(Y), whose right singular vectors are those of H.

    Args:
        weights: those that are meant.
        metric_of: of each weight by name.
    """

    passes = 2

    def __init__(self, weights: Sequence[AdaptedWeight], metric_of: Callable[[AdaptedWeight], GeneralMetric]) -> None:
        self._metric_of = metric_of
        self._weights = {weight.name: weight for weight in weights}
        self._first = True
        # Of the inputs (n, p) in the first pass, of the outputs (m, p) in the second.
        self._probes = {name: self._random(weight) for name, weight in self._weights.items()}
        self._sums = {
            name: torch.zeros(w.shape[0], probe.shape[1], dtype=w.dtype, device=w.device)
            for (name, probe), w in zip(self._probes.items(), weights, strict=True)
        }

    def _random(self, weight: AdaptedWeight) -> torch.Tensor:
        """``W R``; by the weight's name, so that it is the same on all processes and in every run."""
        generator = torch.Generator().manual_seed(zlib.crc32(weight.name.encode()))
        width = sketch_width(weight.shape, weight.rank)
        probe = torch.randn(width, weight.shape[1], generator=generator, dtype=torch.float64)
        device = with_float64(weight.device)
        return self._metric_of(weight).whiten_inputs(probe.to(device)).T.to(weight.device, weight.dtype)

    def see(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        x, g = _rows(features, gradient.detach(), weight.dtype)
        probe, total = self._probes[weight.name], self._sums[weight.name]
        if self._first:
            total.addmm_(g.T, x @ probe)
        else:
            total.addmm_((g @ probe).T, x)

    def end_pass(self) -> None:
        Processes().sum(list(self._sums.values()))
        if not self._first:
            return
        self._first = False
        for name, weight in self._weights.items():
            products = self._sums[name].to(with_float64(weight.device), torch.float64)
            check_gradient(weight, products)
            metric = self._metric_of(weight)
            basis = torch.linalg.qr(metric.whiten_outputs(products)).Q
            self._probes[name] = metric.whiten_outputs(basis).to(weight.device, weight.dtype)
            self._sums[name] = torch.zeros(basis.shape[1], weight.shape[1], dtype=weight.dtype, device=weight.device)

    def directions(self, weight: AdaptedWeight, metric: GeneralMetric) -> torch.Tensor:
        within = self._sums.pop(weight.name).to(with_float64(weight.device), torch.float64)
        return metric.whiten_inputs(leading_right_vectors(metric.whiten_inputs(within), weight.rank).T)


def add_up(sums: Iterable[torch.Tensor], device: torch.device) -> None:
    """Add what each process found up over all of them, in place; one at a time, and by way of `device`, which can send it."""
    processes = Processes()
    if processes.count == 1:
        return
    for total in sums:
        there = total.to(device)
        processes.sum([there])
        if there is not total:
            total.copy_(there)


def check_gradient(weight: AdaptedWeight, gradient: torch.Tensor) -> None:
    """Raises ALoRAError for a gradient that says nothing: zero, or not finite."""
    largest = float(gradient.abs().max())
    if largest == 0:
        raise ALoRAError(
            f"the domain's loss does not depend on {weight.name}: give more items (init_items), or leave it out of "
            f"{weight.listed_in}"
        )
    if not largest < float("inf"):
        raise ALoRAError(
            f"the domain's gradient of {weight.name} is not finite: load the model in another dtype, such as "
            "bfloat16 or float32"
        )
