"""Labels drawn from a model's own predictions: what makes Fisher information of squared gradients the true one.

With the text's labels, squared gradients are the *empirical* Fisher information, which is another matrix away from a perfect
model (Kunstner et al. 2019, arXiv 1905.12558); with labels drawn from the predictions their mean is the true one (Martens
2020, arXiv 1412.1193).
"""

from __future__ import annotations

import torch

from alora_trainer.basics.processes import place
from alora_trainer.errors import Diverged

LABELS = ("sampled", "text")
IGNORED_LABEL = -100


def batch_generator(seed: int, number: int, device: torch.device) -> torch.Generator:
    """The source of chance for one batch of this process, whatever was drawn for others: going on draws what would have been.

    Of several processes no two draw alike: each batch has its place in the order "first of every process, second of every
    process, ...". Where one process reads its text in that order, it draws the same labels.

    Args:
        seed: of the estimate.
        number: of the batch in this process, from 1.
        device: where the predictions are.
    """
    rank, count = place()
    return torch.Generator(device).manual_seed(seed * 1_000_003 + (number - 1) * count + rank + 1)


def draw_labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One label (N,) for each prediction (N, V), by its probability.

    Raises:
        Diverged: a prediction is not finite.
    """
    probabilities = wide(logits.detach()).softmax(-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise Diverged("a prediction", None, advice="load the model in another dtype, such as bfloat16 or float32")
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def draw_in_place_of(labels: torch.Tensor, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Labels (B, T) drawn from `logits` (B, T, V) where `labels` has one, and -100 where that has -100."""
    there = labels != IGNORED_LABEL
    return labels.masked_scatter(there, draw_labels(logits[there], generator))


def wide(logits: torch.Tensor) -> torch.Tensor:
    """`logits`, in float32 where they are in less."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
