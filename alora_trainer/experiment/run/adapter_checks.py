"""Whether a recipe's adapters fit the base model, asked of its bare shape before the first training begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import adapter_misfit
from alora_trainer.experiment.run.training_recipe import as_planned, starts_fresh
from alora_trainer.weights.parameterization import Parameterization


def check_adapters(recipe: Recipe, methods: Sequence[Method], *, recording: bool) -> None:
    """Put every new LoRA adapter on the base model without any weights.

    Args:
        recipe: the recipe.
        methods: that are trained.
        recording: whether the recording that methods share is made, too.

    Raises:
        ALoRAError: an adapter does not fit the model, such as one of modules that it does not have.
    """
    seen: list[LoraConfig] = []
    for config, method in _adapters(recipe, methods, recording):
        places_itself = method is not None and method.places_itself
        if config in seen and not places_itself:
            continue
        base = _shape(recipe)
        if base is None:
            return
        if method is not None:
            method.configure(base, config)
        seen.append(config)
        with adapter_misfit(), torch.device("meta"):
            get_peft_model(base, config, low_cpu_mem_usage=True)


def _adapters(recipe: Recipe, methods: Sequence[Method], recording: bool) -> Iterable[tuple[LoraConfig, Method | None]]:
    if recording:
        yield recipe.lora_config(), None
    for method in methods:
        own, plain = as_planned(recipe, method, recording=recording), type(method).attach is Method.attach
        if method.parameterization is not Parameterization.ADAPTER or not plain:
            continue  # what puts another adapter on the model looks at its weights
        if method.penalty and starts_fresh(own):
            yield own.lora_config(fresh=True), method
        elif method.starts_from == "fresh":
            yield own.lora_config(), method


def _shape(recipe: Recipe) -> PreTrainedModel | None:
    """The base model without weights; None where they alone can tell what it is."""
    try:
        config = AutoConfig.from_pretrained(recipe.model_source, revision=recipe.model.revision)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception:  # it cannot be loaded, or not without weights: loading it says so, and why
        return None
    return model
