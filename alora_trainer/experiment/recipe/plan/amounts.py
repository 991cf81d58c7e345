"""How much there is to do: items, steps and tokens of every stage, from the recipe and from what is on this disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from alora_trainer.data.sources import hub_settings, stream_records
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.penalty.strength.schedule import looks


@dataclass(frozen=True)
class Amount:
    """One stage.

    Attributes:
        items: training items or blocks, None where only the data could tell.
        steps: optimizer steps, None where only the data could tell.
        micro_batches: passes of a step.
        batch_size: sequences of a pass.
        length: tokens of a sequence, at most.
    """

    items: int | None
    steps: int | None
    micro_batches: int
    batch_size: int
    length: int

    @property
    def tokens(self) -> int | None:
        """Tokens of all steps, padding to `length` included."""
        return None if self.steps is None else self.steps * self.micro_batches * self.batch_size * self.length

    def shortened(self, share: float) -> Amount:
        """With so large a share of the steps, one at least."""
        return self if self.steps is None else replace(self, steps=max(1, round(share * self.steps)))


def training_amount(recipe: Recipe, section: str, items: int | None, length: int, *, processes: int = 1) -> Amount:
    """What the training of `section` ("record" or "tune") does with so many items of at most `length` tokens.

    Args:
        processes: that share the items: steps and tokens are those of each.
    """
    arguments = recipe.training_arguments(section, ".", anywhere=True)
    size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    if arguments.max_steps > 0:
        steps: int | None = arguments.max_steps
    elif items is None:
        steps = None
    else:
        steps = math.ceil(arguments.num_train_epochs * math.ceil(math.ceil(items / (size * processes)) / accumulation))
    return Amount(items, steps, accumulation, size, length)


def domain_items(recipe: Recipe) -> tuple[int | None, int | None]:
    """(training items, test items); local files are counted, the built-in tasks' Hub data sets are known."""
    domain = recipe.domain
    if domain.source is not None:
        total = _count(recipe, "train")
        held = int(dict(domain.holdout or {})["items"])
        train: int | None = None if total is None else total - held
        test: int | None = held
    else:
        train, test = _count(recipe, "train"), _count(recipe, "test")
    return _least(train, domain.train_items), _least(test, domain.test_items)


def evaluation_tokens(recipe: Recipe, test_items: int | None, general: int | None) -> int | None:
    """Tokens that one evaluation reads, about: the general text's, and every choice of every item at its full length.

    Args:
        test_items: None where only the data could tell.
        general: tokens of the general text to test on, None likewise.
    """
    if general is None or test_items is None:
        return None
    return general + test_items * _choices(recipe) * recipe.domain.max_length


def watched_tokens(recipe: Recipe, method: Method, steps: int) -> int:
    """Tokens of general text that a protected training of so many steps looks at in all, to steer its strength.

    Args:
        recipe: as it is `for_method`.
    """
    if not (method.penalty and recipe.watches_general_text):
        return 0
    by_curvature = method.measured is not None and method.measured.is_curvature
    calibrates = by_curvature and recipe.alora.budget is not None
    return looks(steps, recipe.alora.probe_steps, calibrates=calibrates) * recipe.general.probe_tokens


def _count(recipe: Recipe, split: str) -> int | None:
    source, task = recipe.domain.read(split), get_task(recipe.domain.task)
    if hub_settings(source) is None:
        return sum(1 for _ in stream_records(source, base=recipe.base))
    return task.hub_items.get(split) if recipe.domain.reads_hub_of(task, split) else None


def _choices(recipe: Recipe) -> int:
    """Answers that are scored of an item: as the task says, or as the first item of a local test has them."""
    task = get_task(recipe.domain.task)
    source = recipe.domain.source if recipe.domain.source is not None else recipe.domain.read("test")
    if task.choice_count is not None or task.choices is None or hub_settings(source) is not None:
        return task.choice_count or 1
    for record in stream_records(source, base=recipe.base):
        try:
            return len(task.choices(task.convert(record)))
        except ALoRAError:  # one that `domain.unfit: drop` leaves out, or that a run refuses
            continue
    return 1


def _least(count: int | None, limit: int | None) -> int | None:
    return limit if count is None else count if limit is None else min(count, limit)
