"""How methods look in figures: colours that colour-blind readers can tell apart, one for a method everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alora_trainer.experiment.report.gather import BASE, OURS

# Okabe and Ito (2008), without the yellow that is hard to see on white.
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#44AA99", "#999933")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p")
_OURS = "#0072B2"
_BASE = "#6b6b6b"


@dataclass(frozen=True)
class Look:
    """A method's colour and marker; where there are more methods than colours, those that come round again are drawn hollow."""

    colour: str
    marker: str
    hollow: bool = False


def look(method: str, methods: Sequence[str]) -> Look:
    """How `method` is drawn where `methods` are shown together; ours and the base model look the same everywhere."""
    if method == OURS:
        return Look(_OURS, "o")
    if method == BASE:
        return Look(_BASE, "*")
    place = [name for name in methods if name not in (OURS, BASE)].index(method)
    round_, colour = divmod(place, len(_COLOURS))
    return Look(_COLOURS[colour], _MARKERS[(colour + 2 * round_) % len(_MARKERS)], hollow=round_ % 2 == 1)
