"""The general text that a run trains on: packed from the recipe's sources, streamed, or sampled from the base model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alora_trainer.data.general import SELF, pack_general_text
from alora_trainer.data.self_text import sample_text
from alora_trainer.data.streaming import stream_general_text
from alora_trainer.recipe import Recipe
from alora_trainer.stages import load_base, place, release_memory

logger = logging.getLogger(__name__)


def general_blocks(recipe: Recipe, tokenizer: Any, folder: Path) -> Any:
    """Blocks of tokens, as the recipe's section `general` says; the same ones in the same order every time.

    Args:
        recipe: what to read.
        tokenizer: the base model's.
        folder: where text that is sampled from the base model is kept.

    Raises:
        ALoRAError: a source cannot be read, or there is not enough text for one block.
    """
    general = recipe.general
    sources = general.train
    if sources == SELF:
        logger.info("sampling general text from the base model")
        base = load_base(recipe)
        place(base, recipe.training_arguments("record", folder).device)
        sources = {SELF: str(sample_text(base, tokenizer, general.self_text, folder / "self_text.jsonl").resolve())}
        del base
        release_memory()
    logger.info(f"general text: {', '.join(sources)}")
    common: dict[str, Any] = {"block_length": general.block_length, "seed": recipe.seed, "base": recipe.base}
    if general.streaming:
        return stream_general_text(sources, tokenizer, **common)
    return pack_general_text(sources, tokenizer, max_tokens=general.train_tokens, **common)
