"""What is measured at the base weights before a training, in passes over general text: Fisher information, or curvature."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Subset

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.artefact.provenance import describe_measured
from alora_trainer.basics.cost_meter import Meter
from alora_trainer.basics.processes import Processes, is_main, main_first
from alora_trainer.data.domain import collator
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.facts import recording_facts
from alora_trainer.experiment.run.general_text import text_to_train
from alora_trainer.experiment.run.models import load_base, place, release_memory, with_fresh_adapter
from alora_trainer.importance.recording.curvature import CurvatureEstimate, estimate_curvature
from alora_trainer.importance.recording.fisher import FisherEstimate, estimate_fisher
from alora_trainer.importance.recording.measured import Measured
from alora_trainer.weights.adapter_settings import PLAIN_FIELDS
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization

logger = logging.getLogger(__name__)


def measure_importance(
    recipe: Recipe, measured: Measured, moved: Parameterization, tokenizer: Any, folder: Path
) -> dict[str, Any]:
    """Measure importance at the base weights and write it as ``folder/map``; goes on where it was stopped.

    Args:
        recipe: the model, the LoRA that says which weights, and the section that says how.
        measured: what.
        moved: of the weights that LoRA adapts, or of all parameters of the model.
        tokenizer: the base model's.
        folder: for the map, and the sums so far.

    Returns:
        seconds and peak_bytes (of this part), steps (batches), tokens, and the samples of a Fisher information.
    """
    full = moved is Parameterization.FULL
    with main_first():
        data = text_to_train(recipe, tokenizer, folder)
    logger.info(f"measuring {measured.name} importance over general text{', all parameters' if full else ''}")
    base = load_base(recipe)
    model: Any = (
        base if full else with_fresh_adapter(base, _covering(recipe, getattr(recipe, measured.section).weights))
    )
    device = recipe.training_arguments("record", folder).device
    place(model, device)
    checkpoint = folder / f"{measured.section}.safetensors"
    with Meter() as meter:
        if measured.is_curvature:
            estimate: Any = _curvature(recipe, measured, model, data, collator(tokenizer), checkpoint)
        else:
            estimate = _fisher(recipe, measured, moved, model, data, collator(tokenizer), checkpoint)
    cost = {"seconds": round(estimate.seconds, 3), "peak_bytes": meter.cost.peak_bytes}
    importance = _described(recipe, measured, moved, model, estimate)
    importance = importance.with_info(**recording_facts(recipe, cost, device))
    if is_main():
        storage = recipe.curvature.format(measured.kind) if measured.is_curvature else recipe.fisher.storage
        importance.save_pretrained(folder / "map", storage=storage)
    for left in folder.glob(f"{measured.section}*.safetensors") if is_main() else ():
        left.unlink()
    outcome = cost | {"steps": estimate.batches, "tokens": estimate.tokens}
    del model, base, importance
    release_memory()
    return outcome if measured.is_curvature else outcome | {"samples": estimate.samples}


def _fisher(
    recipe: Recipe, measured: Measured, moved: Parameterization, model: Any, data: Any, collate: Any, checkpoint: Path
) -> FisherEstimate:
    settings = recipe.fisher
    return estimate_fisher(
        model,
        DataLoader(data, batch_size=settings.batch_size, collate_fn=collate),
        kind=measured.squares,
        labels=measured.labels,
        seed=recipe.seed,
        location=settings.location,
        samples=settings.samples,
        checkpoint=checkpoint,
        parameterization=moved,
    )


def _curvature(
    recipe: Recipe, measured: Measured, model: Any, data: Any, collate: Any, checkpoint: Path
) -> CurvatureEstimate:
    settings, processes = recipe.curvature, Processes()
    tokens = settings.tokens
    if tokens is not None and isinstance(data, Sized) and len(data) * recipe.general.block_length <= tokens:
        # All of it is passed through, and progress by its batches knows the time left, which by tokens it would not.
        tokens = None
    if processes.count > 1:
        if recipe.general.streaming:
            raise ALoRAError(
                "several processes share out the blocks of general text that they measure on, and a stream's are not known "
                "before: set general.streaming to false, or use one process"
            )
        # Every process sees its own share of the blocks, of which it predicts its own share of the tokens.
        data = Subset(data, range(processes.rank, len(data), processes.count))
        tokens = None if tokens is None else -(-tokens // processes.count)
    return estimate_curvature(
        model,
        DataLoader(data, batch_size=settings.batch_size, collate_fn=collate),
        measured.kind,
        labels=settings.labels,
        draws=settings.draws,
        tokens=tokens,
        keep=settings.keep,
        share=settings.share,
        seed=recipe.seed,
        location=settings.location,
        parts=settings.parts,
        checkpoint=checkpoint,
    )


def _described(
    recipe: Recipe,
    measured: Measured,
    moved: Parameterization,
    model: Any,
    estimate: FisherEstimate | CurvatureEstimate,
) -> ImportanceMap:
    weights = trained_weights(model, moved)
    omega: Mapping[str, Any] = estimate.importance if isinstance(estimate, CurvatureEstimate) else estimate.omega
    facts: dict[str, Any] = {"steps": estimate.batches, "tokens": estimate.tokens, "seed": recipe.seed}
    facts["labels"] = recipe.curvature.labels if measured.is_curvature else measured.labels
    if measured.is_curvature:
        facts["draws"] = recipe.curvature.draws
    return describe_measured(model, weights, omega, name=measured.name, **facts)


def _covering(recipe: Recipe, weights: str) -> Recipe:
    """The recipe with a LoRA on the weights that are meant; its rank is of no matter, since it stays zero.

    It begins as zero, too, and trains nothing else, whatever the recipe's own does: what is measured is the base model.

    Args:
        weights: "adapted" for those that the recipe's LoRA adapts, or "all".
    """
    adapted = weights == "adapted"
    kept = {*PLAIN_FIELDS, "target_parameters"} if adapted else {"task_type", "fan_in_fan_out"}
    lora = {key: value for key, value in recipe.lora.items() if key in kept}
    return replace(recipe, lora=lora if adapted else lora | {"r": 1, "target_modules": "all-linear"})
