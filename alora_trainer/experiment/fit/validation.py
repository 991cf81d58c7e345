"""Items of what is learned that are neither trained on nor in the test: to see by whether something is learned better."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from alora_trainer.data.domain import tokenize_domain
from alora_trainer.data.items import convert_records, split_records
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.penalty.strength.probe import Probe

VALIDATION = "validation.jsonl"
# A tenth of the training items, 200 at most; none where that were too few to see anything by.
_SHARE, _FEWEST, _MOST = 10, 50, 200


def with_validation(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training items without those whose question is in the validation, and the validation; it is empty for few items."""
    if len(records) < _SHARE * _FEWEST:
        return records, []
    return without_questions(*split_records(records, by="item", items=min(len(records) // _SHARE, _MOST)))


def without_questions(
    train: list[dict[str, Any]], validation: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Both, without the training items that ask what the validation asks."""
    asked = {record["item"] for record in validation}
    return [record for record in train if record["item"] not in asked], validation


def validation_probe(recipe: Recipe, path: Path, tokenizer: Any) -> Probe | None:
    """The likelihood of the right answers of the items in `path`; None where there is no such file.

    Args:
        recipe: of the training, which the items are made into tokens as for.
        path: the items.
        tokenizer: the base model's.
    """
    if not path.exists():
        return None
    domain, task = recipe.domain, get_task(recipe.domain.task, tokenizer)
    with tempfile.TemporaryDirectory(prefix="alora-fit-") as folder:
        items = Path(folder) / VALIDATION
        write_lines(items, convert_records(read_lines(path), task))
        rows = tokenize_domain(
            task,
            items,
            tokenizer,
            max_length=domain.max_length,
            loss_on=domain.loss_on,
            too_long=domain.too_long,
        )
    return Probe(rows, int(recipe.curvature.batch_size))
