"""Stage A: watch an ordinary training and integrate how much every element of the trained weights mattered."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError, Diverged
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.recording.damping import Damping
from alora_trainer.importance.recording.estimators import ESTIMATORS, Estimator, StepFactors
from alora_trainer.importance.recording.fold import consolidate
from alora_trainer.importance.recording.integral import PathIntegral
from alora_trainer.importance.recording.rotation import Rotation, directions_digest, ekfac_along, rotated_shape
from alora_trainer.importance.recording.true_gradient import KnownGradient, TrueGradients
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.steps import Factors, Step
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, learning_rate_of

Gradients = Mapping[str, Matrices]

# How a checkpoint calls the matrices that a weight started from.
_START = ("start_a", "start_b")


@dataclass
class _Before:
    """A weight's matrices and data gradients, copied before the optimizer moves it."""

    matrices: Matrices
    gradients: Matrices
    learning_rate: float


class Recorder:
    """Integrates the path integral ``w = -sum_t g_t * D_t`` of arXiv 2501.13669 over a training run.

    The trainer calls `before_step` with the gradients of the data loss, lets the optimizer step, calls `after_step`; at the
    end `finish` gives Omega (eq. 15). A step whose gradients are not finite because of fp16 loss scaling is passed over:
    the weights did not move.

    Of several processes, each integrates its own share of the weights (`Processes.owners`); they must call every method
    together.

    Args:
        weights: the trained weights, at the start of the task.
        estimator: a name in `ESTIMATORS`.
        xi: damping of eq. 15: a number, or as a text such as "10%" a share of each weight's mean squared movement.
        bases: importance in a basis by weight name, in whose directions the path is integrated (`Rotation`); None for the
            weights' own rows and columns.
        location: where w lives, see `PathIntegral`.
        fold_every: fold this many steps into w at once; their factors are kept until then. An estimator that takes the true
            gradient, and full tuning, have matrices of W's own size instead of factors, and fold every step.
        folder: for ``location="disk"``.

    Raises:
        ALoRAError: the estimator is unknown or not for these weights; the location is unknown; there is no basis for one of the
            weights, or it is of another shape.
    """

    def __init__(
        self,
        weights: Sequence[TrainedWeight],
        estimator: str,
        xi: float | str,
        *,
        bases: Mapping[str, Importance] | None = None,
        location: str = "device",
        fold_every: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.weights = list(weights)
        self.estimator = estimator
        self._estimator = ESTIMATORS.find(estimator, "record")
        _check_parameterization(self.weights, estimator, self._estimator)
        self.damping = Damping.parse(xi)
        self.fold_every = fold_every
        self.steps = 0
        self.skipped_steps = 0
        self.tokens = 0
        self._processes = Processes()
        self._owners = self._processes.owners({w.name: math.prod(w.shape) for w in self.weights})
        self._own = [weight for weight in self.weights if self._owners[weight.name] == self._processes.rank]
        self._before: dict[str, _Before] = {}
        self._waiting: list[dict[str, Step]] = []
        self._start = self._copies()
        self._steps_are_thin = all(w.parameterization is Parameterization.ADAPTER for w in self.weights)
        self._true_gradients = (
            TrueGradients([weight for weight in self.weights if isinstance(weight, AdaptedWeight)])
            if self._estimator.true_gradient
            else None
        )
        self._scale = 1.0
        self._has_before = False
        self._bases = {} if bases is None else checked_bases(self.weights, bases)
        shapes = {name: rotated_shape(basis) for name, basis in self._bases.items()}
        self._integral = PathIntegral(self._own, location, folder, shapes=shapes)
        self._rotations = {
            weight.name: Rotation(self._bases[weight.name], weight.device, weight.dtype)
            for weight in self._own
            if weight.name in self._bases
        }

    def _copies(self) -> dict[str, Matrices]:
        """The present matrices of this process's own weights."""
        own = {weight.name for weight in self._own}
        copies = {}
        for weight in self.weights:
            if weight.name in own:
                copies[weight.name] = weight.copy()
            elif weight.is_sharded:
                weight.copy()  # the process that owns it needs this one's part
        return copies

    def before_step(
        self, gradients: Gradients, learning_rates: Mapping[int, float], *, loss_scale: float | None = None
    ) -> None:
        """Keep what the step starts from.

        Args:
            gradients: by weight name, the data loss's gradients of the weight's parameters, as matrices: unclipped,
                unscaled. Asked for once each.
            learning_rates: the optimizer's learning rates by ``id(parameter)``.
            loss_scale: the factor of an fp16 loss scaler that was at work; infinite gradients are its ordinary business.

        Raises:
            Diverged: a gradient is not finite though no scaler is at work.
            ALoRAError: A and B learn at different rates.
        """
        self._before = {}
        self._scale = 1.0 if loss_scale is None else loss_scale
        own = self._own_gradients(gradients)
        broken = self._first_not_finite(own)
        if broken is not None:
            if loss_scale is not None:
                return
            raise Diverged("the gradient", broken)
        for name, matrices in self._copies().items():
            self._before[name] = _Before(matrices, own[name], 0.0)
        if self._estimator.uses_learning_rate:
            for weight in self._own:
                self._before[weight.name].learning_rate = learning_rate_of(weight, learning_rates)
        self._has_before = True

    def _own_gradients(self, gradients: Gradients) -> dict[str, Matrices]:
        """Those of this process's own weights: the others' are let go of one by one, where asking for them takes all."""
        own = {}
        for weight in self.weights:
            if self._owners[weight.name] == self._processes.rank:
                own[weight.name] = gradients[weight.name]
            elif weight.has_spread_gradients:
                gradients[weight.name]  # the process that owns it needs this one's part
        return own

    def _first_not_finite(self, own: Gradients) -> str | None:
        """The first weight with a gradient that is not finite; one wait for the device however many weights there are."""
        flat = [gradient for of_weight in own.values() for gradient in of_weight]
        place = None
        if flat and not bool(torch.isfinite(torch.stack(torch._foreach_norm(flat))).all()):
            broken = (
                i
                for i, w in enumerate(self.weights)
                if w.name in own and not all(bool(torch.isfinite(g).all()) for g in own[w.name])
            )
            place = next(broken, None)
        place = self._processes.first(place, self.weights[0].device)
        return None if place is None else self.weights[place].name

    def after_step(self, *, skipped: bool = False) -> None:
        """Take in the step that has just been made; `skipped` says that the optimizer did not move."""
        before, self._before = self._before, {}
        ready, self._has_before = self._has_before, False
        if skipped or not ready:
            self.skipped_steps += 1
            if self._true_gradients is not None:
                self._true_gradients.reset()
            return
        after = self._copies()
        steps = {
            weight.name: weight.step(
                before[weight.name].matrices,
                before[weight.name].gradients,
                after[weight.name],
                before[weight.name].learning_rate,
            )
            for weight in self._own
        }
        if self._true_gradients is not None:
            self._fold_true_gradients(self._true_gradients, steps)
        else:
            self._waiting.append(steps)
            if len(self._waiting) >= (self.fold_every if self._steps_are_thin else 1):
                self._fold_waiting()
        self.steps += 1

    def _fold_true_gradients(self, true_gradients: TrueGradients, steps: Mapping[str, Step]) -> None:
        for name, gradient in true_gradients.take(self._scale).items():
            if name in steps:
                factors = self._integrand(name, KnownGradient(steps[name], gradient))
                self._integral.fold_at_once(name, factors, gradient.device)
        true_gradients.reset()

    def _fold_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            for weight in self._own:
                factors = [self._integrand(weight.name, steps[weight.name]) for steps in waiting]
                self._integral.fold(weight.name, factors)

    def _integrand(self, name: str, step: Step) -> StepFactors:
        factors = self._estimator.integrand(step)
        return self._rotations[name].step(factors) if name in self._rotations else factors

    def finish(self) -> dict[str, torch.Tensor | Importance]:
        """Omega of the task by weight name, in host memory and on every process; the recorder is used up.

        It is a matrix of the weight's own shape, and along `bases` importance in these.

        Raises:
            ALoRAError: no step was recorded, or the importance is zero everywhere.
            Diverged: the integral is not finite.
        """
        omega = self._omega(keep=False)
        self.close()
        if not any(bool(own.any()) for own in omega.values()):
            raise ALoRAError(
                f"the importance that was recorded over {self.steps} steps is zero everywhere, so that it would hold nothing: "
                "the weights did not move against the loss; look whether they train, at which learning rate, and on what"
            )
        return self._in_bases(omega)

    def so_far(self) -> dict[str, torch.Tensor | Importance]:
        """Omega of the steps until now, as `finish` gives it; the recording goes on untouched, and needs a copy's memory.

        Raises:
            ALoRAError: no step was recorded.
            Diverged: as `finish`.
        """
        return self._in_bases(self._omega(keep=True))

    def _in_bases(self, omega: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | Importance]:
        return {
            name: ekfac_along(self._bases[name], own) if name in self._bases else own for name, own in omega.items()
        }

    def _omega(self, *, keep: bool) -> dict[str, torch.Tensor]:
        if self.steps == 0:
            raise ALoRAError(
                "no optimizer step was recorded, so that there is no importance: train for at least one step (the data may "
                "make no whole batch, or every step may have overflowed in fp16)"
            )
        self._fold_waiting()
        after = self._copies()
        integral = self._integral.tensors()
        omega = {}
        for place, weight in enumerate(self.weights):
            if weight.name in after:
                w = integral[weight.name].clone() if keep else integral.pop(weight.name)
                own = self._consolidate(weight, w, after[weight.name])
                finite = bool(torch.isfinite(torch.linalg.vector_norm(own)))
            else:
                basis = self._bases.get(weight.name)
                shape = weight.shape if basis is None else rotated_shape(basis)
                own, finite = torch.empty(shape, dtype=weight.dtype), True
            if self._processes.first(None if finite else place, weight.device) is not None:
                raise Diverged("the importance", weight.name)
            omega[weight.name] = self._processes.from_owner(own, self._owners[weight.name])
        return omega

    def _consolidate(self, weight: TrainedWeight, w: torch.Tensor, after: Matrices) -> torch.Tensor:
        total = weight.movement(self._start[weight.name], after)
        xi = self.damping.of(total, weight.shape)
        if weight.name in self._rotations:
            assert isinstance(total, Factors)  # of adapters alone have bases been taken
            total = self._rotations[weight.name].total(total)
        # A copy off the device or out of the mapped file; host memory is used as it is.
        omega = consolidate(w, total.to(w.device), xi).cpu()
        return omega.clone() if self._integral.on_disk else omega

    def close(self) -> None:
        """Take the hooks off the model and give up w."""
        if self._true_gradients is not None:
            self._true_gradients.close()
        self._integral.close()

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What a resumed recording needs of this process: tensors of its own weights, and counters as strings (a safetensors
        file's two parts)."""
        self._fold_waiting()
        tensors: dict[str, torch.Tensor] = {}
        for name, w in self._integral.tensors().items():
            tensors[f"{name}.w"] = w
            tensors |= {f"{name}.{key}": start for key, start in zip(_START, self._start[name], strict=False)}
        counters = {"steps": self.steps, "skipped_steps": self.skipped_steps, "tokens": self.tokens}
        told = {"estimator": self.estimator, "basis": directions_digest(self._bases)}
        return tensors, told | {key: str(value) for key, value in counters.items()}

    def load_state_dict(
        self, names: Collection[str], tensor: Callable[[str], torch.Tensor], counters: Mapping[str, str]
    ) -> None:
        """Go on from the results of `state_dict`, of however many processes.

        Args:
            names: of the tensors that there are, over all processes.
            tensor: reads one of them.
            counters: the strings.

        Raises:
            ALoRAError: the state belongs to another estimator or to other weights.
        """
        if counters["estimator"] != self.estimator:
            raise ALoRAError(
                f"the checkpoint was recorded with record={counters['estimator']!r}, not {self.estimator!r}: "
                "resume with the same setting, or start again"
            )
        if counters.get("basis", "") != directions_digest(self._bases):
            raise ALoRAError(
                "the checkpoint was recorded along another basis: resume with the same one, or start again"
            )
        integral = self._integral.tensors()
        for weight in self._own:
            kept = {"w": integral[weight.name], **dict(zip(_START, self._start[weight.name], strict=False))}
            for key, own in kept.items():
                name = f"{weight.name}.{key}"
                saved = tensor(name) if name in names else None
                if saved is None or saved.shape != own.shape:
                    raise ALoRAError(f"the checkpoint holds no recording of {weight.name} {weight.shape}: start again")
                own.copy_(saved)
        self.steps, self.skipped_steps, self.tokens = (
            int(counters[key]) for key in ("steps", "skipped_steps", "tokens")
        )


def checked_bases(weights: Sequence[TrainedWeight], bases: Mapping[str, Importance]) -> dict[str, InBasis]:
    """The bases of all `weights`, by name.

    Raises:
        ALoRAError: a weight has none, or one of another shape, or is not adapted by LoRA.
    """
    found: dict[str, InBasis] = {}
    for weight in weights:
        basis = bases.get(weight.name)
        if not isinstance(basis, InBasis):
            what = "there is none" if basis is None else f"its importance is {basis.kind}, which has no directions"
            raise ALoRAError(
                f"importance cannot be recorded along a basis for {weight.name}: {what}; give a map of kronecker, ekfac or "
                "covariance importance of every weight that trains"
            )
        if basis.shape != weight.shape:
            raise ALoRAError(
                f"the basis is of another model: {weight.name} is {weight.shape} here and {basis.shape} in it"
            )
        if weight.parameterization is not Parameterization.ADAPTER:
            raise ALoRAError(f"importance is recorded along a basis for LoRA, and {weight.name} trains itself")
        found[weight.name] = basis
    return found


def _check_parameterization(weights: Sequence[TrainedWeight], name: str, estimator: Estimator) -> None:
    other = next((w for w in weights if w.parameterization not in estimator.parameterizations), None)
    if other is not None:
        works = " or ".join(parameterization.words for parameterization in estimator.parameterizations)
        raise ALoRAError(
            f"record={name!r} is for {works}, and {other.name} belongs to {other.parameterization.words}: use another "
            "estimator, such as 'path'"
        )
