"""From the records of a domain to the documents of its task: which fit, which are held out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import TypeVar

from alora_trainer.data.records import Record, Row, is_missing, listed, place, text_of
from alora_trainer.data.task import Doc, Task
from alora_trainer.errors import ALoRAError

logger = logging.getLogger(__name__)

_R = TypeVar("_R", bound=Record)


def split_records(records: list[_R], *, by: str, items: int) -> tuple[list[_R], list[_R]]:
    """Split records into training and test: the ``items`` whose field ``by`` has the smallest SHA-1 are the test.

    The order within each part is that of the records. Raises ALoRAError if a record has no such field or one that is no text
    or number, or if nothing would be left to train on.
    """
    keys = []
    for number, record in enumerate(records, start=1):
        if is_missing(record.get(by)):
            raise ALoRAError(
                f"{place(record, number)} has no {by!r} to be held out by: its fields are {listed(record)}"
            )
        try:
            key = text_of(record[by], f"its field {by!r}")
        except ALoRAError as error:
            raise ALoRAError(f"{place(record, number)} cannot be held out by {by!r}: {error}") from error
        keys.append(hashlib.sha1(key.encode("utf-8")).hexdigest())
    if items >= len(records):
        raise ALoRAError(f"holding out {items} of {len(records)} items leaves none to train on: lower holdout.items")
    chosen = set(sorted(range(len(records)), key=keys.__getitem__)[:items])
    train = [record for index, record in enumerate(records) if index not in chosen]
    return train, [records[index] for index in sorted(chosen)]


def convert_records(records: Iterable[Record], task: Task) -> list[Doc]:
    """The documents of a task's records; ALoRAError names the file, the item, the field and what is wrong with it.

    An item's own ``id``, if it has one that is a word or a number, goes along as text.
    """
    docs = []
    for number, record in enumerate(records, start=1):
        try:
            doc = task.convert(record)
        except ALoRAError as error:
            raise ALoRAError(f"{place(record, number)} does not fit the task {task.name}: {error}") from error
        name = record.get("id")
        if isinstance(name, (str, int)) and not isinstance(name, bool):
            doc["id"] = text_of(name, f"the id of {place(record, number)}")
        docs.append(doc)
    return docs


def fitting_records(records: list[Row], task: Task) -> list[Row]:
    """The records that the task can use; how many others there are, and what is wrong with the first, is said."""
    kept, wrong = [], ""
    for record in records:
        try:
            task.convert(record)
        except ALoRAError as error:
            wrong = wrong or f"{record.where}: {error}"
        else:
            kept.append(record)
    if not kept:
        raise ALoRAError(f"none of the {len(records)} items fits the task {task.name}: {wrong}")
    if wrong:
        logger.warning(
            f"{len(records) - len(kept)} of {len(records)} items do not fit the task {task.name} and are left out; "
            f"the first is {wrong}"
        )
    return kept
