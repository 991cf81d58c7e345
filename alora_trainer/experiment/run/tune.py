"""The training on a domain, of whatever method: where it starts, what holds it, what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics.files import remove_folder
from alora_trainer.basics.processes import is_main
from alora_trainer.data.domain import collator, tokenize_domain
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.drift import StartingPoint
from alora_trainer.experiment.run.facts import cost_facts, domain_facts, tuned_on
from alora_trainer.experiment.run.general_text import text_of_its_own, text_to_train, text_to_watch
from alora_trainer.experiment.run.held_map import held_map, left_map, to_be_added_to
from alora_trainer.experiment.run.models import load_base, release_memory
from alora_trainer.experiment.run.observe import learning_curve, probe_history
from alora_trainer.experiment.run.prepare import PreparedData
from alora_trainer.experiment.run.start import starting_model
from alora_trainer.experiment.run.train import train
from alora_trainer.experiment.run.training_recipe import as_trained, recorded_adapter
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.publishing import save_protected_adapter


@dataclass(frozen=True)
class Beginning:
    """What a training on a domain goes on from.

    Attributes:
        importance: the map (a folder) that it starts from or is held by; None for a method that has none.
        learned: the adapter (a folder) that the domain before left behind; None on the first.
        sampled: the folder that keeps general text which was sampled from the base model; None is the training's own.
    """

    importance: Path | None = None
    learned: Path | None = None
    sampled: Path | None = None


def tune(
    recipe: Recipe,
    method: Method,
    beginning: Beginning,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    records: bool = False,
) -> dict[str, Any]:
    """Train a method on a domain, saving ``folder/adapter``, an adapter of the bare base model (or a whole model).

    Args:
        recipe: with the one domain.
        method: what to train.
        beginning: what it goes on from.
        data: the files of the domain.
        tokenizer: the base model's.
        folder: of the training; it goes on where it was stopped there.
        records: record importance, too, and leave as ``folder/map`` that of all that was learned so far, for the next domain.

    Returns:
        seconds, peak_bytes, loss, steps and history of the training (see `train`); drift, how far it moved every adapted
        weight; and probe, if general text was watched.

    Raises:
        ALoRAError: the recipe, the method and the map do not go together.
    """
    recorded = recorded_adapter(beginning.importance if method.needs_recording else None)
    own = as_trained(recipe, method, later=beginning.learned is not None, recorded=recorded)
    trainer, adapter, held = _trainer(own, method, beginning, data, tokenizer, folder, records)
    if own.evaluation.curve_steps is not None:
        curve = learning_curve(own, trainer, tokenizer, general=data.general, test=data.test, folder=folder / "curve")
        trainer.add_callback(curve)
    before = StartingPoint(adapter.model)
    outcome = train(trainer) | {"drift": before.drift()}
    if held is not None and own.watches_general_text:
        outcome["probe"] = probe_history(trainer.state.log_history)
    if is_main():
        _save(own, method, trainer, adapter, folder, held)
        if held is not None and records:
            _save_map(own, trainer, outcome, folder, held)
    del trainer, adapter, before, held
    release_memory()
    return outcome


def _trainer(
    recipe: Recipe,
    method: Method,
    beginning: Beginning,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    records: bool,
) -> tuple[Any, Adapter, ImportanceMap | None]:
    """The method's trainer, ready to train; the model in it, and how that is saved; the map that holds it, if any does."""
    options, collate = recipe.options(method), collator(tokenizer)
    items = _items(recipe, data, tokenizer)
    general = _general_rows(recipe, method, tokenizer, folder) if method.needs_general_text else None
    adapter = starting_model(
        recipe,
        method,
        options,
        importance=beginning.importance,
        learned=beginning.learned,
        folder=folder,
        general=general,
        collate=collate,
        domain=items if method.needs_domain_items else None,
    )
    held, settings = _holding(recipe, method, beginning, records)
    watched = None
    if held is not None and recipe.watches_general_text:
        watched = text_to_watch(recipe, tokenizer, beginning.sampled or folder)
    trainer = method.make_trainer(
        options=options.own,
        importance=to_be_added_to(held, adapter.model, recipe) if held is not None and records else held,
        alora=settings,
        probe_dataset=watched,
        general=general,
        model=adapter.model,
        args=recipe.training_arguments("tune", folder / "checkpoints"),
        train_dataset=items,
        data_collator=collate,
    )
    return trainer, adapter, held


def _items(recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerBase) -> Any:
    domain = recipe.domain
    return tokenize_domain(
        get_task(domain.task),
        data.train,
        tokenizer,
        max_length=domain.max_length,
        loss_on=domain.loss_on,
        too_long=domain.too_long,
    )


def _general_rows(recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Any:
    if method.samples_text:
        return text_of_its_own(recipe, tokenizer, folder, *method.own_text(recipe.options(method).own))
    if recipe.general.streaming:
        raise ALoRAError(f"{method.name} draws general text in an order of its own: set general.streaming to false")
    return text_to_train(recipe, tokenizer, folder)


def _holding(
    recipe: Recipe, method: Method, beginning: Beginning, records: bool
) -> tuple[ImportanceMap | None, ALoRAConfig | None]:
    """The map that holds the training, and the settings of that; a domain is recorded to the end of its training."""
    if not method.penalty:
        return None, None
    assert beginning.importance is not None
    held = held_map(recipe, method, beginning.importance, beginning.learned, added_to=records)
    if records:
        return held, replace(recipe.alora, record_tokens=None)
    return held, replace(recipe.alora, record=None)


def _save(
    recipe: Recipe, method: Method, trainer: Any, adapter: Adapter, folder: Path, held: ImportanceMap | None
) -> None:
    target = folder / ("adapter_as_trained" if method.finishes else "adapter")
    adapter.save(target)
    if held is not None:
        # What was saved is for the bare base, wherever the training started (see `start.save_protected`).
        save_protected_adapter(trainer, target, data=tuned_on(recipe), over_merged=False)
    if method.finishes:
        finished = folder / "adapter"
        if finished.exists():  # of a process that was stopped before it could say so
            remove_folder(finished)
        method.finish(target, finished, recipe.options(method).own, lambda: load_base(recipe))


def _save_map(recipe: Recipe, trainer: Any, outcome: dict[str, Any], folder: Path, held: ImportanceMap) -> None:
    left = left_map(trainer.recorded_importance, held, recipe, folder / "adapter")
    left = left.with_info(data=domain_facts(recipe), cost=cost_facts(outcome, trainer.args.device))
    left.save_pretrained(folder / "map", storage=recipe.map.storage_of(left.kind))
