"""References for curvature: gradients of whole weights by autograd, one sequence and one label at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from alora_trainer.importance.kinds.in_basis import InBasis


class Toy(nn.Module):
    """Tokens, a body and a head: a causal model in so far as curvature needs one."""

    def __init__(self, body: nn.Module, size: int, vocabulary: int, inner: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(vocabulary, size)
        self.body = body
        self.head = nn.Linear(inner or size, vocabulary, bias=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(self.tokens(input_ids))))


def base_weight(model: Any, name: str) -> nn.Parameter:
    """The frozen weight of an adapted layer, as it is stored."""
    weight = model.base_model.model.get_submodule(name).base_layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def text_gradients(model: Any, name: str, data: Sequence[dict[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Of each sequence, the gradient by the stored weight of the summed log-likelihood of the text's labels."""
    weight = base_weight(model, name).requires_grad_(True)
    for batch in data:
        for ids in batch["input_ids"]:
            logits = model(input_ids=ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            yield torch.autograd.grad(loss, weight)[0]
    weight.requires_grad_(False)


def squares_in_basis(stored: InBasis, gradients: Sequence[torch.Tensor], transposed: bool) -> torch.Tensor:
    """The sum of ``(U' M V)**2`` over gradients M as the weight is stored."""
    u, v = stored.output_vectors(torch.float64), stored.input_vectors(torch.float64)
    return torch.stack([(u.T @ (one.T if transposed else one).double() @ v).square() for one in gradients]).sum(0)
