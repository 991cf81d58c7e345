"""Every setting that is ours, in one validated dataclass; all the others are `transformers.TrainingArguments`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from alora_trainer.errors import ALoRAError

ESTIMATORS = ("path", "paper", "exact")
LOCATIONS = ("device", "cpu", "disk")
LAYER_WEIGHTS = ("l2", "none")
BACKENDS = ("factored", "triton", "blocked", "dense")


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
        "Record importance while training: 'path' takes the movement that the optimizer really made, 'paper' takes the "
        "learning rate times the gradient (eq. 13-14), 'exact' the true gradient of the weights at the cost of one more "
        "matrix of each weight's size. None records nothing.",
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
    lam: float = _option(
        0.3,
        "Strength lambda of the penalty (eq. 18), used where an importance map is given; 0 is plain LoRA, bit for bit.",
    )
    layer_weights: str = _option(
        "l2", "Weight w_l of each layer's penalty: 'l2' is the norm of its importance (eq. 17), 'none' is 1 for all."
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
        if self.record is not None and self.record not in ESTIMATORS:
            raise ALoRAError(
                f"record={self.record!r} is unknown: use one of {', '.join(map(repr, ESTIMATORS))}, or None"
            )
        if self.layer_weights not in LAYER_WEIGHTS:
            raise ALoRAError(
                f"layer_weights={self.layer_weights!r} is unknown: use one of {', '.join(map(repr, LAYER_WEIGHTS))}"
            )
        if self.backend is not None and self.backend not in BACKENDS:
            raise ALoRAError(
                f"backend={self.backend!r} is unknown: use one of {', '.join(map(repr, BACKENDS))}, or None"
            )
        if self.omega_device not in LOCATIONS:
            raise ALoRAError(
                f"omega_device={self.omega_device!r} is unknown: use one of {', '.join(map(repr, LOCATIONS))}"
            )
        for name in ("fold_every", "record_tokens"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and not (name == "record_tokens" and value is None):
                raise ALoRAError(f"{name}={value!r} must be a whole number of at least 1")
        if not (_is_number(self.xi) and math.isfinite(self.xi) and self.xi > 0):
            raise ALoRAError(f"xi={self.xi!r} must be a positive number (the paper's order of magnitude is 1e-3)")
        if not (_is_number(self.lam) and math.isfinite(self.lam) and self.lam >= 0):
            raise ALoRAError(f"lam={self.lam!r} must be zero or a positive number")
        for name in ("normalize", "allow_other_revision"):
            if not isinstance(getattr(self, name), bool):
                raise ALoRAError(f"{name}={getattr(self, name)!r} must be true or false")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
