"""The files that a run reads: held-out general text, and the domain's items as evaluation and training read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alora_trainer.data.answers import check_answers
from alora_trainer.data.chat import is_chat
from alora_trainer.data.domain import prepare_domain
from alora_trainer.data.general import write_held_out
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.recipe import Recipe


@dataclass(frozen=True)
class PreparedData:
    """Where the files are.

    Attributes:
        general: the held-out general text, by subset.
        train, test: the domain's items.
        report: what was left out, and why (see `data.domain.prepare_domain`).
    """

    general: Mapping[str, Path]
    train: Path
    test: Path
    report: Mapping[str, Any]

    @classmethod
    def from_outcome(cls, outcome: Mapping[str, Any], root: Path) -> PreparedData:
        """From what `write_data` returned, with the folder that its paths are relative to."""
        return cls(
            general={subset: root / path for subset, path in outcome["general"].items()},
            train=root / outcome["train"],
            test=root / outcome["test"],
            report=outcome["report"],
        )


def write_data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, root: Path) -> dict[str, Any]:
    """Write all of it into `folder`.

    Args:
        recipe: with the one domain.
        tokenizer: the base model's.
        folder: somewhere in `root`.
        root: the run's folder.

    Returns:
        general: path by subset; train, test: paths of the domain's items; report. All paths are relative to `root`.

    Raises:
        ALoRAError: a source cannot be read, or an item cannot be scored by this tokenizer (`each_answer`).
    """
    general = write_held_out(
        recipe.general.test, folder / "general", max_bytes=recipe.general.test_bytes, base=recipe.base
    )
    domain = prepare_domain(
        recipe.domain,
        base=recipe.base,
        folder=folder / "domain",
        seed=recipe.seed,
        tokenizer=tokenizer if is_chat(recipe.domain.task) else None,
    )
    task = get_task(recipe.domain.task)
    # An answer that is no token of its own is known by now.
    check_answers(task, domain.train, tokenizer, choices=False)
    check_answers(task, domain.test, tokenizer, choices=True)

    def relative(path: Path) -> str:
        return path.resolve().relative_to(root.resolve()).as_posix()

    return {
        "general": {name: relative(path) for name, path in general.items()},
        "train": relative(domain.train),
        "test": relative(domain.test),
        "report": domain.report,
    }
