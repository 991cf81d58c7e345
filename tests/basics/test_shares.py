"""A share by which general loss may rise: what people mean by 1 is not a hundred percent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer import ALoRAConfig, ALoRAError, RetentionGuard
from alora_trainer.basics.shares import check_rise
from alora_trainer.experiment.fit.request import FitRequest

EVERYWHERE: dict[str, Callable[[Any], object]] = {
    "budget": lambda rise: ALoRAConfig(budget=rise),
    "max_general_rise": lambda rise: FitRequest("model", ("items.jsonl",), Path("fit"), max_general_rise=rise),
    "max_rise": lambda rise: RetentionGuard(["text"] * 100, max_rise=rise),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_it_is_refused_everywhere_alike(name: str) -> None:
    EVERYWHERE[name](0.5)
    with pytest.raises(ALoRAError, match=f"{name}=1 would let general loss double: 0.01 is one percent"):
        EVERYWHERE[name](1)
    with pytest.raises(ALoRAError, match=f"{name}=-0.1 must be a positive share"):
        EVERYWHERE[name](-0.1)


@pytest.mark.parametrize("value", [None, True, "1%", float("nan"), float("inf"), 0])
def test_what_is_no_number_above_zero_is_refused(value: object) -> None:
    with pytest.raises(ALoRAError, match="must be a positive share"):
        check_rise(value, "budget")
