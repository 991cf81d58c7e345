"""Full tuning: Synaptic Intelligence and EWC as published, on the model's own parameters. For small models, as a reference.

A stage leaves a folder with the model that it ended at, ``model/``, which is theta*, and Omega in ``omega.safetensors``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from alora_trainer.data.domain import collator
from alora_trainer.errors import ALoRAError
from alora_trainer.full import full_weights
from alora_trainer.general_text import text_to_train
from alora_trainer.importance.fisher import estimate_fisher
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap
from alora_trainer.importance.safetensors_stream import write_tensors
from alora_trainer.memory import Meter
from alora_trainer.provenance import map_at_present
from alora_trainer.recipe import Recipe
from alora_trainer.stages import load_base, place, release_memory, train
from alora_trainer.trainer import ALoRATrainer

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model"
OMEGA_FILE = "omega.safetensors"


def record_full(recipe: Recipe, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Stage A without LoRA: tune the whole model on general text and record importance.

    Returns:
        seconds, peak_bytes, loss and steps of the training.
    """
    logger.info("stage A: recording on general text, all parameters")
    trainer = ALoRATrainer(
        load_base(recipe),
        recipe.training_arguments("record", folder / "checkpoints"),
        train_dataset=text_to_train(recipe, tokenizer, folder),
        data_collator=collator(tokenizer),
        alora=replace(recipe.alora, full_parameters=True),
    )
    cost = train(trainer)
    assert trainer.importance is not None
    _write(trainer.importance, trainer.model, folder)
    del trainer
    release_memory()
    return cost


def fisher_full(recipe: Recipe, kind: str, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The Fisher information of all parameters of the base model on general text.

    Returns:
        seconds and peak_bytes, samples and steps (batches).
    """
    from torch.utils.data import DataLoader

    data = text_to_train(recipe, tokenizer, folder)
    logger.info(f"Fisher information ({kind}) over general text, all parameters")
    model = load_base(recipe)
    place(model, recipe.training_arguments("record", folder).device)
    settings, checkpoint = recipe.fisher, folder / "fisher.safetensors"
    with Meter() as meter:
        estimate = estimate_fisher(
            model,
            DataLoader(data, batch_size=settings.batch_size, collate_fn=collator(tokenizer)),
            kind=kind,
            location=settings.location,
            samples=settings.samples,
            checkpoint=checkpoint,
            full=True,
        )
    weights = full_weights(model)
    _write(map_at_present(model, weights, estimate.omega, ImportanceInfo(estimator="fisher")), model, folder)
    checkpoint.unlink(missing_ok=True)
    del model
    release_memory()
    return {
        "seconds": round(estimate.seconds, 3),
        "peak_bytes": meter.cost.peak_bytes,
        "samples": estimate.samples,
        "steps": estimate.batches,
    }


def _write(importance: ImportanceMap, model: Any, folder: Path) -> None:
    model.save_pretrained(str(folder / MODEL_FOLDER))
    write_tensors(folder / OMEGA_FILE, {name: importance[name] for name in importance})


def load_full(recipe: Recipe, folder: Path) -> Any:
    """The model that a stage ended at, all parameters of which train."""
    if not (folder / MODEL_FOLDER / "config.json").is_file():
        raise ALoRAError(f"{folder} holds no model of a full tuning: remove it, and run again")
    return AutoModelForCausalLM.from_pretrained(folder / MODEL_FOLDER, dtype=recipe.model.dtype)


def load_full_map(model: nn.Module, folder: Path) -> ImportanceMap:
    """The importance that a stage left in `folder`, with the weights that `model` has now for theta*."""
    return map_at_present(model, full_weights(model), load_file(folder / OMEGA_FILE), ImportanceInfo())
