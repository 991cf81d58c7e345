"""Looking at importance before it is used: at the values as they are stored, and at what becomes of them in another format."""

from __future__ import annotations

import math

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.kind import Importance, Measure

# Beyond this, Omega times its layer's weight (eq. 17), as the penalty multiplies them in float32, would leave its range.
LARGEST_NORM = 1e15
# By which the sum of all values may change in another format; a coarse one stays far within.
_LARGEST_CHANGE = 2.0


def checked_measure(name: str, importance: Importance) -> Measure:
    """How large the importance of a weight is.

    Args:
        name: of the weight, for the message.

    Raises:
        ALoRAError: it is negative, not finite, or absurdly large.
    """
    measure = importance.measure()
    if not (math.isfinite(measure.norm) and math.isfinite(measure.trace)):
        raise ALoRAError(f"the importance of {name} holds NaN or infinite values: the map is damaged, record it again")
    if measure.least < 0:
        raise ALoRAError(f"the importance of {name} holds negative values: the map is damaged, record it again")
    if measure.norm > LARGEST_NORM:
        raise ALoRAError(
            f"the importance of {name} is absurdly large ({measure.norm:.3g}): the map is damaged, record it again"
        )
    return measure


def converted(name: str, importance: Importance, to: type[Importance]) -> Importance:
    """The importance of a weight in another storage format, looked at before (a format may have no NaN) and after.

    Args:
        name: of the weight, for the message.
        to: the format.

    Raises:
        ALoRAError: as `checked_measure`; the values are out of the format's range; it is of another kind.
    """
    if type(importance) is to:
        return importance
    before = checked_measure(name, importance).trace
    there = importance.convert(to)
    after = there.measure().trace
    if not before / _LARGEST_CHANGE <= after <= before * _LARGEST_CHANGE:
        raise ALoRAError(
            f"the importance of {name} cannot be kept as {to.format!r}: its values are out of that format's range (their sum "
            f"{before:.3g} becomes {after:.3g}): keep it as {importance.format!r}"
        )
    return there
