"""Which models can be trained and scored: by what a model does with a few tokens, not by its name.

A causal language model here is one that reads token ids alone, has logits for each of them which later ones have no influence
on, and a loss that is the next token's cross-entropy. Encoders read ahead; the decoders of encoder-decoder models learn to
repeat, since their labels are not shifted; both train and score without an error, and mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from alora_trainer.basics.modes import in_mode
from alora_trainer.errors import ALoRAError

_TOKENS, _EARLY = 8, 3
_ADVICE = "choose a causal language model of text, such as a Llama, Qwen, Mistral, Gemma, GPT-2 or OPT"
# What tables of learned (or stored) positions are called: GPT-2's wpe, OPT's embed_positions, BERT's position_embeddings.
_POSITIONS = re.compile(r"^(wpe|pos_encoding|positions_embed|embed_positions|position_embeddings)$")


def check_causal(model: Any, name: str, *, training: bool) -> None:
    """Refuse what is no causal language model; takes a forward and a backward pass over eight tokens.

    Args:
        model: a `PreTrainedModel` or `PeftModel`, on any device; its modes, gradients and the random state are left as they
            were.
        name: what messages call it.
        training: it is to be trained, as `transformers.Trainer` does it: its loss is looked at, too.

    Raises:
        ALoRAError: it does not run on token ids alone, reads ahead, or its loss is not that of the next token.
    """
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    device = next(model.parameters()).device
    ids = torch.arange(2, 2 + _TOKENS, device=device)[None]
    devices = [device] if device.type == "cuda" else []
    with (
        in_mode(model, training=training),
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        _embedded(model) as seen,
    ):
        try:
            output = model(input_ids=ids, labels=ids) if training else model(input_ids=ids)
        except Exception as error:  # models raise what they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ALoRAError(f"{name} ({kind}) does not run on token ids alone ({reason}): {_ADVICE}") from error
        logits = getattr(output, "logits", None)
        if not seen or not torch.is_tensor(logits) or logits.shape[:2] != ids.shape:
            raise ALoRAError(f"{name} ({kind}) has no logits for each of its input tokens: {_ADVICE}")
        influence = torch.autograd.grad(logits[0, :_EARLY].float().sum(), seen, retain_graph=True, allow_unused=True)
        slope = torch.autograd.grad(output.loss, logits, allow_unused=True)[0] if training else None
    if any(bool((grad.reshape(_TOKENS, -1)[_EARLY:] != 0).any()) for grad in influence if grad is not None):
        raise ALoRAError(
            f"{name} ({kind}) reads ahead: a token changes what is predicted from those before it, as in an encoder (BERT, "
            f"RoBERTa, XLNet), which is_decoder: true in its config.json would make a decoder; {_ADVICE}"
        )
    if training and not _is_next_token_loss(slope, logits.detach(), ids):
        raise ALoRAError(
            f"{name} ({kind}) does not learn to predict the next token: its labels are not shifted, as in the decoder of an "
            f"encoder-decoder model (BART, Whisper, Pegasus); {_ADVICE}"
        )


def _is_next_token_loss(slope: torch.Tensor | None, logits: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether `slope` (1, n, v) is the gradient of the next token's mean cross-entropy by the logits."""
    if slope is None:
        return False
    expected = logits[0, :-1].float().softmax(-1)
    expected[torch.arange(_TOKENS - 1), ids[0, 1:]] -= 1
    found = slope[0].float() * (_TOKENS - 1)
    return not bool(found[-1].any()) and torch.allclose(found[:-1], expected, rtol=0.05, atol=0.02)


@contextmanager
def _embedded(model: Any) -> Iterator[list[torch.Tensor]]:
    """What the input embeddings give in forward passes within the block, as beginnings of their graphs."""
    seen: list[torch.Tensor] = []

    def begin(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # some models go on in place, which a leaf does not bear

    handle = model.get_input_embeddings().register_forward_hook(begin)
    try:
        yield seen
    finally:
        handle.remove()


def learned_positions(model: nn.Module) -> int | None:
    """For how many positions a model has embeddings; None for one that reckons them (rotary, ALiBi) or has none."""
    sizes = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.match(path.rsplit(".", 1)[-1]):
            # Some begin behind the padding token's row, others at an offset of their own.
            first = getattr(module, "offset", None) or (0 if module.padding_idx is None else module.padding_idx + 1)
            sizes.append(module.num_embeddings - int(first))
        tables = {**vars(module), **dict(module.named_buffers(recurse=False))}  # CTRL has a plain tensor
        sizes += [len(table) for name, table in tables.items() if _POSITIONS.match(name) and torch.is_tensor(table)]
    return min(sizes, default=None)
