"""Two objectives at once, how much is learned (more is better) and how much is forgotten (less is better): the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]  # learned, forgotten


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Which points no other one beats: none learns at least as much and forgets at most as much, and is better in one.

    Args:
        points: (learned, forgotten). One that is not finite is never on the front: nobody would take it.

    Returns:
        The points' places, by what is learned, the least first; of several alike the first.
    """
    front: list[int] = []
    usable = [place for place, point in enumerate(points) if all(map(math.isfinite, point))]
    # From the most learned on; at equal learning the one that forgets least comes first.
    for place in sorted(usable, key=lambda one: (-points[one][0], points[one][1], one)):
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front[::-1]
