"""Where a training on a domain starts, and what adapter comes out of it: always one for the bare base model."""

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
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method, MethodOptions
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, with_fresh_adapter, with_saved_adapter
from alora_trainer.experiment.run.training_recipe import over_merged, starts_fresh
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.parameterization import Parameterization


def protected_start(recipe: Recipe, method: Method, learned: Path) -> PeftModel:
    """The model that a protected training starts with, as the recipe's `alora.start` says.

    Args:
        recipe: as the method trains by it.
        method: what is trained.
        learned: the adapter of the bare base model that holds all that was learned so far: that of an importance map, or what
            the domain before left behind.

    Raises:
        ALoRAError: the base model, that adapter or the new one do not fit each other.
    """
    base = load_base(recipe)
    if not starts_fresh(recipe):
        return with_saved_adapter(base, learned, trainable=True)
    if over_merged(recipe):
        base = with_saved_adapter(base, learned, trainable=False).merge_and_unload()
    return with_fresh_adapter(base, recipe, protected=True, method=method)


def full_start(recipe: Recipe, map_folder: Path) -> PreTrainedModel:
    """The whole model that a full tuning starts with: the base model with the map's theta* for its weights.

    Raises:
        ALoRAError: there is no such map, or it is of an adapter.
    """
    model = load_base(recipe)
    load_reference(model, ImportanceMap.from_pretrained(map_folder))
    return model


def starting_model(
    recipe: Recipe,
    method: Method,
    options: MethodOptions,
    *,
    importance: Path | None,
    learned: Path | None,
    folder: Path,
    general: Any,
    collate: Any,
    domain: Any = None,
) -> Adapter:
    """The model that a training on a domain starts with, and how what it learns is saved: for the bare base model.

    Args:
        recipe: as the method trains by it.
        method, options: what to train.
        importance: the map that it starts from or is held by; None for a method that has none.
        learned: the adapter that the domain before left behind; None on the first.
        folder: of the training.
        general: rows of general text, for an adapter that looks at some.
        collate: makes a batch of rows.
        domain: the rows that the domain is trained with, for an adapter that looks at some.
    """
    if method.parameterization is Parameterization.FULL:
        assert importance is not None
        return Adapter.plain(full_start(recipe, importance))
    before = learned or importance
    if method.penalty:
        assert before is not None
        model = protected_start(recipe, method, before)
        return Adapter(model, lambda target: save_protected(model, recipe, before, target))
    if before is not None:
        return Adapter.plain(with_saved_adapter(load_base(recipe), before, trainable=True))
    return attach_adapter(
        method,
        options,
        load_base(recipe),
        recipe.lora_config(),
        seed=recipe.seed,
        folder=folder,
        general=general,
        collate=collate,
        domain=domain,
    )


def save_protected(model: PeftModel, recipe: Recipe, learned: Path, folder: Path) -> None:
    """Save what `protected_start` and a training made as an adapter of the bare base model.

    A new adapter over the merged base is joined with the one that was merged, ``s* B* A* + s B A``, which is an adapter whose
    rank is the sum of both; `training_recipe.check_start` has seen to it that neither is more than that.
    """
    if not over_merged(recipe):
        model.save_pretrained(str(folder))
        return
    before = with_saved_adapter(load_base(recipe), learned, trainable=True)
    join_adapters([before, model], load_base(recipe)).save_pretrained(str(folder))


def join_adapters(models: list[PeftModel], base: torch.nn.Module) -> PeftModel:
    """`base` with one adapter whose movement of every weight is the sum of those of the models' adapters.

    Args:
        models: of one architecture, each with a trainable LoRA adapter; ranks and target modules may differ.
        base: the base model to put it on.
    """
    by_name: dict[str, list[AdaptedWeight]] = {}
    for model in models:
        for weight in adapted_weights(model):
            by_name.setdefault(weight.name, []).append(weight)
    ranks = {name: sum(weight.rank for weight in weights) for name, weights in by_name.items()}
    common = max(ranks.values())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=common,
        lora_alpha=common,
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != common},
        alpha_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != common},
        target_modules=list(by_name),
        fan_in_fan_out=any(model.peft_config["default"].fan_in_fan_out for model in models),
    )
    joined = get_peft_model(base, config)
    for weight in adapted_weights(joined):
        # alpha is the rank, so that the joined scaling is 1 and their own go into B.
        a = torch.cat([one.a for one in by_name[weight.name]], dim=0)
        b = torch.cat([one.b * one.scaling for one in by_name[weight.name]], dim=1)
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
    domain: Any = None,
) -> Adapter:
    """A new adapter of the method's kind.

    Args:
        method, options: what to make.
        base: the base model, freshly loaded; it is changed.
        config: the recipe's LoRA.
        seed: of the adapter's random values.
        folder: where an adapter that needs its beginning to be saved keeps it.
        general, collate, domain: rows of general text, what makes a batch, and rows of the domain; see `AdapterInputs`.

    Raises:
        ALoRAError: the adapter does not fit the model.
    """
    set_seed(seed)
    if method.needs_plain_base and getattr(base, "is_quantized", False):
        raise ALoRAError(
            f"{method.name} takes the base weights apart, which are quantised here: leave model.quantization out"
        )
    method.configure(base, config)
    try:
        return method.attach(base, config, AdapterInputs(options.own, folder, general, collate, domain))
    except (TypeError, ValueError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(f"the adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error
