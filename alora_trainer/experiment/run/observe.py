"""What a run observes beside its steps: how a training gets on, and whether the recording text knows the test items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alora_trainer.artefact.files import CONFIG_FILE
from alora_trainer.artefact.map_folder import present_folder
from alora_trainer.basics.files import read_json
from alora_trainer.data.general import pack_general_text
from alora_trainer.data.overlap import decoded_documents, find_overlap
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.evaluation.learning_curve import LearningCurve
from alora_trainer.evaluation.trainer_metrics import choice_rows
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.general_text import text_to_train


def learning_curve(
    recipe: Recipe,
    trainer: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    general: Mapping[str, Path],
    test: Path,
    folder: Path,
) -> LearningCurve:
    """A callback that measures general perplexity and domain accuracy while `trainer` trains (`evaluation.learning_curve`).

    Args:
        recipe: with ``evaluation.curve_steps``.
        trainer: of the domain.
        tokenizer: the base model's.
        general: the held-out general text, by subset.
        test: the domain's test items.
        folder: the callback's own.
    """
    evaluation, task = recipe.evaluation, get_task(recipe.domain.task)
    assert evaluation.curve_steps is not None
    length, items = recipe.general.block_length, evaluation.curve_items
    blocks = pack_general_text(
        {name: str(path.resolve()) for name, path in general.items()},
        tokenizer,
        block_length=length,
        max_tokens=evaluation.curve_blocks * length,
        seed=recipe.seed,
    )
    rows = None
    if task.choices is not None:
        # Not the domain's max_length: training may leave out what is too long for it, an evaluation may not.
        context = evaluation.max_length or getattr(trainer.model.config, "max_position_embeddings", None)
        rows = choice_rows(task, test, tokenizer, max_length=context or recipe.domain.max_length, items=items)
    return LearningCurve(trainer, every=evaluation.curve_steps, general=blocks, domain=rows, folder=folder)


def probe_history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a training's log says of its general probe, one entry for each time that it was evaluated."""
    kept = (
        *("step", "probe_loss", "probe_rise", "probe_rise_error", "lam", "final_pull"),
        *("predicted_rise", "calibrated_rise", "measured_rise", "calibration"),
    )
    return [{key: log[key] for key in kept if key in log} for log in log_history if "probe_loss" in log]


def recorded_overlap(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, test: Path, record: Path) -> dict[str, Any]:
    """Runs of words that the recording text shares with the test items (`data.overlap`).

    Args:
        recipe: the recipe.
        tokenizer: the base model's.
        test: the domain's test items.
        record: the folder of the finished recording.
    """
    task = get_task(recipe.domain.task)
    items = {
        number: [task.prompt(doc), *(task.choices(doc) if task.choices is not None else [task.completion(doc)])]
        for number, doc in enumerate(read_lines(test))
    }
    blocks = (row["input_ids"] for row in text_to_train(recipe, tokenizer, record))
    tokens = read_json(present_folder(record / "map") / CONFIG_FILE)["tokens"] if recipe.general.streaming else None
    return find_overlap(decoded_documents(blocks, tokenizer, tokens), items)
