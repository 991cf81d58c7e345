"""OPLoRA: the movement keeps out of each weight's leading singular directions, on both sides (docs/methods/oplora.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.starts import base_matrix, linear_weights
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.trained_weight import TrainedWeight


@dataclass(frozen=True)
class OPLoRAOptions:
    """Of `oplora`.

    Attributes:
        k: how many leading singular directions of each weight are kept as they are.

    Raises:
        ALoRAError: there are none.
    """

    k: int = 16

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ALoRAError(f"k={self.k!r} must be at least 1")


class Projection(Part):
    """Keeps ``B = (1 - U U') B`` and ``A = A (1 - V V')`` throughout, U and V a weight's k leading singular vectors.

    The gradients are projected as they come, before they are clipped or averaged, and the factors after every step. With any
    optimizer whose weight decay is plain this is the training of ``(1 - U U') B A (1 - V V')``, but for rounding.

    Args:
        model: with its adapter, whose factors are projected at once.
        k: how many directions.

    Raises:
        ALoRAError: a weight is not a linear layer's, or has not as many directions as are kept and trained together.
    """

    def __init__(self, model: Any, k: int) -> None:
        self._kept: list[tuple[torch.nn.Parameter, Callable[[torch.Tensor], torch.Tensor]]] = []
        self._handles: list[Any] = []
        for weight in linear_weights(model):
            smaller = min(weight.shape)
            if k + weight.rank > smaller:
                raise ALoRAError(
                    f"{weight.name} has {smaller} singular directions, and oplora keeps {k} and trains {weight.rank}: set "
                    f"method_options.oplora.k to at most {smaller - weight.rank}, or lora.r lower"
                )
            left, _, right = torch.linalg.svd(base_matrix(weight), full_matrices=False)
            self._kept.append((weight.parameter_b, _without_columns(left[:, :k].to(weight.dtype))))
            self._kept.append((weight.parameter_a, _without_rows(right[:k].to(weight.dtype))))
        self._project()

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        self._handles = [parameter.register_hook(without) for parameter, without in self._kept]

    def after_step(self, *, skipped: bool) -> None:
        self._project()

    def end(self) -> dict[str, float]:
        for handle in self._handles:
            handle.remove()
        return {}

    @torch.no_grad()
    def _project(self) -> None:
        for parameter, without in self._kept:
            parameter.copy_(without(parameter))


def _without_columns(kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """``x -> (1 - U U') x`` for `kept` U (m, k)."""

    def without(x: torch.Tensor) -> torch.Tensor:
        u = kept.to(x.device)
        return x - (u @ (u.T @ x.to(u.dtype))).to(x.dtype)

    return without


def _without_rows(kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """``x -> x (1 - V V')`` for `kept` V' (k, n)."""

    def without(x: torch.Tensor) -> torch.Tensor:
        v = kept.to(x.device)
        return x - ((x.to(v.dtype) @ v.T) @ v).to(x.dtype)

    return without


@dataclass(frozen=True)
class OPLoRA(Method):
    """Trains a plain adapter with `Projection`."""

    options_class = OPLoRAOptions
    needs_plain_base = True
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: OPLoRAOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[Projection(kwargs["model"], options.k)])


OPLORA = OPLoRA(
    "oplora", "OPLoRA: LoRA that keeps out of the weights' leading singular directions", starts_from="fresh"
)
