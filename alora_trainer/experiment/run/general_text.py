"""A recipe's general text: what is trained on (in stage A, for what is measured, as replay), and the probe of stage B."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alora_trainer.basics.causal_model import learned_positions
from alora_trainer.data.general import SELF, pack_general_text
from alora_trainer.data.probe import probe_text
from alora_trainer.data.self_text import SelfTextConfig, sample_text
from alora_trainer.data.streaming import stream_general_text
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, place, release_memory

logger = logging.getLogger(__name__)


def text_to_train(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Any:
    """Blocks of tokens to train on: packed from the recipe's sources, streamed, or sampled from the base model.

    Args:
        recipe: the recipe.
        tokenizer: the base model's.
        folder: keeps the text that is sampled.

    Raises:
        ALoRAError: the recipe names none, or it cannot be read.
    """
    general = recipe.general
    check_text_to_train(recipe, "what comes next")
    sources = sampled_text(recipe, tokenizer, folder) if general.train == SELF else general.train
    logger.info(f"general text: {', '.join(sources)}")
    common: dict[str, Any] = {"block_length": general.block_length, "seed": recipe.seed, "base": recipe.base}
    if general.streaming:
        return stream_general_text(sources, tokenizer, **common)
    return pack_general_text(sources, tokenizer, max_tokens=general.train_tokens, **common)


def check_text_to_train(recipe: Recipe, what: str) -> None:
    """Raise ALoRAError if the recipe names no general text to train on, which `what` needs."""
    if recipe.general.train is None:
        raise ALoRAError(
            f"the recipe has no general.train, and {what} reads it: add it (`self` samples text from the base model), or give "
            "a map with --importance, in whose place nothing is recorded"
        )


def text_to_watch(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Any:
    """Blocks of tokens for the general probe; see `data.probe`.

    Args:
        recipe: the recipe.
        tokenizer: the base model's.
        folder: where `text_to_train` keeps the text that is sampled; it is sampled now if it is not there.
    """
    general, sampled = recipe.general, None
    if general.train == SELF and general.probe is None:
        sampled = sampled_text(recipe, tokenizer, folder)
    return probe_text(general, tokenizer, seed=recipe.seed, base=recipe.base, sampled=sampled)


def sampled_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> dict[str, str]:
    """The source of text sampled from the base model, in `folder`; sampled now unless it is there."""
    return _sampled(recipe, tokenizer, folder, recipe.general.self_text, ())


def text_of_its_own(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, sampling: SelfTextConfig, prompts: Sequence[str]
) -> Any:
    """Blocks of tokens that are sampled from the base model for one method, whatever the recipe's general text is.

    Args:
        recipe: the recipe; its seed is the sampling's, too.
        tokenizer: the base model's.
        folder: keeps the text.
        sampling: how it is sampled.
        prompts: what it continues; see `sample_text`.
    """
    sources = _sampled(recipe, tokenizer, folder, replace(sampling, seed=recipe.seed), prompts)
    return pack_general_text(sources, tokenizer, block_length=recipe.general.block_length, seed=recipe.seed)


def _sampled(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, sampling: SelfTextConfig, prompts: Sequence[str]
) -> dict[str, str]:
    logger.info("sampling general text from the base model")
    base = load_base(recipe)
    positions = learned_positions(base)
    if positions is not None and sampling.length > positions:
        raise ALoRAError(f"the base model has {positions} positions, and text of length={sampling.length} is asked for")
    place(base, recipe.training_arguments("record", folder).device)
    path = sample_text(base, tokenizer, sampling, folder / "self_text.jsonl", prompts)
    del base
    release_memory()
    return {SELF: str(path.resolve())}
