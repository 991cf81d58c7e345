"""What a run found of one method: its score, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alora_trainer.basics.json_record import JSONRecord
from alora_trainer.basics.scores import Score

SCALE = "scale"  # among a result's settings: what the finished adapter was multiplied by


@dataclass(frozen=True)
class TrainingCost(JSONRecord):
    """What a training or a recording took, and what it left in its log.

    Attributes:
        seconds: wall-clock time.
        peak_bytes: the most memory: what PyTorch allocated on a GPU, the whole process on a CPU.
        loss: the mean over the whole training.
        samples: of a Fisher information.
        steps: optimizer steps.
        history: kind of log ("training", "curve") -> column -> values.
        drift: weight -> Frobenius norm of its movement.
        probe: what a training with a budget measured on general text.
    """

    seconds: float | None = None
    peak_bytes: float | None = None
    loss: float | None = None
    samples: int | None = None
    steps: int | None = None
    history: Mapping[str, Mapping[str, Any]] | None = None
    drift: Mapping[str, float] | None = None
    probe: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class ContinualScore(JSONRecord):
    """What a method did over several domains in a row.

    Attributes:
        tasks: the domains, in the order that they were learned.
        accuracy: row 0 before the first domain, row i after the i-th; one accuracy a task.
        general_perplexity: token perplexity of the general text, by row.
        average_accuracy, backward_transfer, forward_transfer: see `run.transfer.AccuracyMatrix`.
        trainings: on each domain in turn.
    """

    tasks: Sequence[str]
    accuracy: Sequence[Sequence[float]]
    general_perplexity: Sequence[float]
    average_accuracy: float
    backward_transfer: float | None = None
    forward_transfer: float | None = None
    trainings: Sequence[TrainingCost] | None = None


@dataclass(frozen=True)
class MethodResult(Score):
    """A method's entry of results.json: its score, and what it took.

    Attributes:
        train: the training on the domain.
        record: the recording on general text, or the Fisher information, if this run made it.
        settings: what the training depends on, by dotted name; None in results that are older than this.
        layer_norms: weight -> ||Omega_l||_2 of the recorded importance.
        continual: over several domains.
    """

    train: TrainingCost | None = None
    record: TrainingCost | None = None
    settings: Mapping[str, Any] | None = None
    layer_norms: Mapping[str, float] | None = None
    continual: ContinualScore | None = None

    @classmethod
    def of(cls, score: Score, costs: Mapping[str, Any], **further: Any) -> MethodResult:
        """An entry from its parts.

        Args:
            score: of the evaluation.
            costs: ``train`` and ``record`` as plain data, either of which may be missing.
            further: `settings`, `layer_norms`, `continual`.
        """
        spent: dict[str, Any] = {name: TrainingCost.from_json(cost, name) for name, cost in costs.items()}
        return cls(**vars(score), **spent, **further)
