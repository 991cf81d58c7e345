"""Where a protected stage B of a recipe starts, and what adapter comes out of it: always one for the bare base model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from alora_trainer.artefact.importance_map import ImportanceMap, load_reference
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, Method, MethodOptions
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, with_fresh_adapter, with_saved_adapter
from alora_trainer.importance.controls import CONTROLS, control_map
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.start import StartFrom


def protected_start(recipe: Recipe, map_folder: Path) -> PeftModel:
    """The model that a protected training starts with, as the recipe's `alora.start` says.

    Args:
        recipe: the recipe.
        map_folder: the importance map, which holds the recorded adapter.

    Raises:
        ALoRAError: the base model, the recorded adapter or the new one do not fit each other.
    """
    base = load_base(recipe)
    start = recipe.alora.start_from
    if start is StartFrom.RECORDED:
        return with_saved_adapter(base, map_folder, trainable=True)
    if start is StartFrom.MERGED:
        base = with_saved_adapter(base, map_folder, trainable=False).merge_and_unload()
    return with_fresh_adapter(base, recipe, protected=True)


def full_start(recipe: Recipe, map_folder: Path) -> PreTrainedModel:
    """The whole model that a full tuning starts with: the base model with the map's theta* for its weights.

    Raises:
        ALoRAError: there is no such map, or it is of an adapter.
    """
    model = load_base(recipe)
    load_reference(model, ImportanceMap.from_pretrained(map_folder))
    return model


def protecting_map(recipe: Recipe, method: Method, map_folder: Path) -> ImportanceMap:
    """The map that holds the method's training, as the method makes it of the one in `map_folder`.

    Raises:
        ALoRAError: there is no map, or it is damaged.
    """
    importance = ImportanceMap.from_pretrained(map_folder, storage=recipe.alora.storage)
    kind = method.importance
    if kind is not None and kind in CONTROLS:
        return control_map(kind, importance, recipe.seed)
    return importance


def save_protected(model: PeftModel, recipe: Recipe, map_folder: Path, folder: Path) -> None:
    """Save what `protected_start` and a training made as an adapter of the bare base model.

    A new adapter over the merged base is joined with the recorded one, ``s* B* A* + s B A``, which is an adapter whose rank
    is the sum of both.

    Raises:
        ALoRAError: the new adapter trains more than LoRA factors, which cannot be joined.
    """
    if recipe.alora.start_from is not StartFrom.MERGED:
        model.save_pretrained(str(folder))
        return
    config = model.peft_config["default"]
    if config.modules_to_save or config.bias != "none":
        raise ALoRAError(
            "a new adapter over the merged base cannot be joined with the recorded one if it trains modules_to_save or "
            "biases: leave these out of fresh_lora, or set alora.start to bare"
        )
    recorded = with_saved_adapter(load_base(recipe), map_folder, trainable=True)
    join_adapters([recorded, model], load_base(recipe)).save_pretrained(str(folder))


def join_adapters(models: list[PeftModel], base: torch.nn.Module) -> PeftModel:
    """`base` with one adapter whose movement of every weight is the sum of those of the models' adapters.

    Args:
        models: of one architecture, each with a trainable LoRA adapter; ranks and target modules may differ.
        base: the base model to put it on.
    """
    parts: dict[str, list[AdaptedWeight]] = {}
    for model in models:
        for weight in adapted_weights(model):
            parts.setdefault(weight.name, []).append(weight)
    ranks = {name: sum(weight.rank for weight in weights) for name, weights in parts.items()}
    common = max(ranks.values())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=common,
        lora_alpha=common,
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != common},
        alpha_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != common},
        target_modules=list(parts),
        fan_in_fan_out=any(model.peft_config["default"].fan_in_fan_out for model in models),
    )
    joined = get_peft_model(base, config)
    for weight in adapted_weights(joined):
        # alpha is the rank, so that the joined scaling is 1 and the parts' own go into B.
        a = torch.cat([part.a for part in parts[weight.name]], dim=0)
        b = torch.cat([part.b * part.scaling for part in parts[weight.name]], dim=1)
        weight.parameter_a.data.copy_(a.reshape(weight.parameter_a.shape))
        weight.parameter_b.data.copy_(b.reshape(weight.parameter_b.shape))
    return joined


def attach_adapter(
    method: Method,
    options: MethodOptions,
    base: PreTrainedModel,
    config: LoraConfig,
    *,
    seed: int,
    folder: Path,
    general: Any = None,
    collate: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
) -> Adapter:
    """A new adapter of the method's kind.

    Args:
        method, options: what to make.
        base: the base model, freshly loaded; it is changed.
        config: the recipe's LoRA.
        seed: of the adapter's random values.
        folder: where an adapter that needs its beginning to be saved keeps it.
        general, collate: rows of general text and what makes a batch of them, for CorDA.

    Raises:
        ALoRAError: the adapter does not fit the model.
    """
    set_seed(seed)
    if method.needs_plain_base and getattr(base, "is_quantized", False):
        raise ALoRAError(
            f"{method.name} takes the base weights apart, which are quantised here: leave model.quantization out"
        )
    try:
        return method.attach(base, config, options=options.own, folder=folder, general=general, collate=collate)
    except (TypeError, ValueError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(f"the adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error
