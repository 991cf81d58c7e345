"""A recipe as one method's training on one domain goes by it: where it starts, and what cannot be begun."""

from __future__ import annotations

import dataclasses

from peft import LoraConfig

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom


def check_one_domain(recipe: Recipe) -> None:
    """Raise ALoRAError for a recipe with several domains."""
    if recipe.domains:
        raise ALoRAError("a recipe with several domains is run as a whole: alora run RECIPE")


def watches_probe(recipe: Recipe) -> bool:
    """Whether a protected training by this recipe watches its loss on general text."""
    return recipe.alora.budget is not None or recipe.general.probe is not None


def as_trained(recipe: Recipe, method: Method, *, later: bool = False) -> Recipe:
    """The recipe as a method's training on a domain goes by it.

    Args:
        later: on the second of several domains, or a later one. All that was learned before is an adapter of the bare base
            model by then, and the training cannot but go on from it: to begin on the bare base anew would be to forget it.

    Raises:
        ALoRAError: the recipe and the method do not go together.
    """
    own = recipe.for_method(method)
    if later and starts_fresh(own) and not over_merged(own):
        own = dataclasses.replace(own, alora=dataclasses.replace(own.alora, start=StartFrom.RECORDED.value))
    if method.penalty and over_merged(own) and method.parameterization is Parameterization.ADAPTER:
        for which in (recipe.lora_config(), own.lora_config(fresh=True)):
            check_joinable(which)
    return own


def check_joinable(adapter: LoraConfig) -> None:
    """Raise ALoRAError for an adapter that cannot be joined with another: it is more than LoRA factors."""
    if adapter.modules_to_save or adapter.bias != "none":
        raise ALoRAError(
            "a new adapter over the merged base cannot be joined with the recorded one if either trains modules_to_save or "
            "biases: leave these out of lora and fresh_lora, or set alora.start to bare"
        )


def starts_fresh(recipe: Recipe) -> bool:
    """Whether a protected training by this recipe trains a new adapter."""
    return recipe.alora.start_from is not StartFrom.RECORDED


def over_merged(recipe: Recipe) -> bool:
    """Whether that new adapter is put on the base model with the recorded one merged into it."""
    return recipe.alora.start_from is StartFrom.MERGED
