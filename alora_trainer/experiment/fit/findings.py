"""What was found in the data, in the words that a person reads before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_trainer.data.detection.examine import Examined

_SHOWN = 400  # characters of an example


@dataclass(frozen=True)
class Findings:
    """The data as they will be used.

    Attributes:
        learned: what `examine` found of the training data, the test part not in it.
        train: the items that are trained on.
        validation: those that scales and learning rates are compared by; empty for few items.
        test: the items of the test.
        held_out: whether the test was taken out of the data.
        overlap: training items that were left out because the test asks the same.
        general: part -> kind -> documents of general text (`in_parts`); empty where it is sampled from the model.
    """

    learned: Examined
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    held_out: bool
    overlap: int
    general: dict[str, dict[str, list[str]]]

    def facts(self) -> dict[str, Any]:
        """The counts, for the report."""
        return {
            "files": [{"name": Path(one.name).name, "kind": one.kind, "records": one.records, "left_out": one.left_out,
                       "first": one.first} for one in self.learned.files],
            "duplicates": self.learned.duplicates,
            "overlap": self.overlap,
            "train_items": len(self.train),
            "validation_items": len(self.validation),
            "test_items": len(self.test),
            "held_out": self.held_out,
            "max_length": self.learned.length,
        }  # fmt: skip

    def text(self) -> str:
        """All of it, for the terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for one in self.learned.files:
            yield f"{one.name}: {one.records} records, {one.kind} (columns {', '.join(map(str, one.columns[:12]))})"
            if one.left_out:
                yield f"  left out: {one.left_out}; the first is {one.first}"
        if self.learned.duplicates:
            yield f"duplicates left out: {self.learned.duplicates}"
        how = "held out" if self.held_out else "as given"
        apart = f", validation items: {len(self.validation)}" if self.validation else ""
        yield f"training items: {len(self.train)}{apart}, test items: {len(self.test)} ({how})"
        if self.overlap:
            yield f"training items left out because the test asks the same: {self.overlap}"
        lengths = sorted(self.learned.lengths)
        middle, most = lengths[len(lengths) // 2], lengths[-1]
        yield f"tokens an item: {middle} in the middle, {most} at most; sequences of {self.learned.length}"
        if self.general:
            for part, kinds in self.general.items():
                said = ", ".join(f"{kind} ({len(texts)} passages)" for kind, texts in kinds.items())
                yield f"general text to {part}: {said}"
        else:
            yield "general text: none given; it is sampled from the model itself"
        for number, (prompt, completion) in enumerate(self.learned.examples, start=1):
            yield f"example {number}, as the model sees it ([[what it learns]]):"
            yield f"{_short(prompt)}[[{_short(completion)}]]"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
