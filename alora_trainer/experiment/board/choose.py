"""Which trials of a row are trained again on test items, with several seeds, by a rule that sees validation alone."""

from __future__ import annotations

from collections.abc import Sequence

from alora_trainer.experiment.board.fronts import Point, pareto_front


def chosen_trials(points: Sequence[Point], target: float, most: int | None, *, top: bool = False) -> list[int]:
    """The trials of the Pareto front; where there are more than `most`, those around a target.

    Taken alternately: the nearest of those that learned at least the target, the nearest of those that learned less, and so on,
    so that a curve can be read at the target from both sides. Who learned nothing is no choice, unless nobody did.

    Args:
        points: (learned, forgotten) of every trial, on validation.
        target: how much learning matters.
        most: how many at most; None takes the whole front.
        top: the one that learned most is among them in any case.

    Returns:
        Their places, by what they learned, the least first.
    """
    front = pareto_front(points)
    front = [place for place in front if points[place][0] > 0] or front[-1:]
    if most is None or len(front) <= most:
        return front
    above = [place for place in front if points[place][0] >= target]
    below = [place for place in front if points[place][0] < target][::-1]
    ordered = [place for pair in zip(above, below, strict=False) for place in pair]
    ordered += above[len(below) :] + below[len(above) :]
    if top:
        ordered = [front[-1], *(place for place in ordered if place != front[-1])]
    return sorted(ordered[:most], key=front.index)


def operating_point(points: Sequence[Point], enough: float) -> int:
    """The trial that somebody would take: of those that learned enough the one that forgets least, else that which
    learned most.

    Args:
        points: (learned, forgotten) of the finals, on validation.
        enough: how much must be learned.
    """
    able = [place for place in range(len(points)) if points[place][0] >= enough]
    if able:
        return min(able, key=lambda place: (points[place][1], -points[place][0]))
    return max(range(len(points)), key=lambda place: (points[place][0], -points[place][1]))
