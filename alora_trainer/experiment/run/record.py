"""Stage A of a recipe: train on general text and record importance, with LoRA or of the whole model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from alora_trainer.basics.processes import is_main, main_first
from alora_trainer.data.domain import collator
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.facts import recording_facts
from alora_trainer.experiment.run.general_text import text_to_train
from alora_trainer.experiment.run.models import load_base, release_memory, with_fresh_adapter
from alora_trainer.experiment.run.train import train
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.parameterization import Parameterization

logger = logging.getLogger(__name__)


def record_importance(recipe: Recipe, tokenizer: Any, folder: Path, moved: Parameterization) -> dict[str, Any]:
    """Train on general text and write the recorded importance as ``folder/map``; goes on where it was stopped.

    Args:
        recipe: the model, the text, and the sections `record` and `alora`.
        tokenizer: the base model's.
        folder: for the map, the checkpoints, and text that is sampled.
        moved: the recipe's LoRA, or the whole model, as Synaptic Intelligence was published.

    Returns:
        seconds, peak_bytes, loss and steps of the training.
    """
    full = moved is Parameterization.FULL
    logger.info(f"stage A: recording on general text{', all parameters' if full else ''}")
    with main_first():
        data = text_to_train(recipe, tokenizer, folder)
    base = load_base(recipe)
    trainer = ALoRATrainer(
        base if full else with_fresh_adapter(base, recipe),
        recipe.training_arguments("record", folder / "checkpoints"),
        train_dataset=data,
        data_collator=collator(tokenizer),
        alora=replace(recipe.alora, full_parameters=True, basis=None) if full else recipe.alora,
    )
    cost = train(trainer)
    if trainer.recorded_importance is None:
        raise RuntimeError("the recording ended without an importance map")
    importance = trainer.recorded_importance.with_info(**recording_facts(recipe, cost, trainer.args.device))
    if is_main():
        importance.save_pretrained(folder / "map", storage=recipe.map.storage_of(importance.kind))
    del trainer, base, importance
    release_memory()
    return cost
