"""Whether a recipe's model, its tokenizer and the lengths that it sets go together: known before anything is trained."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alora_trainer.basics.causal_model import check_causal, learned_positions
from alora_trainer.data.encoding import text_start
from alora_trainer.data.general import SELF
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.recipe import Recipe


def check_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Refuse a base model that the recipe cannot train.

    Raises:
        ALoRAError: it is no causal language model; it has no embeddings for some of the tokenizer's tokens, or for as many
            positions as the recipe asks for.
    """
    name = f"the model at model.path={recipe.model.path}"
    check_vocabulary(model, tokenizer, name)
    check_causal(model, name, training=True)
    _check_lengths(model, recipe, name)


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a model with fewer token embeddings than the tokenizer that it is used with needs.

    Special tokens that no text is made of may be beyond them, as those for pictures are in the text models of some families.

    Raises:
        ALoRAError: it has fewer.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= size and max(vocabulary.values()) < size:
        return
    added = tokenizer.added_tokens_decoder
    used = [("padding token", tokenizer.pad_token_id), ("end-of-text token", tokenizer.eos_token_id)]
    used += [("token before every text", token) for token in text_start(tokenizer)]
    used += [("token", token) for token in vocabulary.values() if token not in added or not added[token].special]
    for kind, token in used:
        if token is not None and token >= size:
            raise ALoRAError(
                f"{name} has embeddings for {size} tokens, and the tokenizer's {kind} "
                f"{tokenizer.convert_ids_to_tokens(token)!r} is number {token}: use the model's own tokenizer, take the "
                "token out of it, or save the model anew after resize_token_embeddings"
            )


def _check_lengths(model: PreTrainedModel, recipe: Recipe, name: str) -> None:
    positions = learned_positions(model)
    if positions is None:
        return
    lengths = {
        "general.block_length": recipe.general.block_length,
        "evaluation.max_length": recipe.evaluation.max_length,
    }
    lengths["domain.max_length"] = max(domain.max_length for domain in recipe.domains or (recipe.domain,))
    if recipe.general.train == SELF:
        lengths["general.self_text.length"] = recipe.general.self_text.length
    for setting, length in lengths.items():
        if length is not None and length > positions:
            raise ALoRAError(
                f"{name} has embeddings for {positions} positions, and {setting}={length}: set it to {positions} or less"
            )
