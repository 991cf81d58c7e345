"""How far the model's predictions on general text have gone from the base model's."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from alora_trainer.basics.processes import own_share, place, together
from alora_trainer.basics.progress import ShownProgress
from alora_trainer.basics.scores import KLToBase
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapter_settings import off_is_not_base

logger = logging.getLogger(__name__)

Window: TypeAlias = tuple[list[int], list[int]]  # tokens of the context and of the continuation
_Sums: TypeAlias = tuple[float, int, int]


def kl_to_base(model: Any, base: Any | None, windows: Mapping[str, Sequence[Window]], *, batch_size: int) -> KLToBase:
    """Mean Kullback-Leibler divergence KL(base || model) of the next token's distribution, in nats a token.

    At each position that predicts a token of the text it is ``sum_v p_base(v) (ln p_base(v) - ln p_model(v))`` over the whole
    vocabulary; both models see the same windows that perplexity is measured in. Softmax in float32, sums in float64. Counted in
    the same pass: at how many of the positions the most likely token is another than the base model's.

    Args:
        model: the model in question, in evaluation mode.
        base: the base model (`model` itself where that is the base); None takes `model`, a `PeftModel`, with its adapter
            switched off.
        windows: subset -> windows, as `Scorer.windows` cuts them.
        batch_size: windows in one forward pass.

    Returns:
        The means over all subsets, and those of each of ``subsets``.

    Raises:
        ALoRAError: there is no base model: none was passed, and `model` has no adapter, or is not the base without it.
    """
    if base is None:
        check_has_base(model)
    batches = [
        (name, start, rows[start : start + batch_size])
        for name, rows in ((name, sorted(rows, key=lambda w: -len(w[0] + w[1]))) for name, rows in windows.items())
        for start in range(0, len(rows), batch_size)
    ]
    own, found = list(own_share(batches)), {}
    with ShownProgress(
        "divergence from the base model", len(own), logger, unit="batches", quiet=place()[0] != 0
    ) as progress:
        for name, start, rows in own:
            found[name, start] = _batch(model, base, rows)
            progress.advance()
    sums = together(found)
    subsets = {}
    for name in windows:
        subsets[name] = _mean([sums[key] for key in sorted(sums) if key[0] == name])
    return replace(_mean([sums[key] for key in sorted(sums)]), subsets=subsets)


def _mean(sums: Sequence[_Sums]) -> KLToBase:
    tokens = sum(count for _, count, _ in sums)
    changed = sum(changed for _, _, changed in sums)
    return KLToBase(math.fsum(total for total, _, _ in sums) / tokens, tokens, top_changed=changed / tokens)


def _batch(model: Any, base: Any | None, rows: Sequence[Window]) -> _Sums:
    """Sum of the divergences of a batch of windows, the number of positions, and at how many the top guess is another."""
    device = next(model.parameters()).device
    inputs = [(context + continuation)[:-1] for context, continuation in rows]
    width = max(map(len, inputs))
    # Padded on the right, which a causal model does not see.
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids in inputs], device=device)
    counted = torch.zeros(tokens.shape, dtype=torch.bool, device=device)
    for row, (ids, (_, continuation)) in enumerate(zip(inputs, rows, strict=True)):
        counted[row, len(ids) - len(continuation) : len(ids)] = True
    with torch.no_grad():
        ours = torch.log_softmax(model(tokens).logits[counted], dim=-1, dtype=torch.float32)
        with _base_of(model, base) as reference:
            theirs = torch.log_softmax(reference(tokens).logits[counted], dim=-1, dtype=torch.float32)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1, dtype=torch.float64)
    changed = ours.argmax(-1) != theirs.argmax(-1)
    return float(divergence.sum()), int(counted.sum()), int(changed.sum())


@contextmanager
def _base_of(model: Any, base: Any | None) -> Iterator[Any]:
    if base is not None:
        yield base
    else:
        with model.disable_adapter():
            yield model


def check_has_base(model: Any) -> None:
    """Raise ALoRAError unless a model with its adapter switched off is the base model."""
    if not hasattr(model, "disable_adapter"):
        raise ALoRAError(
            "the divergence from the base model needs the base model, which cannot be had from a merged model: pass it, too"
        )
    reason = off_is_not_base(model)
    if reason is not None:
        raise ALoRAError(
            f"without its adapter this model is not the base model ({reason}), which the divergence is from: pass the base "
            "model, too, as base=..."
        )
