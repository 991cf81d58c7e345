"""The data of a recipe, opened: what a run would refuse of it is refused by its plan."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alora_trainer.data.answers import check_answers
from alora_trainer.data.chat import is_chat
from alora_trainer.data.domain import prepare_domain
from alora_trainer.data.general import SELF
from alora_trainer.data.sources import check_text, hub_settings, source_name, stream_records
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.plan.general_amounts import local_tokenizer
from alora_trainer.experiment.recipe.recipe import Recipe

_DOCUMENTS = 100  # of each source of general text that are read: a corpus may be large


def check_data(recipe: Recipe) -> list[str]:
    """Read every local source as a run would: all items of the domains, and the first documents of general text.

    Items are converted and, where the tokenizer is a local one, encoded as they are scored. Nothing is downloaded.

    Returns:
        What there is, and what was not looked at, in lines.

    Raises:
        ALoRAError: a file is missing or cannot be read, an item does not fit its task, or there is nothing left to train on.
    """
    tokenizer = local_tokenizer(recipe)
    lines = [_domain_line(one, tokenizer) for one in recipe.each_domain()]
    for key in ("train", "test", "probe"):
        named: Any = getattr(recipe.general, key)
        if isinstance(named, Mapping):
            lines.append(f"general.{key}: {', '.join(_text_parts(named, recipe.base))}")
        elif named == SELF:
            lines.append(f"general.{key}: sampled from the base model")
    return lines


def _domain_line(recipe: Recipe, tokenizer: Any) -> str:
    domain, name = recipe.domain, get_task(recipe.domain.task).name
    sources = [domain.source] if domain.source is not None else [domain.read("train"), domain.read("test")]
    far = [source for source in sources if hub_settings(source) is not None]
    if far:
        return f"{name}: not looked at, as a plan downloads nothing: {', '.join(f'hub:{_hub(one)}' for one in far)}"
    if is_chat(domain.task) and tokenizer is None:
        return f"{name}: not looked at, as conversations need the model's chat template, and a plan downloads nothing"
    with tempfile.TemporaryDirectory(prefix="alora-plan-") as folder:
        files = prepare_domain(
            domain,
            base=recipe.base,
            folder=folder,
            seed=recipe.seed,
            tokenizer=tokenizer if is_chat(domain.task) else None,
        )
        if tokenizer is not None:
            task = get_task(domain.task)
            check_answers(task, files.train, tokenizer, choices=False)
            check_answers(task, files.test, tokenizer, choices=True)
    found = files.report
    left_out = (
        [f"{found['dropped_in_test']} more are in the test set, and left out"] if found["dropped_in_test"] else []
    )
    if found.get("unfit_items"):
        left_out.append(f"{found['unfit_items']} items do not fit the task, and are left out")
    counted = f"{name}: {found['train_items']} training items, {found['test_items']} test items"
    return "; ".join([counted, *left_out])


def _hub(source: Any) -> str:
    settings = hub_settings(source)
    assert settings is not None  # asked for before
    return settings["hub"]


def _text_parts(named: Mapping[str, Any], base: Path) -> Iterator[str]:
    for name, source in named.items():
        if hub_settings(source) is not None:
            yield f"{name} (hub:{_hub(source)}, not looked at)"
            continue
        rows = list(itertools.islice(stream_records(source, base=base, text_only=True), _DOCUMENTS))
        if not any(check_text(row).strip() for row in rows):
            raise ALoRAError(f"{source_name(source)} begins with nothing but blank documents: give a source with text")
        yield name
