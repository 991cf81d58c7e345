"""What the numbers in results.json mean: they travel with them."""

from __future__ import annotations

from alora_trainer.basics.scores import metric_definitions
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.recipe import Recipe

_OVERLAP = "items with a run of 13 words in one of their texts that the recording text has, too"


def definitions(recipe: Recipe) -> dict[str, str]:
    """Metric -> what it is, and what has to be known of the tasks' items where they are the Hub's."""
    tasks = [(domain, get_task(domain.task)) for domain in recipe.domains or (recipe.domain,)]
    notes = {
        f"split of {task.name}": task.test_note
        for domain, task in tasks
        if task.test_note is not None and domain.reads_hub_of(task, "test")
    }
    return metric_definitions() | {"overlap": _OVERLAP} | notes
