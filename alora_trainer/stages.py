"""One stage at a time: a freshly loaded base model, an adapter on it, and a training that goes on where it was stopped."""

from __future__ import annotations

import logging
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
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from alora_trainer.errors import ALoRAError
from alora_trainer.history import columns
from alora_trainer.importance.base_model import remember_revision
from alora_trainer.memory import Cost, Meter
from alora_trainer.recipe import Recipe
from alora_trainer.resume import last_whole_checkpoint, trainer_state

logger = logging.getLogger(__name__)

_SHOWN = ("loss", "ce_loss", "penalty", "learning_rate")


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a padding token (its end of text, if it has none of its own).

    Raises:
        ALoRAError: there is none at `model.path`, or it has no end-of-text token.
    """
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
        ALoRAError: there is none at `model.path`.
    """
    set_seed(recipe.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            recipe.model_source,
            revision=recipe.model.revision,
            dtype=recipe.model.dtype,
            quantization_config=_quantization(recipe),
        )
    except (OSError, ValueError, ImportError) as error:
        raise ALoRAError(_not_loaded("model", recipe, error)) from error
    remember_revision(model, recipe.model.revision)
    return model


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
        ALoRAError: there is none at `source`, or it has another vocabulary than the base model.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=recipe.model.dtype)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ALoRAError(f"the model at {source} cannot be loaded: {lines[0]}") from error
    if len(load_tokenizer(recipe)) > model.get_input_embeddings().weight.shape[0]:
        raise ALoRAError(
            f"the model at {source} has fewer tokens than the recipe's tokenizer: it is of another base model"
        )
    return model


def _not_loaded(what: str, recipe: Recipe, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the {what} at model.path={recipe.model.path} cannot be loaded: {lines[0]}"


def with_fresh_adapter(model: PreTrainedModel, recipe: Recipe, *, protected: bool = False) -> PeftModel:
    """`model` with a new LoRA adapter; `protected` for the one of ``alora.start: fresh``.

    Raises:
        ALoRAError: the recipe's `lora` does not fit the model.
    """
    set_seed(recipe.seed)
    try:
        return get_peft_model(model, recipe.lora_config(fresh=protected))
    except ValueError as error:
        raise ALoRAError(f"lora does not fit the model: {str(error).strip().splitlines()[0]}") from error


def with_saved_adapter(model: PreTrainedModel, folder: str | Path, *, trainable: bool) -> PeftModel:
    """`model` with the adapter in `folder`, which may be a Hub id (an importance map is one, too).

    Raises:
        ALoRAError: there is none, or it does not fit the model; it is an importance map's, and damaged.
    """
    from alora_trainer.importance.files import CONFIG_FILE
    from alora_trainer.importance.reading import check_reference

    source = str(folder)
    local = Path(source).exists() or source.count("/") != 1 or source.startswith((".", "/", "~"))
    if local and not (Path(folder) / "adapter_config.json").is_file():
        raise ALoRAError(f"{folder} holds no adapter: give a folder with adapter_config.json in it, or a Hub id")
    if local and (Path(folder) / CONFIG_FILE).is_file():
        check_reference(Path(folder))
    try:
        return PeftModel.from_pretrained(model, source, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise ALoRAError(f"the adapter in {folder} cannot be put on the model: {' '.join(lines[:2])}") from error


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
        the model; the base model where it is not the model itself without its adapter, and divergence from it is asked for
        (`evaluation.kl_tokens`), else None or the model.
    """
    whole = adapter is not None and (Path(adapter) / "config.json").is_file()
    source = str(adapter) if whole else model_source
    model: Any = load_base(recipe) if source is None else load_other(recipe, source)
    base = model
    if source is not None:
        base = load_base(recipe) if recipe.evaluation.kl_tokens is not None else None
    elif adapter is not None:
        model, base = with_saved_adapter(model, adapter, trainable=False), None
    for loaded in (model, base):
        if loaded is not None:
            place(loaded, device)
    return model, base


def train(trainer: Trainer) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint in the trainer's output folder if there is one.

    Returns:
        seconds and peak_bytes of the whole training (`Meter` says what is counted), over all the times that it was begun;
        loss, the mean over this part of the training; steps; history, the log as columns (see `history.columns`).
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = last_whole_checkpoint(folder)
    with Meter() as meter:
        keeper = _CostKeeper(meter, _cost_in(checkpoint))
        trainer.add_callback(keeper)
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        if not trainer.args.disable_tqdm:
            trainer.add_callback(_Progress)
        if checkpoint is not None:
            logger.info(f"going on from {checkpoint.name}")
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_state()
    cost = keeper.cost
    return {
        "seconds": round(cost.seconds, 3),
        "peak_bytes": cost.peak_bytes,
        "loss": outcome.training_loss,
        "steps": outcome.global_step,
        "history": columns(trainer.state.log_history),
    }


def _cost_in(checkpoint: Path | None) -> Cost:
    state = trainer_state(checkpoint) if checkpoint is not None else None
    saved = (state or {}).get("stateful_callbacks", {}).get(_CostKeeper.__name__)
    return Cost(**saved["attributes"]) if saved else Cost()


class _CostKeeper(TrainerCallback, ExportableState):
    """Keeps the cost so far in each checkpoint, so that a training that was stopped does not look cheaper than it was."""

    def __init__(self, meter: Meter, before: Cost) -> None:
        self._meter = meter
        self._before = before

    @property
    def cost(self) -> Cost:
        return self._before + self._meter.cost

    def state(self) -> dict[str, Any]:
        cost = self.cost
        return {"args": {}, "attributes": {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes}}


class _Progress(ProgressCallback):
    """The Trainer's own progress bar with the losses on it, instead of a line of text for every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key: f"{float(logs[key]):.4g}" for key in _SHOWN if key in logs}
            if shown:
                self.training_bar.set_postfix(shown, refresh=False)


def release_memory() -> None:
    """Give back what a model that is no longer used held, before the next stage is measured."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
