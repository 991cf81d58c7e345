"""The general probe of a recipe: a little general text that stage A did not read and that nothing is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.data.general import SELF, pack_general_text
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from alora_trainer.data.general import GeneralConfig
    from alora_trainer.data.sources import Source


# Tokens taken of one document at most. Blocks of one document are alike, so that a probe of few documents says less of general
# text than its standard error, which takes blocks for independent, makes one believe.
EXCERPT = 256


def check_probe(general: GeneralConfig) -> None:
    """Raise ALoRAError if it is clear, before anything is read, that there will be no text for a probe."""
    reason = no_probe(general)
    if reason is not None:
        raise ALoRAError(reason)


def no_probe(general: GeneralConfig) -> str | None:
    """Why it is clear, before anything is read, that there will be no text for a probe; None where there may be."""
    if general.probe is None and general.train is None:
        return "alora.budget watches general text, and there is none: set general.probe (or general.train)"
    if general.probe is None and general.train != SELF and (general.streaming or general.train_tokens is None):
        return (
            "the recording reads all of general.train, which leaves nothing for a probe: set general.probe to other general "
            "text (not that of general.test), or general.train_tokens to less than there is"
        )
    return None


def probe_text(
    general: GeneralConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    base: Path | str,
    sampled: Mapping[str, Source] | None = None,
) -> Dataset:
    """Blocks of general text to watch while protecting (see `pack_general_text`), ``general.probe_tokens`` in all.

    Args:
        general: the recipe's section. Its ``probe`` is the text; without one, it is what ``train_tokens`` leaves of the
            training sources.
        tokenizer: must have an EOS token.
        seed: that of the recording, so that what it read is known.
        base: the folder that relative paths start from.
        sampled: with ``train: self``, where the sampled text is. It is read from its end, and was recorded on.

    Raises:
        ALoRAError: a source cannot be read; nothing is left of the training sources.
    """
    common: dict[str, Any] = {
        "block_length": general.block_length,
        "max_tokens": general.probe_tokens,
        "excerpt": min(general.block_length, EXCERPT),
        "base": base,
    }
    if general.probe is not None:
        return pack_general_text(general.probe, tokenizer, seed=seed, **common)
    if sampled is not None:
        return pack_general_text(sampled, tokenizer, seed=seed + 1, **common)
    check_probe(general)
    try:
        return pack_general_text(general.train, tokenizer, seed=seed, after=general.train_tokens, **common)
    except ALoRAError as error:
        raise ALoRAError(f"no probe can be taken from what general.train_tokens leaves: {error}") from error
