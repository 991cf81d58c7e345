"""Where the data are that a person points at: a file, a folder, a pattern or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from alora_trainer.basics.hub_ids import HUB_PREFIX, is_hub_id
from alora_trainer.basics.keys import meant_path
from alora_trainer.data.local_files import FORMATS, files_in_folder, find_files
from alora_trainer.errors import ALoRAError

# What files in a folder, or its folders, are called that are no training data. Of names that go on (``devices.txt``) only those
# of a test are taken for one: nobody should train on a test.
_TEST, _TEST_FOLDERS = ("test", "eval"), ("test", "tests", "eval", "evaluation")
_VALIDATION = ("valid", "validation", "val", "dev")


def find_data(given: Sequence[str | Path], base: Path | str = ".") -> tuple[list[str], list[str]]:
    """What is to be read for each thing that was named: (training, test), paths and ids of the Hub.

    A folder is its files as `files_in_folder` has them. Those whose names begin with ``test``, or that are in a folder called
    so, are the test, and those of a validation are left aside.

    Raises:
        ALoRAError: one of them is not there, has an unknown format, or is a folder without data or with files of several kinds.
    """
    train, test = [], []
    for one in map(str, given):
        path = Path(base) / Path(one).expanduser()
        if path.is_dir():
            files = {file: _part(file.relative_to(path)) for file in files_in_folder(path, one)}
            own = [str(file) for file, part in files.items() if part == "train"]
            if not own:
                raise ALoRAError(
                    f"the folder {one} has no training data, only what is called a test or a validation: rename it, or name "
                    "the files"
                )
            train += own
            test += [str(file) for file, part in files.items() if part == "test"]
        elif one.startswith(HUB_PREFIX) or (not path.exists() and _like_hub(one)):
            if not one.startswith(HUB_PREFIX) and path.parent.is_dir():
                # The Hub would only be asked for it, and a connection be blamed.
                raise ALoRAError(
                    f"there is no file or folder {one}: {meant_path(path)}correct the path, or write {HUB_PREFIX}{one} for a "
                    "data set of the Hub"
                )
            train.append(f"{HUB_PREFIX}{one.removeprefix(HUB_PREFIX)}")
            hub_source(one)
        else:
            train += map(str, find_files(one, Path(base)))
    return train, test


def hub_source(name: str) -> dict[str, str]:
    """The source that a name of a data set on the Hub says: organisation/name, :split or :configuration:split behind it.

    Args:
        name: with or without ``hub:`` in front.

    Raises:
        ALoRAError: there are more parts.
    """
    repository, *rest = name.removeprefix(HUB_PREFIX).split(":")
    if len(rest) > 2 or not all([repository, *rest]):
        raise ALoRAError(
            f"{name} cannot be read: write organisation/name, organisation/name:split or organisation/name:configuration:split"
        )
    return {"hub": repository} | dict(zip(("name", "split")[-len(rest) :], rest, strict=True) if rest else ())


def _part(path: Path) -> str:
    """What a file in a folder is for, by its own name and those of the folders that it is in."""
    folders, name = {part.lower() for part in path.parts[:-1]}, path.name.lower()
    if name.startswith(_TEST) or folders & set(_TEST_FOLDERS):
        return "test"
    word = re.match(r"[a-z]*", name)
    return "validation" if (word and word[0] in _VALIDATION) or folders & set(_VALIDATION) else "train"


def _like_hub(name: str) -> bool:
    """Whether a name can be that of a data set on the Hub, as `hub_source` reads it: no file's ending."""
    return is_hub_id(name.partition(":")[0]) and not name.lower().endswith(FORMATS)
