"""CLoRA's regulariser: the movement is pushed out of a random subspace on both sides (docs/methods/clora.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.trained_weight import TrainedWeight


@dataclass(frozen=True)
class CLoRAOptions:
    """Of `clora`.

    Attributes:
        strength: lambda, what the term is multiplied by.
        share: of each side's directions that the movement is pushed out of.

    Raises:
        ALoRAError: a number is out of range.
    """

    strength: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ALoRAError(f"strength={self.strength!r} must not be negative")
        if not 0 < self.share <= 1:
            raise ALoRAError(f"share={self.share!r} must lie between 0 and 1")


class RandomSubspace(Part):
    """Adds ``lambda * sum (||A P||**2 + ||B' Q||**2)`` to the loss of an optimizer step, P and Q fixed for each weight.

    Args:
        options: how strong, and how large P and Q are.
    """

    def __init__(self, options: CLoRAOptions) -> None:
        self._options = options
        self._weights: list[tuple[AdaptedWeight, torch.Tensor, torch.Tensor]] = []

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        # Drawn anew at every beginning, from the same seed: a resumed training has the same ones.
        generator = torch.Generator().manual_seed(trainer.args.seed)
        self._weights = []
        for weight in adapted_weights(trainer.accelerator.unwrap_model(trainer.model)):
            rows, columns = weight.shape
            p, q = (
                orthonormal(size, self._options.share, generator).to(weight.device, weight.dtype)
                for size in (columns, rows)
            )
            self._weights.append((weight, p, q))

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        terms = []
        for weight, p, q in self._weights:
            a, b = weight.of_a(weight.parameter_a), weight.of_b(weight.parameter_b)
            terms.append((a.to(p.dtype) @ p).square().sum() + (b.T.to(q.dtype) @ q).square().sum())
        return (self._options.strength * torch.stack([term.to(device) for term in terms]).sum()).to(dtype)


def orthonormal(size: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """A random (size, k) with orthonormal columns in float64, k = `share` of `size` and at least one."""
    columns = max(1, round(share * size))
    return torch.linalg.qr(torch.randn(size, columns, generator=generator, dtype=torch.float64)).Q


@dataclass(frozen=True)
class CLoRA(Method):
    """Trains a plain adapter with `RandomSubspace`."""

    options_class = CLoRAOptions
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: CLoRAOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[RandomSubspace(options)])


CLORA = CLoRA("clora", "CLoRA: LoRA pushed out of a random subspace by its loss", starts_from="fresh")
