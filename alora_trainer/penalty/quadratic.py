"""From an importance map to the number that is added to the loss, and its gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils import get_total_norm

from alora_trainer.basics.processes import Processes
from alora_trainer.errors import Diverged
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.anchor import anchor_of
from alora_trainer.penalty.held_weight import HeldWeight, hold
from alora_trainer.penalty.layer_weights import layer_coefficients
from alora_trainer.penalty.streaming import ResidentOmegas, StreamedOmegas
from alora_trainer.weights.reference import FullReference, Reference
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, first_not_finite, first_weight_not_finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PenaltyValue:
    """The penalty at one point.

    Attributes:
        value: of the whole penalty, lambda and layer weights in it (a float64 scalar).
        literal: ``sum_l R_l`` by the map's own numbers: neither lambda nor layer weights nor normalisation in it (likewise).
    """

    value: torch.Tensor
    literal: torch.Tensor


@dataclass(frozen=True)
class PenaltyStep(PenaltyValue):
    """The penalty at one point, with its gradients by weight name."""

    gradients: dict[str, Matrices]


class QuadraticPenalty:
    """``lambda sum_l w_l R_l`` with ``R_l = <D, M_l D>`` of the drift ``D = theta - theta*`` (arXiv 2501.13669 eq. 16-18).

    Of several processes, each keeps Omega of its own share of the weights and computes their part (`importance.owners`); what
    comes out is whole on all of them. They must call every method together.

    Args:
        weights: the weights to hold, all of them in `importance` (see `ImportanceMap.check_model`).
        importance: Omega and theta*; what this process holds is moved to each weight's device.
        lam: lambda; may be set anew between two evaluations.
        layer_weights: "l2" for ``w_l = ||Omega_l||_2`` (eq. 17), "none" for 1, or a mapping, see `given_layer_weights`.
        normalize: divide Omega by its mean over all held weights and w_l by its mean over layers.
        backend: how it is computed, a name in `BACKENDS`; None takes the preferred one of those that fit.
        anchors: what to pull every weight towards, by name; None is theta*, for the adapter that was recorded.
        streamed: keep Omega in host memory, and bring it to the weights' device piece by piece (see `StreamedOmegas`).
        pulls: `pull` will be called: refuse at once what has no decoupled update.

    Raises:
        ALoRAError: normalisation is asked for and all importance is zero; the backend or a layer weight does not fit.
    """

    def __init__(
        self,
        weights: Sequence[TrainedWeight],
        importance: ImportanceValues,
        *,
        lam: float,
        layer_weights: str | Mapping[str, float] = "l2",
        normalize: bool = True,
        backend: str | None = None,
        anchors: Mapping[str, Reference | FullReference] | None = None,
        streamed: bool = False,
        pulls: bool = False,
    ) -> None:
        anchors = anchors or {weight.name: anchor_of(weight, importance) for weight in weights}
        coefficients = layer_coefficients(
            importance, [weight.name for weight in weights], layer_weights=layer_weights, normalize=normalize
        )
        self.lam = lam
        self._weights = list(weights)
        self._processes = Processes()
        self._owners = importance.owners([weight.name for weight in self._weights])
        self._held = {
            weight.name: hold(
                weight, importance.stored(weight.name), anchors[weight.name], coefficients[weight.name], backend
            )
            for weight in self._weights
            if self._owners[weight.name] == self._processes.rank
        }
        if pulls:
            for name, held in self._held.items():
                held.check_pull(importance.stored(name))
        own = [held.weight for held in self._held.values()]
        devices = [weight.device for weight in own]
        streamed = streamed and any(device.type != "cpu" for device in devices)
        residence = StreamedOmegas if streamed else ResidentOmegas
        self._omegas = residence([importance.stored(weight.name) for weight in own], devices)
        beside = streamed and {device.type for device in devices} == {"cuda"} and len(set(devices)) == 1
        self._stream = torch.cuda.Stream(devices[0]) if beside else None
        self._ahead: PenaltyStep | None = None
        names = sorted({held.backend for held in self._held.values()})
        share = f", of {len(own)} of {len(weights)} weights here" if self._processes.count > 1 else ""
        logger.info(f"penalty: {importance.storage} importance{share}, computed by {', '.join(names) or 'others'}")

    @property
    def weights(self) -> list[TrainedWeight]:
        """The held weights, of all processes."""
        return self._weights

    @property
    def held(self) -> Mapping[str, HeldWeight]:
        """What this process holds, by weight name: all, unless there are several processes."""
        return self._held

    def _own(self) -> Iterator[tuple[HeldWeight, Matrices]]:
        """What this process holds, with the present matrices of each weight."""
        for weight in self._weights:
            held = self._held.get(weight.name)
            if held is not None or weight.is_sharded:  # reading a sharded weight takes all processes
                matrices = weight.matrices
                if held is not None:
                    yield held, matrices

    def begin(self) -> None:
        """Start `evaluate` where it can run beside other work: a streamed Omega travels while the GPU does the forward pass.

        The weights must stay as they are until `evaluate` is called.
        """
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._ahead = self._evaluate()

    def evaluate(self) -> PenaltyStep:
        """Value and gradients at the present weights: one pass over Omega, no temporary of W's size.

        Returns:
            the value, and sum_l R_l, as float64 scalars; by weight name, the gradients of its parameters as matrices in the
            computation's dtype (of A (r, n) and B (m, r) for an adapted weight).

        Raises:
            Diverged: a weight's penalty is not finite, or its gradient is too large for float32's squares.
        """
        step, self._ahead = self._ahead, None
        if step is None:
            step = self._evaluate()
        elif self._stream is not None:
            present = torch.cuda.current_stream(self._stream.device)
            present.wait_stream(self._stream)
            for tensor in (step.value, step.literal, *(g for of_weight in step.gradients.values() for g in of_weight)):
                tensor.record_stream(present)
        self._check(step)
        return step

    def _check(self, step: PenaltyStep) -> None:
        """Refuse a step that an optimizer in float32 could not take, or would take as none at all.

        Clipping and Adam square the gradient: where the squares overflow, the one multiplies it by zero and the other divides
        it by infinity, and nothing moves without a word.
        """
        gradients = {name: list(of_weight) for name, of_weight in step.gradients.items()}
        norm = get_total_norm([gradient for own in gradients.values() for gradient in own]).to(step.value.device)
        if bool(torch.isfinite(step.value.float()) & torch.isfinite(norm)):
            return
        broken = first_not_finite(gradients)
        if broken is not None or not bool(torch.isfinite(step.value.float())):
            lower = f"lower the learning rate or lambda (which is {self.lam:.4g}), or look for bad data"
            raise Diverged("the penalty", broken, advice=lower)
        largest = max(gradients, key=lambda name: max(float(g.abs().max()) for g in gradients[name]))
        lower = f"lower lambda, which is {self.lam:.4g}, or set application='decoupled', which takes any"
        raise Diverged("the square of the penalty's gradient", largest, advice=lower)

    def _evaluate(self) -> PenaltyStep:
        value, literal = self._zero(), self._zero()
        own: dict[str, Matrices] = {}
        omegas = self._omegas.in_order()
        for held, matrices in self._own():
            part, of_parameters = held.evaluate(next(omegas), held.weight.computed(matrices))
            factor = self.lam * held.coefficient
            own[held.weight.name] = tuple(gradient.mul_(factor) for gradient in of_parameters)
            value += (part * factor).to(value.device)
            literal += part.to(literal.device)
        _exhaust(omegas)
        gradients = {w.name: own[w.name] if w.name in own else _zeros(w, w.dtype) for w in self._weights}
        self._processes.sum([value, literal, *(g for of_weight in gradients.values() for g in of_weight)])
        return PenaltyStep(value, literal, gradients)

    def _zero(self) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._weights[0].device)

    def pull(self, learning_rates: Mapping[int, float]) -> PenaltyValue:
        """Move the weights towards their anchors, beside the optimizer: the decoupled application of the penalty.

        Every parameter moves by an implicit step of its learning rate times lambda (see `backends.pull`).

        Args:
            learning_rates: by ``id(parameter)``; a parameter that is not in it (frozen, say) stays.

        Returns:
            the penalty before the pull.

        Raises:
            Diverged: it is not finite.
        """
        value, literal = self._zero(), self._zero()
        moved: dict[str, Matrices] = {}
        omegas = self._omegas.in_order()
        for held, matrices in self._own():
            try:
                part = held.pull(next(omegas), matrices, learning_rates, self.lam)
                value += (part * (self.lam * held.coefficient)).to(value.device)
                literal += part.to(literal.device)
            except torch.linalg.LinAlgError:  # of what is not finite; said below, by all processes together
                value += math.nan
            moved[held.weight.name] = matrices
        _exhaust(omegas)
        self._processes.sum([value, literal])
        for weight in self._weights:
            if weight.name not in moved:
                moved[weight.name] = _zeros(weight) if weight.is_sharded else weight.matrices
            matrices = moved.pop(weight.name)
            for matrix in matrices:
                self._processes.from_owner(matrix, self._owners[weight.name])
            weight.put(matrices)
        if not bool(torch.isfinite(value)):
            raise Diverged("the penalty", first_weight_not_finite(self._weights))
        return PenaltyValue(value, literal)

    def drift(self) -> dict[str, float]:
        """``||theta - theta*||_2`` of every weight."""
        own = {held.weight.name: held.drift_norm(held.weight.computed(matrices)) for held, matrices in self._own()}
        return self._processes.totals(
            {weight.name: own.get(weight.name, 0.0) for weight in self._weights}, self._weights[0].device
        )


def _exhaust(omegas: Iterator[Importance]) -> None:
    for _ in omegas:  # lets a streamed Omega's buffer go
        raise AssertionError("an importance without a weight")


def _zeros(weight: TrainedWeight, dtype: torch.dtype | None = None) -> Matrices:
    """Matrices of a weight that another process holds, for that process to fill in: in its parameters' dtype, or in this."""
    shapes = (torch.empty((), device=weight.device).expand(p.shape) for p in weight.parameters)
    return tuple(
        torch.zeros(view(shape).shape, dtype=dtype or parameter.dtype, device=weight.device)
        for view, shape, parameter in zip(weight.views, shapes, weight.parameters, strict=True)
    )
