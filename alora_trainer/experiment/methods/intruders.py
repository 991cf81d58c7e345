"""Intruder dimensions taken back from a finished adapter, as PEFT's post-processing does (docs/methods/reduce_intruders.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.starts import base_matrix, linear_weights, set_factors


@dataclass(frozen=True)
class IntruderOptions:
    """Of `reduce_intruders`.

    Attributes:
        top: how many of the tuned weight's leading singular directions are looked at.
        threshold: a direction is an intruder if its cosine with every singular direction of the base weight is less.
        kept: what is left of an intruder; 1 changes nothing, 0 takes all of it out.

    Raises:
        ALoRAError: a number is out of range.
    """

    top: int = 10
    threshold: float = 0.5
    kept: float = 0.75

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ALoRAError(f"top={self.top!r} must be at least 1")
        for name in ("threshold", "kept"):
            if not 0 <= getattr(self, name) <= 1:
                raise ALoRAError(f"{name}={getattr(self, name)!r} must lie between 0 and 1")


def without_intruders(
    weight: torch.Tensor, movement: torch.Tensor, rank: int, options: IntruderOptions
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factors B (m, r) and A (r, n) of the movement with its intruders reduced; None if there are none.

    Of ``W + D = sum_i s_i u_i v_i'``, ``(kept - 1) s_i u_i v_i'`` is added to D for every intruder i; what comes of it, whose
    rank is higher, is cut to `rank`, its singular values shared evenly.

    Args:
        weight: W, (m, n).
        movement: D, (m, n).
        rank: r.
        options: what is an intruder, and how much is left of it.
    """
    tuned = torch.linalg.svd(weight + movement, full_matrices=False)
    base = torch.linalg.svd(weight, full_matrices=False)
    nearest = (tuned.U[:, : options.top].T @ base.U).abs().amax(dim=1)
    found = torch.nonzero(nearest < options.threshold).flatten()
    if not len(found):
        return None
    intruders = tuned.U[:, found] * tuned.S[found] @ tuned.Vh[found]
    reduced = torch.linalg.svd(movement + (options.kept - 1) * intruders, full_matrices=False)
    roots = reduced.S[:rank].sqrt()
    return reduced.U[:, :rank] * roots, roots[:, None] * reduced.Vh[:rank]


@dataclass(frozen=True)
class ReduceIntruders(Method):
    """Trains plain LoRA, and reduces its intruder dimensions in the end."""

    options_class = IntruderOptions
    needs_plain_base = True
    is_plain = False
    finishes = True

    def finish(
        self, trained: Path, target: Path, options: IntruderOptions, load_base: Callable[[], PreTrainedModel]
    ) -> None:
        model: Any = PeftModel.from_pretrained(load_base(), str(trained), is_trainable=True)
        with torch.no_grad():
            for weight in linear_weights(model):
                matrix, a, b = base_matrix(weight), weight.a.double(), weight.b.double()
                movement = weight.scaling * b.to(matrix.device) @ a.to(matrix.device)
                reduced = without_intruders(matrix, movement, weight.rank, options)
                if reduced is not None:
                    set_factors(weight, reduced[1], reduced[0] / weight.scaling)
        partial = target.with_name(f"{target.name}.unfinished")
        model.save_pretrained(str(partial))
        partial.rename(target)


REDUCE_INTRUDERS = ReduceIntruders(
    "reduce_intruders", "LoRA on the domain, its intruder dimensions reduced in the end (PEFT)", starts_from="fresh"
)
