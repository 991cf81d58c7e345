"""Learning without Forgetting on general text: the model's predictions stay near those of the base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.general_text import GeneralTextMethod, GeneralTextOptions, GeneralTextTrainer
from alora_trainer.weights.adapter_settings import off_is_not_base

_IGNORED_LABEL = -100


@dataclass(frozen=True)
class KLAnchorOptions(GeneralTextOptions):
    """Of `kl_anchor`.

    Attributes:
        temperature: of both distributions; the loss is multiplied by its square.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ALoRAError(f"temperature={self.temperature!r} must be positive")


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """``T**2 KL(teacher_T || student_T)`` in nats, the mean over the tokens that are predicted.

    Args:
        student, teacher: logits (B, T, V) that predict `labels`.
        labels: (B, T), -100 where nothing is predicted.
        temperature: T, which both logits are divided by.
    """
    predicted = labels != _IGNORED_LABEL
    log_student = (student[predicted].float() / temperature).log_softmax(-1)
    log_teacher = (teacher[predicted].float() / temperature).log_softmax(-1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean()


class KLAnchorTrainer(GeneralTextTrainer):
    """``L = L_domain + weight * T**2 KL(p_base || p_model)`` on general text; the base is this model without its adapter.

    Raises:
        ALoRAError: without its adapter it is not the base model.
    """

    options: KLAnchorOptions
    passes = 4 / 3  # the base model's forward pass is half a backward pass

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_off_is_base(self.model)

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")[:, 1:]
        with without_adapter(self.accelerator.unwrap_model(model)):
            teacher = model(**batch).logits[:, :-1]
        student = model(**batch).logits[:, :-1]
        return distillation_loss(student, teacher, labels, self.options.temperature)


def check_off_is_base(model: Any) -> None:
    """Raises ALoRAError if a model is not the base model without its adapter."""
    reason = off_is_not_base(model)
    if reason is not None:
        raise ALoRAError(f"without its adapter this model is not the base model ({reason}): use an adapter without it")


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model: no adapter, no dropout, no gradients; afterwards everything is as it was."""
    with evaluation_mode(model), model.disable_adapter(), torch.no_grad():
        yield


@dataclass(frozen=True)
class KLAnchor(GeneralTextMethod):
    """Trains with `KLAnchorTrainer`."""

    options_class = KLAnchorOptions
    compares_with_base = True
    trainer_class = KLAnchorTrainer


KL_ANCHOR = KLAnchor(
    "kl_anchor", "LoRA on the domain, distilled from the base model on general text", starts_from="fresh"
)
