"""Held to the base model's predictions on the domain's own items, prompts or answers (docs/methods/kl_domain.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.extra_loss import ExtraLossTrainer
from alora_trainer.experiment.methods.kl_anchor import check_off_is_base, distillation_loss, without_adapter
from alora_trainer.experiment.methods.method import Method

IGNORED_LABEL = -100


@dataclass(frozen=True)
class KLDomainOptions:
    """Of `kl_domain`.

    Attributes:
        weight: what the divergence is multiplied by.
        temperature: of both distributions; the divergence is multiplied by its square.
        answers: compare the predictions of the answer's tokens, too; without it, those are masked out.

    Raises:
        ALoRAError: a number is out of range.
    """

    weight: float = 1.0
    temperature: float = 1.0
    answers: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ALoRAError(f"weight={self.weight!r} must not be negative")
        if self.temperature <= 0:
            raise ALoRAError(f"temperature={self.temperature!r} must be positive")


class BaseKLTrainer(ExtraLossTrainer):
    """``L = L_domain + weight * T**2 KL(p_base || p_model)`` on the very batches of the domain.

    The base is this model without its adapter, so that a step has one forward pass more than plain training.

    Args:
        weight: what the divergence is multiplied by; 0 leaves it out.
        temperature: T.

    Raises:
        ALoRAError: without its adapter it is not the base model.
    """

    extra_name = "base_kl"

    def __init__(self, *args: Any, weight: float, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._weight = weight
        self._temperature = temperature
        check_off_is_base(self.model)

    def compared(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Which tokens' predictions are compared (B, T, bool).

        Args:
            labels: (B, T), -100 for the prompt's tokens and for padding.
            mask: (B, T, bool), False for padding.
        """
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The domain's loss and the divergence, each a mean over its own tokens."""
        ids, labels = inputs["input_ids"], inputs["labels"]
        given = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if model.training and self._weight > 0:
            mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
            predicted = torch.where(self.compared(labels, mask), ids, IGNORED_LABEL)[:, 1:]
            if bool((predicted != IGNORED_LABEL).any()):
                with without_adapter(self.accelerator.unwrap_model(model)):
                    teacher = model(**given).logits[:, :-1]
                divergence = distillation_loss(outputs["logits"][:, :-1], teacher, predicted, self._temperature)
                loss = self.added(loss, divergence, self._weight, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class KLDomainTrainer(BaseKLTrainer):
    """Compares the predictions of the prompts' tokens, and those of the answers' if `answers`."""

    def __init__(self, *args: Any, options: KLDomainOptions, **kwargs: Any) -> None:
        super().__init__(*args, weight=options.weight, temperature=options.temperature, **kwargs)
        self._answers = options.answers
        # The collator pads with the same label, so that the rows themselves must say whether there are prompts.
        if not options.answers and IGNORED_LABEL not in self.train_dataset[0]["labels"]:
            raise ALoRAError(
                "kl_domain compares predictions of the prompts, and here they are trained on: set domain.loss_on to answer, "
                "or its own option answers to true"
            )

    def compared(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask if self._answers else mask & (labels == IGNORED_LABEL)


@dataclass(frozen=True)
class KLDomain(Method):
    """Trains with `KLDomainTrainer`."""

    options_class = KLDomainOptions
    compares_with_base = True
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: KLDomainOptions, general: Any = None, **kwargs: Any) -> Any:
        return KLDomainTrainer(**kwargs, options=options)


KL_DOMAIN = KLDomain(
    "kl_domain", "LoRA on the domain, distilled from the base model on the domain's own prompts", starts_from="fresh"
)
