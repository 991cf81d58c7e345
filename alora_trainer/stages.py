"""One stage at a time: a freshly loaded base model, an adapter on it, and a training that goes on where it was stopped."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import remember_revision
from alora_trainer.memory import Cost, Meter
from alora_trainer.recipe import Recipe

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
            recipe.model_source, revision=recipe.model.revision, dtype=recipe.model.dtype
        )
    except (OSError, ValueError) as error:
        raise ALoRAError(_not_loaded("model", recipe, error)) from error
    remember_revision(model, recipe.model.revision)
    return model


def _not_loaded(what: str, recipe: Recipe, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the {what} at model.path={recipe.model.path} cannot be loaded: {lines[0]}"


def with_fresh_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """`model` with a new LoRA adapter.

    Raises:
        ALoRAError: the recipe's `lora` does not fit the model.
    """
    set_seed(recipe.seed)
    try:
        return get_peft_model(model, recipe.lora_config())
    except ValueError as error:
        raise ALoRAError(f"lora does not fit the model: {str(error).strip().splitlines()[0]}") from error


def with_saved_adapter(model: PreTrainedModel, folder: str | Path, *, trainable: bool) -> PeftModel:
    """`model` with the adapter in `folder` (an importance map is one, too).

    Raises:
        ALoRAError: there is none, or it does not fit the model.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ALoRAError(f"{folder} holds no adapter: give a folder with adapter_config.json in it")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise ALoRAError(f"the adapter in {folder} cannot be put on the model: {' '.join(lines[:2])}") from error


def train(trainer: Trainer) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint in the trainer's output folder if there is one.

    Returns:
        seconds and peak_bytes of the whole training (`Meter` says what is counted), over all the times that it was begun;
        loss, the mean over this part of the training; steps.
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
    }


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint to go on from, or None.

    The Trainer writes ``trainer_state.json`` last, so that a checkpoint with a readable one is whole. One at the very end
    of a training is passed over: going on from there would train one step too many.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        state = _trainer_state(path)
        if state is not None and state["global_step"] < state["max_steps"]:
            return path
    return None


def _step_of(checkpoint: Path) -> int:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1


def _trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(state)


def _cost_in(checkpoint: Path | None) -> Cost:
    state = _trainer_state(checkpoint) if checkpoint is not None else None
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
