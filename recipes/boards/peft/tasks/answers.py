"""GSM8K's items for lm-eval, and whether a generated answer is right, by the rules of PEFT's method comparison."""

from __future__ import annotations

import json
import os
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

# What stands before the number, the first that is in a text; the last three of MetaMathQA's kind, then GSM8K's.
_BEFORE = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def documents(*, file: str, **metadata: Any) -> dict[str, Any]:
    """The items of a file that prepare.py wrote, as lm-eval's ``custom_dataset`` hook wants them."""
    from datasets import Dataset

    folder = Path(os.environ.get("ALORA_PEFT_DATA") or Path(__file__).resolve().parent.parent / "data")
    lines = (folder / file).read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def scored(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``exact_match`` of one generated answer."""
    return {"exact_match": float(is_right(results[0], doc["response"]))}


def is_right(generated: str, response: str) -> bool:
    """Whether both end in the same number (or, where one is none, in the same words)."""
    said, wanted = answer_in(generated), answer_in(response)
    if wanted is None:
        raise ValueError(f"the item's own answer cannot be read: {response!r}")
    return said is not None and _comparable(said) == _comparable(wanted)


def answer_in(text: str) -> str | None:
    """What stands behind the last of the first kind of introduction that is there, on its line; None without any."""
    text = text.strip().rstrip(".!?")
    before = next((one for one in _BEFORE if one in text), None)
    if before is None:
        return None
    return text.rpartition(before)[-1].strip().split("\n", 1)[0].strip(" .!?$%")


def _comparable(text: str) -> float | str:
    """A number or a fraction as a number, all else as it is."""
    try:
        above, slash, below = text.partition("/")
        return float(Decimal(above.strip()) / Decimal(below.strip())) if slash else float(Decimal(text.strip()))
    except (InvalidOperation, ZeroDivisionError, ValueError):
        return text
