"""The stage before EWCLoRA: the Fisher information of the base weights on general text, as an importance map."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from alora_trainer.artefact.provenance import describe_fisher
from alora_trainer.basics.cost_meter import Meter
from alora_trainer.data.domain import collator
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.facts import recording_facts
from alora_trainer.experiment.run.general_text import text_to_train
from alora_trainer.experiment.run.models import load_base, place, release_memory, with_fresh_adapter
from alora_trainer.importance.recording.fisher import estimate_fisher
from alora_trainer.weights.adapter_settings import PLAIN_FIELDS
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization

logger = logging.getLogger(__name__)


def compute_fisher(recipe: Recipe, method: Method, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Estimate the Fisher information and write it as ``folder/map``; goes on where it was stopped.

    Args:
        recipe: the model, the LoRA that says which weights, and the section `fisher`.
        method: which kind it holds by, and whether of the weights that LoRA adapts or of all parameters of the model.
        tokenizer: the base model's.
        folder: for the map, and the sums so far.

    Returns:
        seconds and peak_bytes (of this part), samples and steps (batches).
    """
    settings, kind, name = recipe.fisher, method.fisher_kind, method.importance
    full = method.parameterization is Parameterization.FULL
    assert kind is not None and name is not None
    data = text_to_train(recipe, tokenizer, folder)
    logger.info(f"Fisher information ({kind}) over general text{', all parameters' if full else ''}")
    base = load_base(recipe)
    model: Any = base if full else with_fresh_adapter(base, _covering(recipe))
    device = recipe.training_arguments("record", folder).device
    place(model, device)
    checkpoint = folder / "fisher.safetensors"
    with Meter() as meter:
        estimate = estimate_fisher(
            model,
            DataLoader(data, batch_size=settings.batch_size, collate_fn=collator(tokenizer)),
            kind=kind,
            location=settings.location,
            samples=settings.samples,
            checkpoint=checkpoint,
            parameterization=method.parameterization,
        )
    weights = trained_weights(model, method.parameterization)
    importance = describe_fisher(model, weights, estimate, name=name, seed=recipe.seed)
    cost = {"seconds": round(estimate.seconds, 3), "peak_bytes": meter.cost.peak_bytes}
    importance = importance.with_info(**recording_facts(recipe, cost, device))
    importance.save_pretrained(folder / "map", storage=settings.storage)
    checkpoint.unlink(missing_ok=True)
    del model, base, weights, importance
    release_memory()
    return cost | {"samples": estimate.samples, "steps": estimate.batches}


def _covering(recipe: Recipe) -> Recipe:
    """The recipe with a LoRA on the weights that are meant; its rank is of no matter, since it stays zero.

    It begins as zero, too, and trains nothing else, whatever the recipe's own does: the information is of the base model.
    """
    adapted = recipe.fisher.weights == "adapted"
    kept = {*PLAIN_FIELDS, "target_parameters"} if adapted else {"task_type", "fan_in_fan_out"}
    lora = {key: value for key, value in recipe.lora.items() if key in kept}
    return replace(recipe, lora=lora if adapted else lora | {"r": 1, "target_modules": "all-linear"})
