"""From numbers to places in a drawing: round ticks, what an axis shows, and labels that do not lie on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

Span = tuple[float, float]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, about five of them: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten: those powers, and 2 and 5 times them where there are few; at most about seven.

    Args:
        low, high: exponents of ten.
    """
    factors = (1, 2, 5) if high - low < 2.2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [float(f"{factor * 10.0**power:.6g}") for power in powers for factor in factors]
    found = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return found[:: max(1, math.ceil(len(found) / 7))]


def extent(values: Sequence[float]) -> Span:
    """What an axis shows of `values`: from the least to the greatest, and a little room."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = ((high - low) or abs(high) or 1.0) * 0.07
    return low - pad, high + pad


def place(value: float, domain: Span, box: Span) -> float:
    """Where `value` of `domain` lies in `box`."""
    return box[0] + (value - domain[0]) / (domain[1] - domain[0]) * (box[1] - box[0])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near those that are wanted, in the same order, at least `gap` apart and within `low` and `high` if there is room.

    Neighbours that would touch become a block around the mean of where they want to be; blocks that touch become one.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, int]] = []  # centre and members, from above
    for index in order:
        centre, members = min(max(wanted[index], low), high), 1
        while blocks and centre - blocks[-1][0] < gap * (members + blocks[-1][1]) / 2:
            before, others = blocks.pop()
            centre = (centre * members + before * others) / (members + others)
            members += others
            half = gap * (members - 1) / 2
            centre = max(min(centre, high - half), low + half)
        blocks.append((centre, members))
    placed = [centre + gap * (k - (members - 1) / 2) for centre, members in blocks for k in range(members)]
    found = [0.0] * len(wanted)
    for index, at in zip(order, placed, strict=True):
        found[index] = at
    return found
