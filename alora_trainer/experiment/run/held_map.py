"""The importance map that holds a training on a domain, and the one that it leaves for the domains after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alora_trainer.artefact.importance_map import ImportanceMap, as_map
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, with_saved_adapter
from alora_trainer.experiment.run.training_recipe import starts_fresh
from alora_trainer.importance.controls import CONTROLS, control_map
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.theta import AdapterTheta


def held_map(
    recipe: Recipe, method: Method, importance: Path, learned: Path | None, *, added_to: bool
) -> ImportanceMap:
    """The map that holds the method's training, as the method makes it of the one in `importance`.

    Args:
        recipe: as the method trains by it.
        method: what to train.
        importance: a map. What is recorded is, on every domain, the sum so far, at the end of the domain before.
        learned: the adapter that the domain before left behind. What is measured at the base model stays as
            it is; theta*, which `alora.anchor` and the penalty go by, is where the training starts all the same.
        added_to: what the training records is added to the map, which must then be whole on every process.

    Raises:
        ALoRAError: there is no map, or it is damaged.
    """
    control = method.importance if method.importance in CONTROLS else None
    if control is None and (learned is None or method.measured is None):
        own_share = not added_to and recipe.alora.init_adapter == DEFAULT
        return as_map(importance, recipe.alora.storage, own_share=own_share)
    found = ImportanceMap.from_pretrained(importance, storage=recipe.alora.storage)
    if control is not None:
        return control_map(control, found, recipe.seed)
    assert learned is not None
    model = with_saved_adapter(load_base(recipe), learned, trainable=True)
    weights = adapted_weights(model)
    if recipe.alora.missing == "uniform":
        found = found.with_uniform(weights)
    known = [weight for weight in weights if weight.name in found]
    there = map_at_present(model, known, {weight.name: found.stored(weight.name) for weight in known}, found.info)
    return found.with_omega(
        {name: found.stored(name) for name in found},
        theta=AdapterTheta({**found.theta, **there.theta}, there.adapter_state, there.adapter_config),
    )


def to_be_added_to(importance: ImportanceMap, model: Any, recipe: Recipe) -> ImportanceMap:
    """A map of the very weights that `model` adapts, so that what a training of it records can be added.

    Weights that the recording lacks have got the mean, where they are held by it (``alora.missing: uniform``).
    """
    weights = adapted_weights(model)
    if recipe.alora.missing == "uniform":
        importance = importance.with_uniform(weights)
    own = [weight.name for weight in weights if weight.name in importance]
    return importance.select(own) if own and len(own) < len(importance) else importance


def left_map(recorded: ImportanceMap, before: ImportanceMap, recipe: Recipe, adapter: Path) -> ImportanceMap:
    """The importance of all that was learned, at the weights that the next domain starts from.

    Args:
        recorded: what the training was held by and recorded, together, at the end of it.
        before: the whole map that it was held by. Weights that a new adapter does not move keep this importance.
        recipe: as the method trained by it.
        adapter: what was saved for the bare base model. A new adapter over the merged base is one part of that alone, and
            theta* and the base weights that a map is recognised by are those of the whole.
    """
    if not starts_fresh(recipe):
        return recorded
    model = with_saved_adapter(load_base(recipe), adapter, trainable=True)
    weights = adapted_weights(model)
    before = before.convert(recorded.storage)
    omega = {w.name: (recorded if w.name in recorded else before).stored(w.name) for w in weights}
    return map_at_present(model, weights, omega, recorded.info)
