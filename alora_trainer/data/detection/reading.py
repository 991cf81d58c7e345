"""What was found of a person's data, read: the records of each file or data set of the Hub, by its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alora_trainer.basics.hub_ids import HUB_PREFIX
from alora_trainer.basics.keys import absent
from alora_trainer.data.detection import columns
from alora_trainer.data.detection.finding import hub_source
from alora_trainer.data.local_files import read_rows
from alora_trainer.data.records import Row, check_characters, listed, string_field
from alora_trainer.data.sources import load_source
from alora_trainer.errors import ALoRAError


def read_named(found: Iterable[str]) -> dict[str, list[Row]]:
    """The records of each of what `find_data` gave, by its name.

    Raises:
        ALoRAError: one cannot be read, is empty, or has bytes that are no UTF-8; the message has the file and the line.
    """
    read = {}
    for name in found:
        if name.startswith(HUB_PREFIX):
            source = hub_source(name)
            try:
                rows = load_source(source)
            except ALoRAError as error:
                raise ALoRAError(f"{error}{absent(source['hub'])}") from error
        else:
            rows = list(read_rows(Path(name)))
        if not rows:
            raise ALoRAError(f"{name} is empty: leave it out, or give a file with at least one record")
        for row in rows:
            _check(row, row.where)
        read[name] = rows
    if not read:
        raise ALoRAError("there is no data: name a file, a folder or a data set of the Hub")
    return read


def texts_of(rows: Iterable[Row]) -> list[str]:
    """The documents of general text.

    Raises:
        ALoRAError: a record has no text; all are blank.
    """
    texts = []
    for row in rows:
        name = columns.first_of(row, columns.TEXTS)
        if name is None:
            raise ALoRAError(
                f"{row.where} has no text (its columns are {listed(row)}): give general text in a column 'text', or text files"
            )
        texts.append(string_field(row, name))
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ALoRAError("the general text holds only blank documents: give a source with text")
    return texts


def _check(value: Any, where: str) -> None:
    """Refuse text that is not what its file says, wherever in a record it is: it is a mistake of the whole file's."""
    if isinstance(value, str):
        check_characters(value, where)
    elif isinstance(value, dict):
        for one in value.values():
            _check(one, where)
    elif isinstance(value, list):
        for one in value:
            _check(one, where)
