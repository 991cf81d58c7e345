"""The evaluation of one model on general text and on the domains of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alora_trainer.basics.scores import Score
from alora_trainer.data.sources import hub_settings
from alora_trainer.data.tasks import get_task
from alora_trainer.evaluation.runner import evaluate_model
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_to_score, release_memory
from alora_trainer.experiment.run.prepare import PreparedData


def evaluate(
    recipes: Sequence[Recipe],
    data: Sequence[PreparedData],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    adapter: str | Path | None,
    model_source: str | None = None,
) -> Score:
    """Score the base model with `adapter` on it (or without any) on general text and on every domain.

    Args:
        recipes: one recipe, each with one of its domains.
        data: the files of these domains; the held-out general text is the same with all of them.
        tokenizer: the base model's.
        folder: for ``samples.jsonl``.
        adapter: a folder or Hub id; or a folder with a whole model that was tuned.
        model_source: another model (a folder or Hub id), such as a merged one, instead of the base model.

    Raises:
        ALoRAError: there is no such adapter or model, or it does not fit.
    """
    recipe = recipes[0]
    device = recipe.training_arguments("tune", folder).device
    model, base = load_to_score(recipe, adapter, model_source, device)
    tasks = [get_task(one.domain.task) for one in recipes]
    folder.mkdir(parents=True, exist_ok=True)
    score = evaluate_model(
        model,
        tokenizer,
        general=data[0].general,
        tasks={task.name: files.test for task, files in zip(tasks, data, strict=True)},
        task_specs=tasks,
        sources={task.name: hub_settings(one.domain.read("test")) for task, one in zip(tasks, recipes, strict=True)},
        config=recipe.evaluation,
        seed=recipe.seed,
        samples_path=folder / "samples.jsonl",
        base=base,
    )
    del model, base
    release_memory()
    return score
