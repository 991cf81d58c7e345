"""How much general text there is: counted on this disk, the tokens by the model's own tokenizer where that is at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alora_trainer.data.encoding import encode
from alora_trainer.data.general import SELF
from alora_trainer.data.sources import check_text, hub_settings, stream_records
from alora_trainer.experiment.recipe.recipe import Recipe

# Bytes of English text in a token, about; where no tokenizer is at hand.
_BYTES_PER_TOKEN = 4
# No text has tokens of more bytes, in the mean: so much of a large corpus is enough to see that there is enough.
_MOST_BYTES_PER_TOKEN = 16
# Bytes of a source that are encoded to see how many make a token: all of a small one, the beginning of a large one.
_ENCODED = 200_000


@dataclass(frozen=True)
class GeneralText:
    """How much general text a recipe will have.

    Attributes:
        train: tokens to record or measure on; None where that cannot be known.
        test: tokens that every evaluation reads; None likewise.
    """

    train: int | None
    test: int | None

    def blocks(self, length: int, most: int | None = None) -> int | None:
        """Whole blocks of `length` tokens to record or measure on.

        Args:
            most: tokens that are asked for, of which the last block is whole; None asks for all.
        """
        found = [self.train // length] if self.train is not None else []
        wanted = [-(-most // length)] if most is not None else []
        return min(found + wanted, default=None)


def general_text(recipe: Recipe) -> GeneralText:
    """What there is of a recipe's general text, and is taken by it; text on the Hub is not looked at.

    Raises:
        ALoRAError: a file is missing or cannot be read.
    """
    general, model = recipe.general, recipe.model_source
    train = general.self_text.tokens if general.train == SELF else None
    if isinstance(general.train, Mapping) and not general.streaming:  # what streams may have no end
        enough = None if general.train_tokens is None else general.train_tokens * _MOST_BYTES_PER_TOKEN
        local = [source for source in general.train.values() if hub_settings(source) is None]
        if len(local) == len(general.train):
            train = sum(_counted(json.dumps(source), recipe.base.resolve(), model, enough) for source in local)
    test = _sum(_tested(source, recipe.base, model, general.test_bytes) for source in general.test.values())
    return GeneralText(_least(train, general.train_tokens), test)


def local_tokenizer(recipe: Recipe) -> Any:
    """The base model's tokenizer where that is at hand; None for one that would be fetched."""
    return _tokenizer_of(recipe.model_source)


def _tokenizer_of(model: str) -> Any:
    if not Path(model).is_dir():
        return None
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        return None  # a folder with a configuration alone can be planned; a run says what is missing


def _tested(source: Any, base: Path, model: str, most_bytes: int | None) -> int | None:
    """Tokens of a source of the test; of one on the Hub those of so many bytes, and None where all of it is taken."""
    if hub_settings(source) is not None:
        return None if most_bytes is None else most_bytes // _BYTES_PER_TOKEN
    return _counted(json.dumps(source), base.resolve(), model, most_bytes)


@lru_cache(maxsize=256)  # a board plans the same text many times over
def _counted(source: str, base: Path, model: str, most_bytes: int | None) -> int:
    """Tokens of a local source's documents, an end-of-text token each counted, up to so many bytes."""
    whole, documents, texts, held = 0, 0, [], 0
    for row in stream_records(json.loads(source), base=base, text_only=True):
        text = check_text(row)
        size = len(text.encode("utf-8"))
        if held < _ENCODED:
            texts.append(text[: _ENCODED - held])
            held += len(texts[-1].encode("utf-8"))
        whole, documents = whole + size, documents + 1
        if most_bytes is not None and whole >= most_bytes:
            whole = most_bytes
            break
    tokenizer = _tokenizer_of(model)
    if tokenizer is None or not held:
        return documents + whole // _BYTES_PER_TOKEN
    return documents + round(whole * sum(map(len, encode(tokenizer, texts))) / held)


def _sum(counts: Any) -> int | None:
    found = list(counts)
    return None if any(count is None for count in found) else sum(found)


def _least(count: int | None, limit: int | None) -> int | None:
    return limit if count is None else count if limit is None else min(count, limit)
