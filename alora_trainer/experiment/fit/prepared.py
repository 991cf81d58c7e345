"""A fit before anything is computed: the data looked at, the recipe written in memory, and what it will take."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from alora_trainer.evaluation.lm_tasks import check_task_names
from alora_trainer.experiment.fit.draft import commented, draft, skeleton
from alora_trainer.experiment.fit.earlier import with_earlier
from alora_trainer.experiment.fit.files import write_general, write_items
from alora_trainer.experiment.fit.findings import Findings
from alora_trainer.experiment.fit.general_parts import PARTS
from alora_trainer.experiment.fit.look import look
from alora_trainer.experiment.fit.probing import Candidate
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.fit.set_aside import as_it_lies
from alora_trainer.experiment.recipe.plan.devices import get_device
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.general_amounts import GeneralText
from alora_trainer.experiment.recipe.plan.report import format_plan
from alora_trainer.experiment.recipe.reading import build_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_tokenizer
from alora_trainer.experiment.run.run import check_single_process

# Settings whose comments say why they are as the draft has them.
_REASONED = frozenset({"methods", "tune.learning_rate", "domain.max_length"})


@dataclass(frozen=True)
class Prepared:
    """A fit before anything is computed.

    Attributes:
        found: what the data are.
        tokenizer: the base model's.
        written: the recipe as plain data.
        head: the comment at its beginning.
        folder: of the result, which its paths start from.
        decided: settings that the draft's own comments are not true of.
        sampled: how much general text is going to be sampled from the model; None where it is given.
    """

    found: Findings
    tokenizer: Any
    written: Mapping[str, Any]
    head: str
    folder: Path
    sampled: GeneralText | None = None
    decided: frozenset[str] = frozenset()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, checked."""
        return build_recipe(self.written, base=self.folder)

    @property
    def text(self) -> str:
        """The recipe as a file with comments."""
        return commented(self.written, self.head, self.decided)

    def chosen(self, best: Candidate) -> Prepared:
        """The same with what short trainings found."""
        found = {"methods": ["base", best.method], "tune": {**self.written["tune"], "learning_rate": best.rate}}
        head = f"{self.head}\nMethod and learning rate by short trainings."
        return replace(
            self, written={**self.written, **found}, head=head, decided=self.decided | {"tune.learning_rate"}
        )


def prepare(request: FitRequest) -> Prepared:
    """Look at the data and write the recipe, in memory alone.

    Raises:
        ALoRAError: something that is asked for cannot be used; the message says what to do.
    """
    check_single_process()
    check_task_names(request.kept_tasks, request.task_folder)
    first = skeleton(request)
    tokenizer = load_tokenizer(first)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _context(first))
    found = look(request, tokenizer)
    written = draft(request, found, first, context=tokenizer.model_max_length)
    head = f"Written by `alora fit` or `alora init` for {', '.join(Path(one).name for one in request.data)}.\n{_counts(found)}"
    prepared = Prepared(
        found,
        tokenizer,
        written,
        head,
        request.output_dir,
        sampled=_sampled(request, found),
        decided=_REASONED & set(request.overrides),
    )
    _ = prepared.recipe
    return prepared


def planned(request: FitRequest) -> Prepared:
    """What `run_fit` would begin with; nothing is written.

    Raises:
        ALoRAError: as `prepare`.
    """
    request.check_overrides_of_fit()
    return prepare(with_earlier(as_it_lies(request)))


def _sampled(request: FitRequest, found: Findings) -> GeneralText | None:
    if found.general:
        return None
    return GeneralText(*(int(PARTS[part] * request.general_tokens) for part in ("record", "promise")))


def plan_text(prepared: Prepared, device: str = "probe") -> str:
    """What the fit will take, as `alora plan` says it."""
    with tempfile.TemporaryDirectory(prefix="alora-fit-") as folder:
        write_items(prepared.found, Path(folder) / "data")  # a plan counts them
        write_general(prepared.found.general, Path(folder) / "data")
        here = {key: _within(folder, prepared.written[key]) for key in ("general", "domain")}
        recipe = build_recipe({**prepared.written, **here}, base=prepared.folder)
        return format_plan(plan_recipe(recipe, get_device(device), general=prepared.sampled))


def _within(folder: str, written: Any) -> Any:
    """A part of the recipe with the files that a fit writes in another folder; what was overridden stays where it is."""
    if isinstance(written, Mapping):
        return {key: _within(folder, one) for key, one in written.items()}
    return f"{folder}/{written}" if isinstance(written, str) and written.startswith("data/") else written


def _context(recipe: Recipe) -> int:
    """The longest sequence that the model takes."""
    config = AutoConfig.from_pretrained(recipe.model_source, revision=recipe.model.revision)
    return int(getattr(config, "max_position_embeddings", None) or 10**9)


def _counts(found: Findings) -> str:
    used = found.facts()
    return (
        f"{used['train_items']} items to learn, {used['test_items']} to test ({'held out' if used['held_out'] else 'as given'})"
        f"; {used['duplicates']} duplicates left out."
    )
