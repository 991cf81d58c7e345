"""What a board finds on one model and task: every row at equal learning, as an area, at the point that one would take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alora_trainer.experiment.board.choose import chosen_trials, operating_point
from alora_trainer.experiment.board.comparisons import KnownComparisons, PlannedComparisons, compared
from alora_trainer.experiment.board.equal_learning import Spread, area_behind, forgotten_at_equal_learning
from alora_trainer.experiment.board.fronts import Point, pareto_front
from alora_trainer.experiment.board.measures import MEASURES, Samples
from alora_trainer.experiment.board.paired import noise_floor

# What the noise floor is said of.
_NOISY = ("learned", "accuracy", "choices", "rise", "rise_recorded", "rise_other")


@dataclass(frozen=True)
class Rules:
    """What a board file says about how trials are chosen and rows compared.

    Attributes:
        reference: the row that says how much there is to learn.
        against: the rows that others are compared with.
        rows: names of all rows of the board, whether they are finished or not: so many comparisons are planned.
        shares: of what the reference learned.
        points: at most so many finals a row; None for the whole front.
        seeds: of the finals.
        resamples: of the bootstrap.
    """

    reference: str
    against: Sequence[str]
    rows: Sequence[str]
    shares: Sequence[float]
    points: int | None
    seeds: Sequence[int]
    resamples: int = 9999


@dataclass
class RowFound:
    """What was found of one row.

    Attributes:
        name: the row's.
        labels: of its trials.
        settings: of its trials, beside.
        validation: the figures of its trials.
        chosen: the places of those trials that are finals.
        finals: place -> seed -> figures.
        samples: place -> seed -> what it said, item by item.
    """

    name: str
    labels: Sequence[str]
    settings: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    chosen: list[int] = field(default_factory=list)
    finals: dict[int, dict[int, Mapping[str, Any]]] = field(default_factory=dict)
    samples: dict[int, dict[int, Samples]] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """(learned, forgotten) of every trial, on validation."""
        return [_point(figures) for figures in self.validation]

    @property
    def top(self) -> int:
        """The final that learned most on validation."""
        return max(self.chosen, key=lambda place: (self.points[place][0], -self.points[place][1]))

    def curves(self, seeds: Sequence[int]) -> dict[int, list[Point]]:
        """seed -> (learned, forgotten) of the finals that nobody would do without.

        A final that learned less and forgot more than another of the row's, in the mean over seeds, is on none: a curve through
        it would tell what is forgotten at settings that the row has better ones for. Single seeds leave nothing out.
        """
        each = {place: [_point(self.finals[place][seed]) for seed in seeds] for place in self.chosen}
        means = [_mean(points) for points in each.values()]
        finite = all(math.isfinite(value) for mean in means for value in mean)
        kept = [self.chosen[at] for at in pareto_front(means)] if finite else self.chosen
        return {seed: [each[place][at] for place in kept] for at, seed in enumerate(seeds)}


def choose_finals(row: RowFound, reference: RowFound, rules: Rules) -> list[int]:
    """The places of the trials of `row` that are trained again on test items; of the reference its largest learner is one."""
    target = statistics.fmean(rules.shares) * max(learned for learned, _ in reference.points)
    return chosen_trials(row.points, target, rules.points, top=row.name == reference.name)


def summarise(rows: Sequence[RowFound], rules: Rules, known: KnownComparisons | None = None) -> dict[str, Any]:
    """Everything that is computed from the trainings of one model and task.

    Args:
        rows: the reference among them, with their finals.
        rules: of the board.
        known: see `compared`.

    Returns:
        ``reference``, by seed what it learned and forgot; ``rows``, ``comparisons`` and ``noise``, as docs/board.md
        describes them.
    """
    reference = next(row for row in rows if row.name == rules.reference)
    tops = {seed: _point(reference.finals[reference.top][seed]) for seed in rules.seeds}
    gains = {seed: learned for seed, (learned, _) in tops.items()}
    best = max(learned for learned, _ in reference.points)
    found = {}
    for row in rows:
        curves = row.curves(rules.seeds)
        taken = row.chosen[operating_point([row.points[place] for place in row.chosen], max(rules.shares) * best)]
        found[row.name] = _RowNumbers(
            row=row,
            equal={share: forgotten_at_equal_learning(curves, gains, share) for share in rules.shares},
            area=Spread.of({seed: _area(curves[seed], tops[seed]) for seed in rules.seeds}),
            taken=taken,
        )
    return {
        "reference": {
            "row": reference.name,
            "trial": reference.labels[reference.top],
            "learned": Spread.of(gains).to_json(),
            "forgotten": Spread.of({seed: forgotten for seed, (_, forgotten) in tops.items()}).to_json(),
        },
        "rows": [numbers.to_json(rules.seeds) for numbers in found.values()],
        "comparisons": compared(
            {
                name: ({f"rise_at_{_percent(share)}": spread for share, spread in one.equal.items()}
                       | {"area": one.area}, one.row.samples.get(one.taken, {}))
                for name, one in found.items()
            },
            PlannedComparisons(rules.rows, rules.against, rules.resamples),
            known,
        ),
        "noise": _noise(reference, rules.seeds),
    }  # fmt: skip


@dataclass(frozen=True)
class _RowNumbers:
    row: RowFound
    equal: Mapping[float, Spread]
    area: Spread
    taken: int

    def to_json(self, seeds: Sequence[int]) -> dict[str, Any]:
        own = self.row.finals[self.taken]
        figures = {name: Spread.of({seed: own[seed].get(name) for seed in seeds}).to_json() for name in MEASURES}
        kinds = {kind for seed in seeds for kind in own[seed]["rises"]}
        rises = {kind: statistics.fmean(own[seed]["rises"][kind] for seed in seeds) for kind in sorted(kinds)}
        return {
            "row": self.row.name,
            "equal": {f"rise_at_{_percent(share)}": spread.to_json() for share, spread in self.equal.items()},
            "area": self.area.to_json(),
            "taken": {"trial": self.row.labels[self.taken], "figures": figures, "rises": rises},
        }


def _point(figures: Mapping[str, Any]) -> Point:
    return figures["learned"], figures["rise"]


def _mean(points: Sequence[Point]) -> Point:
    gains, rises = zip(*points, strict=True)
    return statistics.fmean(gains), statistics.fmean(rises)


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _area(curve: Sequence[Point], top: Point) -> float | None:
    """See `area_behind`, in units of what the reference learned and forgot; None where it did not do both."""
    learned, forgotten = top
    if learned <= 0 or forgotten <= 0:
        return None
    return area_behind([(gain / learned, rise / forgotten) for gain, rise in curve])


def _noise(reference: RowFound, seeds: Sequence[int]) -> dict[str, Any]:
    """By measure, how far two means come apart by their seeds alone, of the reference's finals."""
    found = {}
    for name in _NOISY:
        groups: list[list[float]] = []
        for own in reference.finals.values():
            values = [value for seed in seeds if (value := own[seed].get(name)) is not None]
            if len(values) == len(seeds):
                groups.append(values)
        floor = noise_floor(groups, len(seeds))
        if floor is not None:
            found[name] = floor
    return found
