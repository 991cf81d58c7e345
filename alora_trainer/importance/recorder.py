"""Stage A: watch an ordinary LoRA training and integrate how much every element of the adapted weights mattered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.errors import ALoRAError
from alora_trainer.importance import estimators
from alora_trainer.importance.fold import consolidate, fold_steps

_ESTIMATORS: dict[str, Callable[[estimators.FactorStep], estimators.StepFactors]] = {
    "paper": estimators.paper,
    "path": estimators.path,
}

Gradients = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class _Pending:
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
        estimator: "path" or "paper".
        xi: damping of eq. 15.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], estimator: str, xi: float) -> None:
        self.weights = list(weights)
        self.estimator = estimator
        self.xi = xi
        self.steps = 0
        self.skipped_steps = 0
        self.tokens = 0
        self._pending: dict[str, _Pending] = {}
        self._start = {w.name: (w.a.to(w.dtype, copy=True), w.b.to(w.dtype, copy=True)) for w in self.weights}
        self._w = {w.name: torch.zeros(w.shape, dtype=w.dtype, device=w.device) for w in self.weights}

    def before_step(
        self, gradients: Gradients, learning_rates: Mapping[int, float], *, overflow_expected: bool
    ) -> None:
        """Keep what the step starts from.

        Args:
            gradients: by weight name, the data loss's gradients of A (r, n) and B (m, r): unclipped, unscaled.
            learning_rates: the optimizer's learning rates by ``id(parameter)``.
            overflow_expected: whether infinite gradients are the ordinary business of an fp16 scaler.

        Raises:
            ALoRAError: a gradient is not finite though no scaler is at work; A and B learn at different rates.
        """
        self._pending = {}
        broken = _first_not_finite(gradients)
        if broken is not None:
            if overflow_expected:
                return
            raise ALoRAError(
                f"the gradient of {broken} is not finite after {self.steps} recorded steps: lower the learning rate, or "
                "look for bad data; go on from the last checkpoint"
            )
        for weight in self.weights:
            gradient_a, gradient_b = gradients[weight.name]
            self._pending[weight.name] = _Pending(
                a=weight.a.to(weight.dtype, copy=True),
                b=weight.b.to(weight.dtype, copy=True),
                gradient_a=gradient_a,
                gradient_b=gradient_b,
                learning_rate=_learning_rate(weight, learning_rates),
            )

    def after_step(self, *, skipped: bool = False) -> None:
        """Fold the step that has just been made into w; `skipped` says that the optimizer did not move."""
        pending, self._pending = self._pending, {}
        if skipped or not pending:
            self.skipped_steps += 1
            return
        for weight in self.weights:
            before = pending[weight.name]
            step = estimators.FactorStep(
                a=before.a,
                b=before.b,
                gradient_a=before.gradient_a,
                gradient_b=before.gradient_b,
                a_after=weight.a.to(weight.dtype),
                b_after=weight.b.to(weight.dtype),
                scaling=weight.scaling,
                learning_rate=before.learning_rate,
            )
            fold_steps(self._w[weight.name], [_ESTIMATORS[self.estimator](step)])
        self.steps += 1

    def finish(self) -> dict[str, torch.Tensor]:
        """Omega of the task by weight name, (out_features, in_features); the recorder is used up.

        Raises:
            ALoRAError: no step was recorded, or the integral is not finite.
        """
        if self.steps == 0:
            raise ALoRAError(
                "no optimizer step was recorded: train for at least one step before reading the importance"
            )
        omega = {}
        for weight in self.weights:
            w = self._w.pop(weight.name)
            a, b = self._start[weight.name]
            total = estimators.movement_factors(
                a, b, weight.a.to(weight.dtype), weight.b.to(weight.dtype), weight.scaling
            )
            omega[weight.name] = consolidate(w, total, self.xi)
            if not torch.isfinite(omega[weight.name]).all():
                raise ALoRAError(
                    f"the importance of {weight.name} is not finite: training diverged; lower the learning rate"
                )
        return omega

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Everything a resumed recording needs: tensors, and counters as strings (a safetensors file's two parts)."""
        tensors: dict[str, torch.Tensor] = {}
        for name, w in self._w.items():
            a, b = self._start[name]
            tensors |= {f"{name}.w": w, f"{name}.start_a": a, f"{name}.start_b": b}
        counters = {"steps": self.steps, "skipped_steps": self.skipped_steps, "tokens": self.tokens}
        return tensors, {"estimator": self.estimator, **{key: str(value) for key, value in counters.items()}}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], counters: Mapping[str, str]) -> None:
        """Go on from `state_dict`'s result.

        Raises:
            ALoRAError: the state belongs to another estimator or to other weights.
        """
        if counters["estimator"] != self.estimator:
            raise ALoRAError(
                f"the checkpoint was recorded with record={counters['estimator']!r}, not {self.estimator!r}: "
                "resume with the same setting, or start again"
            )
        for weight in self.weights:
            w = tensors.get(f"{weight.name}.w")
            if w is None or tuple(w.shape) != weight.shape:
                raise ALoRAError(f"the checkpoint holds no recording of {weight.name} {weight.shape}: start again")
            self._w[weight.name].copy_(w)
            for kept, key in zip(self._start[weight.name], ("start_a", "start_b"), strict=True):
                kept.copy_(tensors[f"{weight.name}.{key}"])
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
            f"A and B of {weight.name} have different learning rates ({', '.join(map(str, sorted(rates)))}), and the paper's "
            "equations know only one: put both into the same parameter group"
        )
    if not rates:
        raise ALoRAError(
            f"the optimizer does not hold the adapter of {weight.name}: build it from the model's trainable parameters"
        )
    return rates.pop()
