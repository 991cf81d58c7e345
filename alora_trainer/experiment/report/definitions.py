"""What the numbers in results.json mean: they travel with them."""

from __future__ import annotations

from alora_trainer.basics.scores import metric_definitions
from alora_trainer.data.tasks import BUILT_IN
from alora_trainer.experiment.recipe.recipe import Recipe

_OVERLAP = "items with a run of 13 words in one of their texts that the recording text has, too"


def definitions(recipe: Recipe) -> dict[str, str]:
    """Metric -> what it is, and what has to be known of the recipe's task."""
    found = metric_definitions() | {"overlap": _OVERLAP}
    task = recipe.domain.task
    name = task if isinstance(task, str) else str(task.get("name"))
    note = next((one.test_note for known, one in BUILT_IN.items() if one.test_note and name.startswith(known)), None)
    return found if note is None else found | {f"split of {name}": note}
