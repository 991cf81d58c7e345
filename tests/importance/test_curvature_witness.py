"""Curvature against curvlinops (pip install alora-trainer[witness]), which others wrote and which knows nothing of adapters.

What both do to movements of the weights is compared, and so no convention of either one's inside. curvlinops sums over the
loss's terms where ours is the mean over predictions, and it keeps to tensors: a model from token ids to logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.weights.adapted import adapted_weights
from tests.tiny_training import tiny_llama

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed: pip install .[witness]")

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100


class Logits(nn.Module):
    """The base model as curvlinops wants it: from token ids (B, T) to logits (B, V, T), or (B, V) of one position alone."""

    def __init__(self, base: Any, position: int | None) -> None:
        super().__init__()
        self.base, self.position = base, position

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.base(input_ids=ids).logits
        return logits.transpose(1, 2) if self.position is None else logits[:, self.position]


def batches(seed: int = 0) -> list[torch.Tensor]:
    ids = torch.randint(2, 40, (6, 7), generator=torch.Generator().manual_seed(seed))
    return [ids[:4], ids[4:]]


def compare(operator: Callable[..., Any], kind: str, position: int | None, lora_model: Callable[..., Any]) -> None:
    """Both curvatures, times one and the same random movement of every adapted weight."""
    base = tiny_llama(attn_implementation="eager").double().eval()
    model = lora_model(dtype=torch.float64, target_modules=TARGETS)
    weights = adapted_weights(model)
    theirs, ours, predictions = [], [], 0
    for ids in batches():
        labels = ids.clone()
        if position is not None:
            labels[:] = IGNORED
            labels[:, position + 1] = ids[:, position + 1]
        ours.append({"input_ids": ids, "labels": labels})
        following = torch.full_like(ids, IGNORED)
        following[:, :-1] = ids[:, 1:]
        theirs.append((ids, following if position is None else following[:, position]))
        predictions += int((labels[:, 1:] != IGNORED).sum())
    parameters = [base.get_submodule(weight.name).weight for weight in weights]
    witness = operator(
        Logits(base, position),
        nn.CrossEntropyLoss(reduction="sum", ignore_index=IGNORED),
        parameters,
        theirs,
        fisher_type="empirical",
        kfac_approx="expand",
        check_deterministic=False,
    )
    generator = torch.Generator().manual_seed(1)
    movements = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    found = witness @ movements
    estimate = estimate_curvature(model, ours, kind, labels="text")
    assert estimate.tokens == predictions
    for weight, movement, product in zip(weights, movements, found, strict=True):
        mine = estimate.importance[weight.name].apply(movement)
        torch.testing.assert_close(
            mine, product / predictions, rtol=1e-4, atol=1e-5 * float(mine.abs().max()), msg=weight.name
        )


def test_kronecker_factors_are_those_of_kfac_expand(lora_model: Callable[..., Any]) -> None:
    compare(curvlinops.KFACLinearOperator, "kronecker", None, lora_model)


def test_ekfac_is_the_eigenvalue_corrected_kfac(lora_model: Callable[..., Any]) -> None:
    """It knows one prediction a sequence: that of the last token."""
    compare(curvlinops.EKFACLinearOperator, "ekfac", 5, lora_model)
