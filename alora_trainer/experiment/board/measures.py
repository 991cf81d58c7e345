"""What a board says of one training: forgetting in several senses, text recorded and not recorded apart, and learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alora_trainer.basics.scores import GeneralScore, TaskScore
from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.choices import choice_losses, transitions
from alora_trainer.evaluation.items import unpack_correct
from alora_trainer.experiment.board.learning import Learning
from alora_trainer.experiment.report.item_comparison import SAMPLES
from alora_trainer.experiment.report.method_result import MethodResult


@dataclass(frozen=True)
class BoardMeasure:
    """A figure of the board.

    Attributes:
        label: for people, with its unit.
        less_is_better: whether a smaller one is.
        factor: what it is shown multiplied by.
        digits: behind the point, as it is shown.
    """

    label: str
    less_is_better: bool = True
    factor: float = 1.0
    digits: int = 4


MEASURES: Mapping[str, BoardMeasure] = {
    "learned": BoardMeasure("learned", less_is_better=False, digits=3),
    "accuracy": BoardMeasure("accuracy (%)", less_is_better=False, factor=100, digits=1),
    "choices": BoardMeasure("cross-entropy over choices (nats)", digits=3),
    "rise": BoardMeasure("rise of general cross-entropy (nats a token)"),
    "rise_recorded": BoardMeasure("rise on kinds of text that were recorded (nats a token)"),
    "rise_other": BoardMeasure("rise on kinds of text that were not (nats a token)"),
    "kl": BoardMeasure("KL to the base model on general text (nats a token)"),
    "top_changed": BoardMeasure("general tokens whose top guess changed (%)", factor=100, digits=1),
    "lost": BoardMeasure("items lost, 1 to 0 (%)", factor=100, digits=1),
    "won": BoardMeasure("items won, 0 to 1 (%)", less_is_better=False, factor=100, digits=1),
    "lost_adjusted": BoardMeasure("items lost, without what guessing turns over (%)", factor=100, digits=1),
    "won_adjusted": BoardMeasure(
        "items won, without what guessing turns over (%)", less_is_better=False, factor=100, digits=1
    ),
}


@dataclass(frozen=True)
class Measuring:
    """How results on one task are read.

    Attributes:
        learning: what says how much was learned.
        recorded: the kinds of general text that importance was recorded on, or that was replayed.
        base: the untouched model's result, on the same text and items.
        choices: how many each item has; empty for a task of free answers.
    """

    learning: Learning
    recorded: frozenset[str]
    base: MethodResult
    choices: Sequence[int] = ()

    def figures(self, result: MethodResult) -> dict[str, Any]:
        """The figures in `MEASURES` of one training, None where one was not measured; and ``rises``, by kind of text.

        Raises:
            ALoRAError: the result has no general text or no figure of learning, or is of other items than the base model's.
        """
        before, after = self._figure(self.base), self._figure(result)
        (score,), (base,) = result.tasks.values(), self.base.tasks.values()
        if score.items_digest != base.items_digest:
            raise ALoRAError("a result and the base model's are of different items: run the board again")
        kl = result.general.kl_to_base
        figures: dict[str, Any] = {
            "learned": self.learning.learned(before, after),
            "accuracy": score.acc if self.learning.of_domain else after,
            "choices": score.choice_cross_entropy,
            "rise": self._rise(result, None),
            "rise_recorded": self._rise(result, True),
            "rise_other": self._rise(result, False),
            "kl": None if kl is None else kl.nats_per_token,
            "top_changed": None if kl is None else kl.top_changed,
            **dict.fromkeys(("lost", "won", "lost_adjusted", "won_adjusted")),
        }
        if self.choices:
            turned = transitions(_answers(base), _answers(score), self.choices)
            figures |= {name: turned[name] for name in figures if name in turned}
        return figures | {"rises": self._rises(result)}

    def _figure(self, result: MethodResult) -> float:
        found = self.learning.figure(result)
        if found is None:
            raise ALoRAError(f"there is no {self.learning.name} in the results: set learning to what the task has")
        return found

    def _rise(self, result: MethodResult, recorded: bool | None) -> float | None:
        """Over all kinds of text, or over those that were recorded (or were not), each token counted once."""
        subsets, base = _subsets(result), _subsets(self.base)
        names = [name for name in subsets if recorded is None or (name in self.recorded) == recorded]
        tokens = [subsets[name].tokens or 0 for name in names]
        if not sum(tokens):
            return None
        rises = [_loss(subsets[name]) - _loss(base[name]) for name in names]
        return sum(count * rise for count, rise in zip(tokens, rises, strict=True)) / sum(tokens)

    def _rises(self, result: MethodResult) -> dict[str, float]:
        base = _subsets(self.base)
        return {name: _loss(score) - _loss(base[name]) for name, score in _subsets(result).items()}


def _subsets(result: MethodResult) -> Mapping[str, GeneralScore]:
    subsets = result.general.subsets
    if not subsets:
        raise ALoRAError("a result has no general text: the recipe must name general.test")
    return subsets


def _loss(score: GeneralScore) -> float:
    assert score.token_cross_entropy is not None
    return score.token_cross_entropy


def _answers(score: TaskScore) -> np.ndarray:
    assert score.correct is not None and score.items is not None
    return unpack_correct(score.correct, score.items)


@dataclass(frozen=True)
class Samples:
    """What one training's ``samples.jsonl`` says, document by document and item by item, in the file's order.

    Attributes:
        loss: of every document of general text, in nats.
        tokens: of every document.
        choice_loss: of every item, over its choices; empty for free answers.
        correct: 1 for every item that was answered rightly.
        choices: how many choices each item has; empty likewise.
    """

    loss: np.ndarray
    tokens: np.ndarray
    choice_loss: np.ndarray
    correct: np.ndarray
    choices: list[int]

    @classmethod
    def read(cls, folder: Path) -> Samples:
        """Those of a training in its folder."""
        rows = read_lines(folder / SAMPLES)
        documents = [row for row in rows if "subset" in row]
        items = [row for row in rows if "task" in row]
        scores = [row["log_likelihoods"] for row in items]
        chosen = bool(items) and all(len(one) > 1 for one in scores)
        return cls(
            loss=np.array([-row["log_likelihood"] for row in documents], dtype=np.float64),
            tokens=np.array([row["tokens"] for row in documents], dtype=np.float64),
            choice_loss=choice_losses(scores, [row["target"] for row in items]) if chosen else np.empty(0),
            correct=np.array([row["acc"] for row in items], dtype=np.float64),
            choices=[len(one) for one in scores] if chosen else [],
        )
