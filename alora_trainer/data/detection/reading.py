"""What a person points at, read: a file, a folder, a pattern or a data set of the Hub, each file's records by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.data.detection import columns
from alora_trainer.data.local_files import FORMATS, find_files, read_rows
from alora_trainer.data.records import Row, check_characters, listed, string_field
from alora_trainer.data.sources import HUB_PREFIX, load_source
from alora_trainer.errors import ALoRAError

# Beginnings of the names of files in a folder that are no training data.
_TEST, _VALIDATION = ("test", "eval"), ("valid", "val.", "dev")


def find_data(given: Sequence[str | Path], base: Path | str = ".") -> tuple[list[str], list[str]]:
    """What is to be read for each thing that was named: (training, test), paths and ids of the Hub.

    A folder is its files of known formats, those whose names begin with ``test`` being the test, and those of a validation
    being left aside.

    Raises:
        ALoRAError: one of them is not there, has an unknown format, or is a folder without data.
    """
    train, test = [], []
    for one in map(str, given):
        path = Path(base) / Path(one).expanduser()
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name.lower().endswith(FORMATS)]
            own = [str(file) for file in files if not file.name.lower().startswith((*_TEST, *_VALIDATION))]
            if not own:
                raise ALoRAError(f"the folder {one} has no training data: put files in it of {', '.join(FORMATS)}")
            train += own
            test += [str(file) for file in files if file.name.lower().startswith(_TEST)]
        elif one.startswith(HUB_PREFIX) or (not path.exists() and _on_hub(one)):
            train.append(one if one.startswith(HUB_PREFIX) else f"{HUB_PREFIX}{one}")
        else:
            train += map(str, find_files(one, Path(base)))
    return train, test


def _on_hub(name: str) -> bool:
    """Whether a name can be that of a data set on the Hub: organisation/name or organisation/name:split, no file's ending."""
    return is_hub_id(name.partition(":")[0]) and not name.lower().endswith(FORMATS)


def read_named(found: Iterable[str]) -> dict[str, list[Row]]:
    """The records of each of what `find_data` gave, by its name.

    Raises:
        ALoRAError: one cannot be read, is empty, or has bytes that are no UTF-8; the message has the file and the line.
    """
    read = {}
    for name in found:
        if name.startswith(HUB_PREFIX):
            repository, _, split = name.removeprefix(HUB_PREFIX).partition(":")
            rows = load_source({"hub": repository, **({"split": split} if split else {})})
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
