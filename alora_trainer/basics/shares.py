"""Shares of general loss by which it may rise: 0.01 is one percent, and nobody means a hundred by 1."""

from __future__ import annotations

import math

from alora_trainer.errors import ALoRAError


def check_rise(value: object, name: str) -> None:
    """Refuse what is no share by which general loss may rise.

    Args:
        value: as given.
        name: of the setting, for the message.

    Raises:
        ALoRAError: it is no number between 0 and 1, both excluded.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0:  # type: ignore[operator]
        raise ALoRAError(f"{name}={value!r} must be a positive share: 0.01 lets general loss rise by one percent")
    if value >= 1:  # type: ignore[operator]
        raise ALoRAError(f"{name}={value!r} would let general loss double: 0.01 is one percent")
