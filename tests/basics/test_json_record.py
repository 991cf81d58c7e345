"""Records of a file that somebody changed: whatever stands in a field, it is read, or refused by its place."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from alora_trainer.basics.json_record import JSONRecord
from alora_trainer.basics.scores import GeneralScore, KLToBase, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.method_result import ContinualScore, TrainingCost

RECORDS: list[type[JSONRecord]] = [KLToBase, GeneralScore, TaskScore, Score, TrainingCost, ContinualScore]
STRANGE: list[Any] = [
    None, True, -1, 1.5, 10**400, float("nan"), "x", [], [1], ["x", None], {}, {"a": 1}, {"a": {"b": []}}, {"a": None},
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_strange_values_are_read_or_refused_by_their_place(record: type[JSONRecord]) -> None:
    refused = 0
    for name in (item.name for item in dataclasses.fields(record) if item.name != "further"):
        for value in STRANGE:
            try:
                json.dumps(record.from_json({name: value}, "results.json").to_json(), allow_nan=False)
            except ALoRAError as error:
                refused += 1
                assert f"results.json.{name}" in str(error) or "results.json has no" in str(error)
    assert refused > len(dataclasses.fields(record))


def test_a_number_larger_than_any_is_refused() -> None:
    with pytest.raises(ALoRAError, match=r"results.json.acc is 1000.*, not a number"):
        TaskScore.from_json({"acc": 10**400}, "results.json")
    assert TaskScore.from_json({"acc": 10**300}, "results.json").acc == 10**300
