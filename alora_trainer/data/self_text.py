"""General text without a corpus: sampled from the base model itself, and kept as a data set that can be read and reused.

The pretraining data of most open models is closed. What a model says by itself is a sample of what it has learned, and
recording on it measures what that knowledge needs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alora_trainer.basics.progress import ShownProgress
from alora_trainer.data.encoding import encode_bare, text_start
from alora_trainer.errors import ALoRAError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfTextConfig:
    """How text is sampled from the base model.

    Attributes:
        tokens: how many tokens to sample in all.
        length: the most tokens in one document; sampling stops earlier at the end-of-text token.
        temperature: of the softmax; 1 is the model's own distribution.
        top_p: keep the likeliest tokens of this total probability (nucleus sampling); 1 keeps all.
        batch_size: documents sampled at a time.
        seed: of the sampling; a document depends on it, its batch and the batch's size alone.
    """

    tokens: int = 200_000
    length: int = 256
    temperature: float = 1.0
    top_p: float = 0.95
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "batch_size"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ALoRAError(
                    f"general.self_text.{name}={getattr(self, name)!r} must be a whole number of at least 1"
                )
        if not self.temperature > 0:
            raise ALoRAError(f"general.self_text.temperature={self.temperature!r} must be positive")
        if not 0 < self.top_p <= 1:
            raise ALoRAError(f"general.self_text.top_p={self.top_p!r} must be above 0 and at most 1")


def sample_text(model: Any, tokenizer: Any, config: SelfTextConfig, path: Path, prompts: Sequence[str] = ()) -> Path:
    """Sample text from `model` into the JSON lines file `path` ({"text": ...}); an unfinished file is gone on with.

    Beside it, `path` with the ending .settings.json says how it was made.

    Args:
        model: a causal language model, without any adapter.
        tokenizer: its tokenizer, with a beginning- or end-of-text token to start from.
        config: how to sample.
        path: written whole or not at all; returned at once where it is there, made with the same settings.
        prompts: what the documents begin with, a batch each in turn; without any, they begin at the beginning-of-text token.

    Raises:
        ALoRAError: `path` was made with other settings; the tokenizer has no token to begin with; only empty text came; a
            prompt has as many tokens as a document.
    """
    described = {"sampling": asdict(config)} | ({"prompts": list(prompts)} if prompts else {})
    settings = path.with_suffix(".settings.json")
    if path.exists() and settings.exists():
        made = json.loads(settings.read_text(encoding="utf-8"))
        if {key: value for key, value in made.items() if key != "tokens"} != described:
            raise ALoRAError(
                f"{path} was sampled with other settings (see {settings.name}): remove it, or restore them"
            )
        return path
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    done, tokens = _whole_batches(partial, config)
    with partial.open("a", encoding="utf-8") as file:
        shown = ShownProgress("sampling text from the model", config.tokens, logger, unit="tokens", first=tokens)
        sampled = _batches(model, tokenizer, config, done, prompts)
        with shown, closing(sampled):
            for batch, documents in sampled:
                new = sum(count for _, count in documents)
                tokens += new
                shown.advance(new)
                line = {"batch": batch, "documents": [text for text, _ in documents], "tokens": tokens}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
                if tokens >= config.tokens:
                    break
    texts = [
        text for line in partial.read_text(encoding="utf-8").splitlines() for text in json.loads(line)["documents"]
    ]
    if not any(text.strip() for text in texts):
        raise ALoRAError(
            "the model gave only empty text when sampled: is it a causal language model with its tokenizer?"
        )
    whole = path.with_suffix(".whole")
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts if text.strip())
    whole.write_text("".join(lines), encoding="utf-8")
    settings.write_text(json.dumps(described | {"tokens": tokens}, indent=2) + "\n", encoding="utf-8")
    os.replace(whole, path)
    partial.unlink()
    return path


def _whole_batches(partial: Path, config: SelfTextConfig) -> tuple[int, int]:
    """How many batches and tokens an interrupted sampling left; a line torn at the end is cut off."""
    if not partial.exists():
        return 0, 0
    kept = [line for line in partial.read_text(encoding="utf-8").split("\n")[:-1] if line]
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return len(kept), json.loads(kept[-1])["tokens"] if kept else 0


def _batches(
    model: Any, tokenizer: Any, config: SelfTextConfig, first: int, prompts: Sequence[str]
) -> Generator[tuple[int, list[tuple[str, int]]], None, None]:
    start = text_start(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    begun = [start + tokens for tokens in encode_bare(tokenizer, prompts)] or [start]
    for tokens in begun:
        if len(tokens) - len(start) >= config.length:
            raise ALoRAError(
                f"a prompt of {len(tokens) - len(start)} tokens leaves nothing of a document of length={config.length}: "
                "shorten it"
            )
    training = model.training
    model.eval()
    try:
        batch = first
        while True:
            prompt = torch.tensor([begun[batch % len(begun)]] * config.batch_size, device=model.device)
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(config.seed * 1_000_003 + batch)
                ids = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=True,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    top_k=0,
                    max_new_tokens=config.length - (prompt.shape[1] - len(start)),
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=pad,
                )
            yield batch, [_document(row, tokenizer) for row in ids[:, len(start) :].tolist()]
            batch += 1
    finally:
        model.train(training)


def _document(tokens: list[int], tokenizer: Any) -> tuple[str, int]:
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    return tokenizer.decode(tokens, skip_special_tokens=True), len(tokens)
