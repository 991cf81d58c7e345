"""ASFT: tokens weighted by the model's own probability of them, and held to the base model (docs/methods/asft.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.base_kl import IGNORED_LABEL, BaseKLTrainer
from alora_trainer.experiment.methods.method import Method


@dataclass(frozen=True)
class ASFTOptions:
    """Of `asft`.

    Attributes:
        kl: what the divergence from the base model is multiplied by; 0 is DFT, the weighting alone.

    Raises:
        ALoRAError: it is negative.
    """

    kl: float = 0.1

    def __post_init__(self) -> None:
        if self.kl < 0:
            raise ALoRAError(f"kl={self.kl!r} must not be negative")


def weighted_cross_entropy(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """``sum_t sg(p_t) * -log p_t`` over the predicted tokens, by their number: p_t is what the model gives to token t.

    Args:
        outputs: of the model, with ``logits`` (B, T, V).
        labels: (B, T), -100 where nothing is predicted.
        num_items_in_batch: the number of predicted tokens of the whole optimizer step; None for this batch's own.
    """
    targets = labels[:, 1:].to(outputs["logits"].device)
    losses = functional.cross_entropy(
        outputs["logits"][:, :-1].flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
    )
    # A token that is left out has a loss of zero.
    total = (losses * (-losses.detach()).exp()).sum()
    count = (targets != IGNORED_LABEL).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count


class ASFTTrainer(BaseKLTrainer):
    """``L = weighted_cross_entropy + kl * KL(p_base || p_model)``, both over the answers' tokens."""

    def __init__(self, *args: Any, options: ASFTOptions, **kwargs: Any) -> None:
        super().__init__(*args, weight=options.kl, compute_loss_func=weighted_cross_entropy, **kwargs)

    def compared(self, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return labels != IGNORED_LABEL


@dataclass(frozen=True)
class ASFT(Method):
    """Trains with `ASFTTrainer`."""

    options_class = ASFTOptions
    compares_with_base = True
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: ASFTOptions, general: Any = None, **kwargs: Any) -> Any:
        return ASFTTrainer(**kwargs, options=options)


ASFT_METHOD = ASFT(
    "asft",
    "LoRA on the domain, tokens weighted by their own probability, with KL to the base model",
    starts_from="fresh",
)
