"""Stage A: watch an ordinary LoRA training and integrate how much every element of the adapted weights mattered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.errors import ALoRAError
from alora_trainer.importance import estimators
from alora_trainer.importance.estimators import FactorStep, StepFactors
from alora_trainer.importance.fold import consolidate
from alora_trainer.importance.integral import PathIntegral
from alora_trainer.importance.true_gradient import TrueGradients

Gradients = Mapping[str, tuple[torch.Tensor, torch.Tensor]]

_THIN: dict[str, Callable[[FactorStep], StepFactors]] = {"paper": estimators.paper, "path": estimators.path}


@dataclass
class _Before:
    """A weight's factors and data gradients, copied before the optimizer moves it."""

    a: torch.Tensor
    b: torch.Tensor
    gradient_a: torch.Tensor
    gradient_b: torch.Tensor
    learning_rate: float


class Recorder:
    """Integrates the path integral ``w = -sum_t g_t * D_t`` of arXiv 2501.13669 over a training run.

    The trainer calls `before_step` with the gradients of the data loss, lets the optimizer step, calls `after_step`; at the
    end `finish` gives Omega (eq. 15). A step whose gradients are not finite because of fp16 loss scaling is passed over:
    the weights did not move.

    Args:
        weights: the adapted weights, at the start of the task.
        estimator: "path", "paper" or "exact".
        xi: damping of eq. 15.
        location: where w lives, see `PathIntegral`.
        fold_every: fold this many steps into w at once; their factors are kept until then. "exact" has matrices of W's own
            size instead of factors, and folds every step.
        folder: for ``location="disk"``.
    """

    def __init__(
        self,
        weights: Sequence[AdaptedWeight],
        estimator: str,
        xi: float,
        *,
        location: str = "device",
        fold_every: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.weights = list(weights)
        self.estimator = estimator
        self.xi = xi
        self.fold_every = fold_every
        self.steps = 0
        self.skipped_steps = 0
        self.tokens = 0
        self._before: dict[str, _Before] = {}
        self._waiting: list[dict[str, FactorStep]] = []
        self._start = {w.name: (w.a.to(w.dtype, copy=True), w.b.to(w.dtype, copy=True)) for w in self.weights}
        self._true_gradients = TrueGradients(self.weights) if estimator == "exact" else None
        self._scale = 1.0
        self._integral = PathIntegral(self.weights, location, folder)

    def before_step(
        self, gradients: Gradients, learning_rates: Mapping[int, float], *, loss_scale: float | None = None
    ) -> None:
        """Keep what the step starts from.

        Args:
            gradients: by weight name, the data loss's gradients of A (r, n) and B (m, r): unclipped, unscaled.
            learning_rates: the optimizer's learning rates by ``id(parameter)``.
            loss_scale: the factor of an fp16 loss scaler that was at work; infinite gradients are its ordinary business.

        Raises:
            ALoRAError: a gradient is not finite though no scaler is at work; A and B learn at different rates.
        """
        self._before = {}
        self._scale = 1.0 if loss_scale is None else loss_scale
        broken = _first_not_finite(gradients)
        if broken is not None:
            if loss_scale is not None:
                return
            raise ALoRAError(
                f"the gradient of {broken} is not finite after {self.steps} recorded steps: lower the learning rate, or "
                "look for bad data; go on from the last checkpoint"
            )
        for weight in self.weights:
            gradient_a, gradient_b = gradients[weight.name]
            self._before[weight.name] = _Before(
                a=weight.a.to(weight.dtype, copy=True),
                b=weight.b.to(weight.dtype, copy=True),
                gradient_a=gradient_a,
                gradient_b=gradient_b,
                learning_rate=_learning_rate(weight, learning_rates) if self._true_gradients is None else 0.0,
            )

    def after_step(self, *, skipped: bool = False) -> None:
        """Take in the step that has just been made; `skipped` says that the optimizer did not move."""
        before, self._before = self._before, {}
        if skipped or not before:
            self.skipped_steps += 1
            if self._true_gradients is not None:
                self._true_gradients.reset()
            return
        steps = {weight.name: self._factor_step(weight, before[weight.name]) for weight in self.weights}
        if self._true_gradients is not None:
            self._fold_exactly(self._true_gradients, steps)
        else:
            self._waiting.append(steps)
            if len(self._waiting) >= self.fold_every:
                self._fold_waiting()
        self.steps += 1

    def _factor_step(self, weight: AdaptedWeight, before: _Before) -> FactorStep:
        return FactorStep(
            a=before.a,
            b=before.b,
            gradient_a=before.gradient_a,
            gradient_b=before.gradient_b,
            a_after=weight.a.to(weight.dtype, copy=True),
            b_after=weight.b.to(weight.dtype, copy=True),
            scaling=weight.scaling,
            learning_rate=before.learning_rate,
        )

    def _fold_exactly(self, true_gradients: TrueGradients, steps: Mapping[str, FactorStep]) -> None:
        for name, gradient in true_gradients.take(self._scale).items():
            self._integral.fold_dense(name, gradient, estimators.step_movement(steps[name]))
        true_gradients.reset()

    def _fold_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            estimate = _THIN[self.estimator]
            for weight in self.weights:
                self._integral.fold(weight.name, [estimate(steps[weight.name]) for steps in waiting])

    def finish(self) -> dict[str, torch.Tensor]:
        """Omega of the task by weight name, (out_features, in_features), in host memory; the recorder is used up.

        Raises:
            ALoRAError: no step was recorded, or the integral is not finite.
        """
        if self.steps == 0:
            raise ALoRAError(
                "no optimizer step was recorded: train for at least one step before reading the importance"
            )
        self._fold_waiting()
        integral = self._integral.tensors()
        omega = {}
        for weight in self.weights:
            w = integral.pop(weight.name)
            a, b = self._start[weight.name]
            total = estimators.movement_factors(
                a, b, weight.a.to(weight.dtype), weight.b.to(weight.dtype), weight.scaling
            )
            # A copy off the device or out of the mapped file; host memory is used as it is.
            omega[weight.name] = consolidate(w, total.to(w.device), self.xi).cpu()
            if self._integral.on_disk:
                omega[weight.name] = omega[weight.name].clone()
            if not bool(torch.isfinite(torch.linalg.vector_norm(omega[weight.name]))):
                raise ALoRAError(
                    f"the importance of {weight.name} is not finite: training diverged; lower the learning rate"
                )
        self.close()
        return omega

    def close(self) -> None:
        """Take the hooks off the model and give up w."""
        if self._true_gradients is not None:
            self._true_gradients.close()
        self._integral.close()

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Everything a resumed recording needs: tensors, and counters as strings (a safetensors file's two parts)."""
        self._fold_waiting()
        tensors: dict[str, torch.Tensor] = {}
        for name, w in self._integral.tensors().items():
            a, b = self._start[name]
            tensors |= {f"{name}.w": w, f"{name}.start_a": a, f"{name}.start_b": b}
        counters = {"steps": self.steps, "skipped_steps": self.skipped_steps, "tokens": self.tokens}
        return tensors, {"estimator": self.estimator, **{key: str(value) for key, value in counters.items()}}

    def load_state_dict(
        self, names: Collection[str], tensor: Callable[[str], torch.Tensor], counters: Mapping[str, str]
    ) -> None:
        """Go on from `state_dict`'s result.

        Args:
            names: of the tensors that there are.
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
        integral = self._integral.tensors()
        for weight in self.weights:
            kept = dict(
                zip(("w", "start_a", "start_b"), (integral[weight.name], *self._start[weight.name]), strict=True)
            )
            for key, own in kept.items():
                name = f"{weight.name}.{key}"
                saved = tensor(name) if name in names else None
                if saved is None or saved.shape != own.shape:
                    raise ALoRAError(f"the checkpoint holds no recording of {weight.name} {weight.shape}: start again")
                own.copy_(saved)
        self.steps, self.skipped_steps, self.tokens = (
            int(counters[key]) for key in ("steps", "skipped_steps", "tokens")
        )


def _first_not_finite(gradients: Gradients) -> str | None:
    """The first weight with a gradient that is not finite; one wait for the device however many weights there are."""
    flat = [g for pair in gradients.values() for g in pair]
    if bool(torch.isfinite(torch.stack(torch._foreach_norm(flat))).all()):
        return None
    return next(
        (name for name, pair in gradients.items() if not all(bool(torch.isfinite(g).all()) for g in pair)), None
    )


def _learning_rate(weight: AdaptedWeight, learning_rates: Mapping[int, float]) -> float:
    rates = {learning_rates[id(p)] for p in (weight.parameter_a, weight.parameter_b) if id(p) in learning_rates}
    if len(rates) > 1:
        raise ALoRAError(
            f"A and B of {weight.name} have different learning rates ({', '.join(map(str, sorted(rates)))}), and the "
            "paper's equations know only one: put both into one parameter group, or use record='exact'"
        )
    if not rates:
        raise ALoRAError(
            f"the optimizer does not hold the adapter of {weight.name}: build it from the model's trainable parameters"
        )
    return rates.pop()
