"""The models of a run: a freshly loaded base model, an adapter on it, and what is scored and compared with."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from alora_trainer.artefact.files import CONFIG_FILE
from alora_trainer.artefact.hub.download import check_adapter_on_hub
from alora_trainer.artefact.map_folder import present_folder
from alora_trainer.artefact.reading import check_reference
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.basics.keys import absent
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.model_section import refuse_adapter
from alora_trainer.experiment.recipe.recipe import MERGE_FIRST, Recipe
from alora_trainer.experiment.run.model_checks import check_base, check_vocabulary
from alora_trainer.importance.base_model import remember_revision
from alora_trainer.weights.adapter_settings import not_scored, off_is_not_base

logger = logging.getLogger(__name__)

# Base models that were looked at in this process, by all that the outcome depends on.
_CHECKED: set[str] = set()


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token (its end of text, if it has none of its own).

    Raises:
        ALoRAError: there is none at `model.path`, or it has no end-of-text token; an adapter is there.
    """
    refuse_adapter(recipe.model_source, recipe.model.revision, instead=MERGE_FIRST)
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.model_source, revision=recipe.model.revision)
    except (OSError, ValueError) as error:
        raise ALoRAError(_not_loaded("tokenizer", recipe, error)) from error
    if tokenizer.eos_token_id is None:
        raise ALoRAError(f"the tokenizer of {recipe.model.path} has no end-of-text token: choose another model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(recipe: Recipe) -> PreTrainedModel:
    """The base model, freshly loaded after seeding everything, so that what follows does not depend on what was before.

    Raises:
        ALoRAError: there is none at `model.path`, or an adapter; it cannot be trained as the recipe says (see `model_checks`).
    """
    refuse_adapter(recipe.model_source, recipe.model.revision, instead=MERGE_FIRST)
    set_seed(recipe.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            recipe.model_source,
            revision=recipe.model.revision,
            dtype=recipe.model.dtype,
            quantization_config=_quantization(recipe),
        )
    except Exception as error:  # some architectures refuse their configuration by an assertion
        raise ALoRAError(_not_loaded("model", recipe, error)) from error
    remember_revision(model, recipe.model.revision)
    _check_once(model, recipe)
    return model


def _check_once(model: PreTrainedModel, recipe: Recipe) -> None:
    """`check_base`, which is the same for every stage of a run."""
    state = repr(
        (recipe.base.resolve(), recipe.model, recipe.general, recipe.domain, recipe.domains, recipe.evaluation)
    )
    if state not in _CHECKED:
        check_base(model, load_tokenizer(recipe), recipe)
        _CHECKED.add(state)


def _quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    kind = recipe.model.quantization
    if kind is None:
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = torch.bfloat16 if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def place(model: Any, device: torch.device) -> None:
    """Bring a model to `device`; a quantised one is there since it was loaded, and cannot be moved."""
    if not getattr(model, "is_quantized", False):
        model.to(device)


def load_other(recipe: Recipe, source: str) -> PreTrainedModel:
    """A model other than the recipe's base, such as a merged one, from a folder or the Hub; scored by the base's tokenizer.

    Raises:
        ALoRAError: there is none at `source`, or an adapter; it has another vocabulary than the base model.
    """
    refuse_adapter(source, instead="give it as --adapter")
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=recipe.model.dtype)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ALoRAError(f"the model at {source} cannot be loaded: {lines[0]}") from error
    check_vocabulary(model, load_tokenizer(recipe), f"the model at {source}")
    return model


def _not_loaded(what: str, recipe: Recipe, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    hint = " (in its config.json, pad_token_id must be below vocab_size, or null)" if "adding_idx" in lines[0] else ""
    here = absent(recipe.model.path, recipe.base)
    return f"the {what} at model.path={recipe.model.path} cannot be loaded: {lines[0].rstrip('.')}{hint}{here}"


def with_fresh_adapter(
    model: PreTrainedModel, recipe: Recipe, *, protected: bool = False, method: Method | None = None
) -> PeftModel:
    """`model` with a new LoRA adapter; `protected` for the one of ``alora.start: merged`` and ``bare``, of a `method`.

    Raises:
        ALoRAError: the recipe's `lora` does not fit the model.
    """
    set_seed(recipe.seed)
    config = recipe.lora_config(fresh=protected)
    if method is not None:
        method.configure(model, config)
    with adapter_misfit():
        return get_peft_model(model, config)


@contextmanager
def adapter_misfit() -> Iterator[None]:
    """Say in one line, as an ALoRAError, why PEFT cannot put a LoRA adapter on a model."""
    try:
        yield
    except ALoRAError:
        raise
    except ValueError as error:
        raise ALoRAError(f"lora does not fit the model: {str(error).strip().splitlines()[0]}") from error


def with_saved_adapter(model: PreTrainedModel, folder: str | Path, *, trainable: bool) -> PeftModel:
    """`model` with the adapter in `folder`, which may be a Hub id (an importance map is one, too).

    Raises:
        ALoRAError: there is none, or it does not fit the model, or could not be scored; it is an importance map's, and damaged.
    """
    source = str(folder)
    local = not is_hub_id(source)
    if local:
        folder = present_folder(Path(folder))
        source = str(folder)
    else:
        check_adapter_on_hub(source)
    if local and not (Path(folder) / "adapter_config.json").is_file():
        raise ALoRAError(f"{folder} holds no adapter: give a folder with adapter_config.json in it, or a Hub id")
    if local and (Path(folder) / CONFIG_FILE).is_file():
        check_reference(Path(folder))
    try:
        adapted = PeftModel.from_pretrained(model, source, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise ALoRAError(f"the adapter in {folder} cannot be put on the model: {' '.join(lines[:2])}") from error
    reason = next(filter(None, map(not_scored, adapted.peft_config.values())), None)
    if reason is not None:
        raise ALoRAError(
            f"the adapter in {folder} cannot be scored: {reason}, which lm-eval's batches do not provide for"
        )
    return adapted


def is_whole_model(folder: str | Path) -> bool:
    """Whether a folder holds a model, and not an adapter."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file()


def load_to_score(
    recipe: Recipe, adapter: str | Path | None, model_source: str | None, device: torch.device
) -> tuple[Any, Any]:
    """A model to evaluate, and the base model to compare it with.

    Args:
        recipe: the recipe.
        adapter: a folder or Hub id of an adapter, or a folder with a whole model that was tuned; None for neither.
        model_source: another model instead (a folder or Hub id), such as a merged one.
        device: where both go.

    Returns:
        the model; the base model where it is not the model itself without its adapter (see `weights.adapter_settings`), and
        divergence from it is asked for (`evaluation.kl_tokens`), else None or the model.
    """
    whole = adapter is not None and is_whole_model(adapter)
    source = str(adapter) if whole else model_source
    model: Any = load_base(recipe) if source is None else load_other(recipe, source)
    base = model
    if source is not None:
        base = load_base(recipe) if recipe.evaluation.kl_tokens is not None else None
    elif adapter is not None:
        model = with_saved_adapter(model, adapter, trainable=False)
        anew = recipe.evaluation.kl_tokens is not None and off_is_not_base(model) is not None
        base = load_base(recipe) if anew else None
    for loaded in (model, base):
        if loaded is not None:
            place(loaded, device)
    return model, base


def release_memory() -> None:
    """Give back what a model that is no longer used held, before the next stage is measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
