"""Where the data are that a person points at: a file, a folder, a pattern or a data set of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alora_trainer.basics.hub_ids import HUB_PREFIX, is_hub_id
from alora_trainer.data.local_files import FORMATS, find_files
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
