"""Learning rate and method by short trainings: successive halving, judged on items neither trained on nor in the test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from alora_trainer.data.items import split_records
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.experiment.fit.files import passages_of
from alora_trainer.experiment.fit.guarantee import encoded_passages
from alora_trainer.experiment.fit.validation import VALIDATION, validation_probe, without_questions
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import build_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, place, release_memory, with_saved_adapter
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.promise import chosen_scale
from alora_trainer.weights.shrinking import Shrinking

logger = logging.getLogger(__name__)

PROBES = "probes"
# The rates that are tried, as shares of the one that goes by the model's size.
FACTORS = (0.25, 0.5, 1.0, 2.0)
_LEAST_STEPS = 2
_LARGEST = 2.0  # that a short training is scaled by, to be compared at the same rise


@dataclass(frozen=True)
class Candidate:
    """What is tried: a method, which says which layers are trained and what holds them, at a learning rate."""

    method: str
    rate: float


@dataclass(frozen=True)
class ShortTraining:
    """One short training.

    Attributes:
        method, rate: what was tried.
        steps: of the training.
        scale: at which its adapter just keeps the budget on the text that steers.
        loss: nats a token of the validation's right answers, at that scale.
    """

    method: str
    rate: float
    steps: int
    scale: float
    loss: float


@dataclass(frozen=True)
class Probing:
    """Short trainings of one fit.

    Attributes:
        written: the recipe as plain data; its paths start from the result's folder.
        folder: of the result; what is trained goes into ``probes``, the maps, too.
        steps: of the whole training.
        share: of them that all short trainings together may take.
        importance: a map to hold them by, instead of measuring one.
        tokenizer: the base model's.
        budget: the rise at which they are compared.
    """

    written: Mapping[str, Any]
    folder: Path
    steps: int
    share: float
    importance: str | None
    tokenizer: Any
    budget: float

    def best(self, method: str, others: Sequence[str]) -> tuple[Candidate, list[ShortTraining]]:
        """The candidate whose short training made the validation's answers likeliest at the same rise, and all trials.

        `method` is tried at several rates, each of `others` at the one that goes by the model's size. After each round the
        better half goes on for twice as long.
        """
        usual = float(self.written["tune"]["learning_rate"])
        left = [Candidate(method, usual * factor) for factor in FACTORS] + [Candidate(one, usual) for one in others]
        asked = {"recipe": dict(self.written), "candidates": [asdict(one) for one in left]}
        stage = Stage(self.folder / PROBES / "choice", asked | {"steps": self.steps, "share": self.share}, "choice")
        stage.begin(overwrite=True)
        finished = stage.finished()
        if finished is not None:
            return Candidate(**finished["best"]), [ShortTraining(**one) for one in finished["tried"]]
        parts, tried = _parts(self.folder), []
        rounds = _rounds(len(left))
        length = max(_LEAST_STEPS, int(self.share * self.steps / sum(2**at * many for at, many in enumerate(rounds))))
        for at, many in enumerate(rounds):
            found = [self._trial(one, length * 2**at, *parts) for one in left[:many]]
            tried += found
            left = [Candidate(one.method, one.rate) for one in sorted(found, key=lambda one: one.loss)]
        stage.finish({"best": asdict(left[0]), "tried": [asdict(one) for one in tried]})
        return left[0], tried

    def _trial(self, candidate: Candidate, steps: int, train: str, validation: str) -> ShortTraining:
        method = get_method(candidate.method)
        recipe = self._short(candidate, steps, train, validation)
        run = Run(
            recipe,
            self.folder / PROBES,
            variant=f"{candidate.rate:g}-{steps}",
            importance=self.importance,
            overwrite=True,
        )
        run.tune(method)
        scale, loss = self._judged(run.recipe, run.folder / run.steps.place(method) / "adapter", validation)
        release_memory()
        logger.info(
            f"{candidate.method}, learning rate {candidate.rate:g}, {steps} steps: {loss:.4f} nats a token on validation, at "
            f"{scale:.3g} of what was trained"
        )
        return ShortTraining(candidate.method, candidate.rate, steps, scale, loss)

    def _short(self, candidate: Candidate, steps: int, train: str, validation: str) -> Recipe:
        tune = {key: value for key, value in self.written["tune"].items() if key != "num_train_epochs"}
        return build_recipe(
            {
                **self.written,
                "methods": ["base", candidate.method],
                "tune": tune | {"learning_rate": candidate.rate, "max_steps": steps, "save_strategy": "no"},
                "domain": {**self.written["domain"], "train": train, "test": validation},
            },
            base=self.folder,
        )

    def _judged(self, recipe: Recipe, trained: Path, validation: str) -> tuple[float, float]:
        """The scale that keeps the budget on the text that steers, and the validation's loss there."""
        model: Any = with_saved_adapter(load_base(recipe), trained, trainable=True)
        place(model, recipe.training_arguments("tune", self.folder).device)
        accelerator, shrinking, size = Accelerator(), Shrinking(model), int(recipe.curvature.batch_size)
        rows = encoded_passages(
            passages_of(self.folder / "data", "steer"),
            self.tokenizer,
            length=recipe.general.block_length,
            seed=recipe.seed,
        )
        steer = Probe([row for _, row in rows], size)
        judged = validation_probe(recipe, self.folder / validation, self.tokenizer)
        assert judged is not None  # `_parts` wrote it

        def at(probe: Probe, scale: float) -> list[float]:
            shrinking.set(scale)
            return probe.evaluate(model, accelerator)

        before = at(steer, 0.0)
        scale = chosen_scale(lambda one: steer.bound(before, at(steer, one)), self.budget, _LARGEST)
        return scale, judged.loss(at(judged, scale))


def _rounds(count: int) -> list[int]:
    """How many are trained in each round: all, half of them, ..., two."""
    rounds = [count]
    while rounds[-1] > 2:
        rounds.append((rounds[-1] + 1) // 2)
    return rounds


def _parts(folder: Path) -> tuple[str, str]:
    """The items to train on and to judge by; of few items, some of the training items are not trained on here."""
    if (folder / "data" / VALIDATION).exists():
        return "data/train.jsonl", f"data/{VALIDATION}"
    records = read_lines(folder / "data" / "train.jsonl")
    train, judged = without_questions(*split_records(records, by="item", items=max(1, len(records) // 5)))
    write_lines(folder / "data" / "probe_train.jsonl", train)
    write_lines(folder / "data" / "probe_validation.jsonl", judged)
    return "data/probe_train.jsonl", "data/probe_validation.jsonl"
