"""A recipe as one method's training on one domain goes by it: where it starts, and what cannot be begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from peft import LoraConfig

from alora_trainer.artefact.adapter_file import checked_adapter_config
from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, read_json
from alora_trainer.artefact.scaled_adapter import refuse_out_of_proportion
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.importance.recording.measured import Measured
from alora_trainer.penalty.anchor import check_anchor
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.weights.adapter_settings import (
    more_than_factors,
    not_base_without,
    not_loaded_as_trained,
    not_made_by_config,
    not_scored,
)
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom


def check_one_domain(recipe: Recipe) -> None:
    """Raise ALoRAError for a recipe with several domains."""
    if recipe.domains:
        raise ALoRAError("a recipe with several domains is run as a whole: alora run RECIPE")


def as_trained(recipe: Recipe, method: Method, *, later: bool = False, recorded: LoraConfig | None = None) -> Recipe:
    """The recipe as a method's training on a domain goes by it.

    Args:
        later: on the second of several domains, or a later one. All that was learned before is an adapter of the bare base
            model by then, and the training cannot but go on from it: to begin on the bare base anew would be to forget it.
        recorded: the adapter of a map that is given; None where the recipe records its own.

    Raises:
        ALoRAError: the recipe and the method do not go together, or the adapter that would be saved would not be what was
            trained.
    """
    own = recipe.for_method(method)
    if later and starts_fresh(own) and not over_merged(own):
        goes_on = dataclasses.replace(own.alora, start=StartFrom.RECORDED.value, init_adapter=DEFAULT)
        own = dataclasses.replace(own, alora=goes_on)
    if method.trains and method.parameterization is Parameterization.ADAPTER:
        _check_adapters(own, method, recipe.lora_config() if recorded is None else recorded, given=recorded is not None)
    return own


def as_planned(recipe: Recipe, method: Method, *, recording: bool) -> Recipe:
    """`as_trained` before anything is made or fetched: of a map that is given, the adapter is its own, and not looked at yet.

    Args:
        recording: whether the recording that methods share is made; where it is not, a map is given in its place.
    """
    given = method.needs_recording and not method.records_alone and not recording
    return as_trained(recipe, method, recorded=LoraConfig() if given else None)


def _check_adapters(own: Recipe, method: Method, recorded: LoraConfig, *, given: bool) -> None:
    """Whether the adapters of a training are what it takes them for.

    Args:
        own: as the method trains by it.
        recorded: the adapter that recording leaves behind; `given` if it is there already.
    """
    fresh = own.lora_config(fresh=method.penalty)
    scaled = method.can_be_scaled and (bool(own.evaluation.scales) or method.scales_itself)
    makes_one = not method.needs_recording or (method.penalty and starts_fresh(own))
    if method.needs_recording:
        check_saved(recorded, "the recorded adapter", given=given)
        if scaled:
            refuse_out_of_proportion(recorded, "the recorded adapter")
    if makes_one:
        check_saved(fresh, "lora", given=False)
        method.check_config(fresh)
        if scaled:
            refuse_out_of_proportion(fresh, "the adapter of the recipe's lora")
    if method.measured is not None and method.places_itself:
        _check_measured_where_placed(own, method, method.measured)
    if method.penalty and own.alora.init_adapter != DEFAULT:
        _check_first_directions(own, method, makes_one=makes_one, given=given)
    if method.compares_with_base and (reason := not_base_without(fresh)):
        raise ALoRAError(
            f"lora.{reason}, and {method.name} takes the model without its adapter for the base model: leave it out of lora"
        )
    if method.penalty:
        # What is measured is of the base model's own weights, whatever adapter the domain is trained with.
        held = recorded if method.needs_recording else LoraConfig()
        check_start(own.alora.start_from, own.alora.anchor, held, fresh if makes_one else None)


def _check_measured_where_placed(own: Recipe, method: Method, measured: Measured) -> None:
    """Refuse, before it is measured, importance of other weights than those that a method adapts by itself."""
    if getattr(own, measured.section).weights != "all" and own.lora.get("target_modules") != "all-linear":
        raise ALoRAError(
            f"{method.name} says itself which weights have an adapter, and importance is measured of those that lora adapts: "
            f"set {measured.section}.weights to all, or lora.target_modules to all-linear"
        )


def _check_first_directions(own: Recipe, method: Method, *, makes_one: bool, given: bool) -> None:
    """Refuse, before anything is recorded for it, a choice of first directions that the training itself would refuse.

    Args:
        makes_one: whether the training makes a new adapter.
        given: the map is given, and says itself what it is of.
    """
    chosen = f"{method.name} with alora.init_adapter={own.alora.init_adapter}"
    if not makes_one:
        raise ALoRAError(
            f"{chosen}: it is for a fresh adapter, and this method goes on with the recorded one: set alora.start to bare, or "
            "leave it out (method_options.NAME.alora sets it for one method alone)"
        )
    curvature = method.measured.is_curvature if method.measured is not None else own.alora.basis is not None
    if not curvature and not given:
        raise ALoRAError(
            f"{chosen}: its importance is of its elements, and directions are chosen by curvature: take kfac, ekfac, "
            "covariance, or a method of first directions (method_options.NAME.alora sets it for one method alone)"
        )


def check_saved(adapter: LoraConfig, what: str, *, given: bool) -> None:
    """Refuse an adapter whose files, on the bare base model, would not be what was trained, or could not be scored.

    Args:
        what: to call it, for the message.
        given: it was made before, however that was done.
    """
    if reason := not_scored(adapter):
        raise ALoRAError(f"{what}: {reason}, so that it could not be scored: leave this setting out")
    reason = not_loaded_as_trained(adapter) or (None if given else not_made_by_config(adapter))
    if reason is not None:
        raise ALoRAError(
            f"{what}: {reason}, so that its files alone would not make the model that was trained: leave this setting out"
        )


def check_start(start: StartFrom, anchor: str | None, recorded: LoraConfig, fresh: LoraConfig | None) -> None:
    """Refuse adapters with which a protected training would be held, or saved, as another model than it is.

    Args:
        start, anchor: as `ALoRAConfig` has them.
        recorded: the adapter that was, or will be, recorded.
        fresh: the new one that is trained; None where the recorded one is.

    Raises:
        ALoRAError: naming the setting that is more than LoRA factors.
    """
    if start is StartFrom.MERGED and fresh is not None:
        for adapter in (recorded, fresh):
            if reason := more_than_factors(adapter):
                raise ALoRAError(
                    f"{reason}, and only LoRA's factors can be joined with those of another adapter, as a new one over the "
                    "merged base is with the recorded one in the end: leave it out of lora and fresh_lora, or set "
                    "alora.start to recorded or bare"
                )
    check_anchor(start, anchor, recorded=recorded, trained=recorded if fresh is None else fresh)


def recorded_adapter(importance: Path | None) -> LoraConfig | None:
    """The configuration of the adapter in a map's folder; None for no map, and for one of a whole model.

    Raises:
        ALoRAError: it is damaged, or no plain adapter's.
    """
    path = None if importance is None else importance / ADAPTER_CONFIG_FILE
    return checked_adapter_config(read_json(path), str(path)) if path is not None and path.is_file() else None


def starts_fresh(recipe: Recipe) -> bool:
    """Whether a protected training by this recipe trains a new adapter."""
    return recipe.alora.start_from is not StartFrom.RECORDED


def over_merged(recipe: Recipe) -> bool:
    """Whether that new adapter is put on the base model with the recorded one merged into it."""
    return recipe.alora.start_from is StartFrom.MERGED
