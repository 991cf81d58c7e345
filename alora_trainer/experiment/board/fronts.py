"""Two objectives at once, how much is learned (more is better) and how much is forgotten (less is better): front and area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]  # learned, forgotten


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Which points no other one beats: none learns at least as much and forgets at most as much, and is better in one.

    Args:
        points: (learned, forgotten).

    Returns:
        The points' places, by what is learned, the least first; of several alike the first.
    """
    front: list[int] = []
    # From the most learned on; at equal learning the one that forgets least comes first.
    for place in sorted(range(len(points)), key=lambda one: (-points[one][0], points[one][1], one)):
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front[::-1]


def hypervolume(points: Sequence[Point], corner: Point) -> float:
    """The area of all that is no better than one of the points, and no worse than the corner, in the axes' units.

    A union of rectangles: of point (l, f) the one between (l, f) and the corner (l0, f0), l0 <= l and f <= f0.

    Args:
        points: (learned, forgotten).
        corner: what is just not good enough: learned, forgotten.
    """
    least, most = corner
    inside = [point for point in points if point[0] > least and point[1] < most]
    front = [inside[place] for place in pareto_front(inside)]
    area, reached = 0.0, least
    for (
        learned,
        forgotten,
    ) in front:  # the further right, the more is forgotten: each adds what lies beyond the one before
        area += (learned - reached) * (most - forgotten)
        reached = learned
    return area
