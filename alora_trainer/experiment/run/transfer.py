"""What one domain after the other does to the earlier and the later ones: the accuracy matrix and its means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from alora_trainer.basics.printable import markdown_text
from alora_trainer.experiment.report.method_result import ContinualScore, MethodResult


@dataclass(frozen=True)
class AccuracyMatrix:
    """Accuracies after each domain.

    Attributes:
        tasks: in the order that they are learned.
        rows: ``rows[0]`` before the first domain, ``rows[i]`` after the i-th; one accuracy a task.
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    @property
    def average(self) -> float:
        """Mean accuracy over all domains after the last one."""
        return statistics.mean(self.rows[-1])

    @property
    def backward_transfer(self) -> float | None:
        """What later domains did to earlier ones: the mean of (accuracy at the end - accuracy when it was just learned).

        Negative is forgetting (Lopez-Paz and Ranzato 2017). None for a single domain.
        """
        changes = [self.rows[-1][i] - self.rows[i + 1][i] for i in range(len(self.tasks) - 1)]
        return statistics.mean(changes) if changes else None

    @property
    def forward_transfer(self) -> float | None:
        """What earlier domains did for later ones: the mean of (accuracy just before it is learned - that of the start)."""
        gains = [self.rows[i][i] - self.rows[0][i] for i in range(1, len(self.tasks))]
        return statistics.mean(gains) if gains else None


def format_matrices(entries: Mapping[str, MethodResult]) -> str:
    """A Markdown table a method: accuracies in per cent and general perplexity after each domain."""
    blocks = []
    for name, entry in entries.items():
        continual = entry.continual
        if continual is None:
            continue
        tasks = [markdown_text(task) for task in continual.tasks]
        lines = [f"{markdown_text(name)}: average {_percent(continual.average_accuracy)}, {_transfers(continual)}", ""]
        lines.append("| after | " + " | ".join(f"{task} (%)" for task in tasks) + " | general perplexity |")
        lines.append("|---|" + "---:|" * (len(tasks) + 1))
        rows = zip(("nothing", *tasks), continual.accuracy, continual.general_perplexity, strict=True)
        for after, accuracies, perplexity in rows:
            lines.append(f"| {after} | " + " | ".join(map(_percent, accuracies)) + f" | {perplexity:.2f} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _transfers(continual: ContinualScore) -> str:
    kinds = (("backward transfer", continual.backward_transfer), ("forward transfer", continual.forward_transfer))
    return ", ".join(f"{label} {_percent(value)}" for label, value in kinds)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
