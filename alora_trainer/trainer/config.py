"""Every setting that is ours, in one validated dataclass; all the others are `transformers.TrainingArguments`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.estimators import ESTIMATORS
from alora_trainer.importance.recording.integral import LOCATIONS
from alora_trainer.penalty.backends.choice import BACKENDS

LAYER_WEIGHTS = ("l2", "none")
APPLICATIONS = ("coupled", "decoupled")
SCHEDULES = ("constant", "linear", "cosine")
STARTS = ("continue", "fresh")
FRESH_BASES = ("merged", "bare")
ANCHORS = ("reference", "base")
MISSING = ("error", "uniform", "free")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ALoRAConfig:
    """Settings of recording and protecting (arXiv 2501.13669; equation numbers are the paper's).

    Raises:
        ALoRAError: a value is out of range; the message names the field and what it accepts.
    """

    record: str | None = _option(
        None,
        "Record importance while training: 'paper' takes learning rate times gradient for the movement (eq. 13-14), 'path' the "
        "movement that the optimizer really made, 'projected' also an estimate of the weights' true gradient, and 'exact' "
        "that gradient itself, at the cost of one more matrix of each weight's size. None records nothing.",
    )
    full_parameters: bool = _option(
        False,
        "Record and hold the model's own weights, for a training without LoRA (Synaptic Intelligence and EWC as published). "
        "Takes as much memory again as the weights, once while recording and once while protecting.",
    )
    xi: float = _option(
        1e-3, "Damping added to the squared total movement in eq. 15; larger values calm weights that hardly moved."
    )
    omega_device: str = _option(
        "device",
        "Where the recording keeps its running sums: 'device' beside the weights, 'cpu' in host memory, 'disk' in "
        "memory-mapped files under the output folder.",
    )
    fold_every: int = _option(
        1, "Keep the factors of this many steps and fold them into the running sums at once (not for 'exact')."
    )
    record_tokens: int | None = _option(
        None, "Stop recording after this many tokens, whatever the number of steps or epochs; None sets no such limit."
    )
    save_storage: str | None = _option(
        "log8",
        "Format that a recipe saves its recorded map in: 'log8' (one byte an element, with no loss that showed), 'bfloat16' "
        "(two), 'float32' (four), or 'factored' (a thousandth). None saves it as exactly as it was recorded.",
    )
    storage: str | None = _option(
        None, "Format that importance is held in while it protects, of the same names. None keeps the map's own."
    )
    storage_device: str = _option(
        "device",
        "Where importance is held while it protects: 'device' beside the weights, 'cpu' in host memory, from where it is "
        "streamed to the weights' device.",
    )
    lam: float | str | None = _option(
        None,
        "Strength lambda of the penalty (eq. 18), used where an importance map is given; 0 is plain LoRA, bit for bit. 'auto' "
        "sets it from the norms of the two gradients after the first tenth of the training. None is 0.3, or 'auto' where a "
        "budget is given.",
    )
    lam_schedule: str = _option(
        "constant",
        "How lambda changes over the training: 'constant', or from lambda to lam_end_factor times lambda, 'linear' in the "
        "steps or along half a 'cosine'.",
    )
    lam_end_factor: float = _option(
        0.0, "What lambda has been multiplied by at the end of a 'linear' or 'cosine' lam_schedule; above 1 it grows."
    )
    application: str = _option(
        "coupled",
        "'coupled' adds the penalty to the loss (the paper), so that the optimizer rescales its gradient with the data's. "
        "'decoupled' pulls the weights back after the optimizer's step, by learning rate times lambda, as AdamW decays "
        "weights; it is stable for any lambda.",
    )
    budget: float | None = _option(
        None,
        "How much the loss on general text may rise over its value at the start, as a share of it: 0.01 is one percent of the "
        "mean negative log-likelihood. Lambda is steered to keep it; needs a probe_dataset.",
    )
    probe_steps: int = _option(10, "Evaluate the probe_dataset every this many optimizer steps.")
    start: str = _option(
        "continue",
        "Where the protected training starts: 'continue' goes on with the recorded adapter, 'fresh' trains a new one (of any "
        "rank and target modules), and the penalty is on its own movement.",
    )
    fresh_base: str = _option(
        "merged",
        "What a 'fresh' adapter is put on: 'merged' is the base with the recorded adapter merged into it, 'bare' the base "
        "as it was.",
    )
    anchor: str = _option(
        "reference",
        "What the penalty pulls towards: 'reference' is where the training starts (theta*, eq. 16), 'base' the base model's "
        "own weights.",
    )
    missing: str = _option(
        "error",
        "Adapted weights without a recorded importance: 'error' refuses them, 'uniform' gives each of their elements the mean "
        "importance of the recorded ones, 'free' lets them move.",
    )
    layer_weights: str | dict[str, float] = _option(
        "l2",
        "Weight w_l of each layer's penalty: 'l2' is the norm of its importance (eq. 17), 'none' is 1 for all; or a mapping "
        "of names or patterns, as PEFT's rank_pattern has them, to weights (the first that fits counts).",
    )
    normalize: bool = _option(
        True,
        "Divide importance by its mean over all adapted weights and w_l by its mean over layers, so that lambda keeps its "
        "meaning between models. False gives eq. 16-18 to the letter.",
    )
    allow_other_revision: bool = _option(
        False, "Take an importance map that was recorded on another revision of the base model, with a warning."
    )
    backend: str | None = _option(
        None,
        "How the penalty is computed: 'blocked' (any device), 'triton' (CUDA, fused), 'factored' (factored importance), or "
        "'dense' (slow, for comparisons). None takes the fastest that fits.",
    )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and value not in choices:
                or_none = ", or None" if name in _OPTIONAL else ""
                raise ALoRAError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, choices))}{or_none}")
        for name in ("fold_every", "record_tokens", "probe_steps"):
            value = getattr(self, name)
            if not (_is_whole(value) and value >= 1) and not (name in _OPTIONAL and value is None):
                raise ALoRAError(f"{name}={value!r} must be a whole number of at least 1")
        if not (_is_finite(self.xi) and self.xi > 0):
            raise ALoRAError(f"xi={self.xi!r} must be a positive number (the paper's order of magnitude is 1e-3)")
        for name in ("normalize", "full_parameters", "allow_other_revision"):
            if not isinstance(getattr(self, name), bool):
                raise ALoRAError(f"{name}={getattr(self, name)!r} must be true or false")
        self._check_full_parameters()
        self._check_layer_weights()
        self._check_strength()

    def _check_full_parameters(self) -> None:
        if not self.full_parameters:
            return
        for name, works in _WITH_FULL_PARAMETERS.items():
            if getattr(self, name) not in works:
                choices = " or ".join(map(repr, works))
                raise ALoRAError(
                    f"{name}={getattr(self, name)!r} is for LoRA: with full_parameters, {name} must be {choices}"
                )

    def _check_layer_weights(self) -> None:
        given = self.layer_weights
        if not isinstance(given, Mapping):
            if given not in LAYER_WEIGHTS:
                names = ", ".join(map(repr, LAYER_WEIGHTS))
                raise ALoRAError(f"layer_weights={given!r} is unknown: use one of {names}, or map names to weights")
            return
        if not given:
            raise ALoRAError("layer_weights is an empty mapping: give names or patterns with their weights, or 'none'")
        for pattern, weight in given.items():
            if not isinstance(pattern, str) or not (_is_finite(weight) and weight >= 0):
                raise ALoRAError(f"layer_weights: {pattern!r}: {weight!r} must be a name with a weight of 0 or above")

    def _check_strength(self) -> None:
        if self.lam is None:
            self.lam = "auto" if self.budget is not None else _DEFAULT_LAM
        if self.lam != "auto" and not (_is_finite(self.lam) and self.lam >= 0):
            raise ALoRAError(f"lam={self.lam!r} must be zero or a positive number, or 'auto'")
        if not (_is_finite(self.lam_end_factor) and self.lam_end_factor >= 0):
            raise ALoRAError(f"lam_end_factor={self.lam_end_factor!r} must be zero or a positive number")
        if self.budget is None:
            return
        if not (_is_finite(self.budget) and self.budget > 0):
            raise ALoRAError(
                f"budget={self.budget!r} must be a positive number: 0.01 lets general loss rise by 1 percent"
            )
        if self.lam == 0:
            raise ALoRAError(
                "budget steers lambda, which cannot start from lam=0: leave lam out, or give a start value"
            )
        if self.lam_schedule != "constant":
            raise ALoRAError(
                f"budget steers lambda, and would undo lam_schedule={self.lam_schedule!r}: leave one of the two out"
            )


# What only the protected training depends on; all other settings are about recording.
PROTECTING = (
    "storage",
    "storage_device",
    "lam",
    "lam_schedule",
    "lam_end_factor",
    "application",
    "budget",
    "probe_steps",
    "start",
    "fresh_base",
    "anchor",
    "missing",
    "layer_weights",
    "normalize",
    "allow_other_revision",
    "backend",
)
_DEFAULT_LAM = 0.3
_CHOICES = {
    "record": ESTIMATORS,
    "omega_device": LOCATIONS,
    "save_storage": FORMATS,
    "storage": FORMATS,
    "storage_device": ("device", "cpu"),
    "lam_schedule": SCHEDULES,
    "application": APPLICATIONS,
    "start": STARTS,
    "fresh_base": FRESH_BASES,
    "anchor": ANCHORS,
    "missing": MISSING,
    "backend": BACKENDS,
}
# Where the weights are parameters themselves, their true gradient is there: 'projected' and 'path' are the same, and exact.
_WITH_FULL_PARAMETERS = {
    "record": (None, "projected", "path", "paper"),
    "start": ("continue",),
    "anchor": ("reference",),
    "missing": ("error", "free"),
    "backend": (None,),
}
_OPTIONAL = ("record", "save_storage", "storage", "backend", "record_tokens")


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
