"""A step of a run on disk: it remembers the settings that it was made with, and whether it was finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alora_trainer.basics.disclosure import as_settings, is_secret_name
from alora_trainer.basics.files import is_leftover, read_json, remove_folder, write_json
from alora_trainer.errors import ALoRAError

SETTINGS_FILE = "settings.json"


class Stage:
    """A step of a run in a folder of its own, and the settings that its outcome depends on.

    Args:
        folder: the step's own.
        settings: everything that the outcome depends on, as plain data (see `dependencies`).
        outcome: the name of the JSON file that is written, last and whole, when the step is finished.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], outcome: str) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = plain(settings)
        self._path = folder / f"{outcome}.json"

    @property
    def digest(self) -> str:
        """A digest of the settings."""
        return digest(self.settings)

    def check(self, *, overwrite: bool = False) -> None:
        """What `begin` and `finished` would refuse, without writing anything.

        Args:
            overwrite: as of `begin`.

        Raises:
            ALoRAError: there is work of other settings in the folder (the message says which), or it is not ours.
        """
        found = read_json(self.folder / SETTINGS_FILE)
        if found is None and self._holds_others_files():
            raise ALoRAError(f"{self.folder} holds files that no run made: choose another --output_dir")
        if found not in (None, self.settings) and self._holds_work() and not overwrite:
            raise ALoRAError(self._stale(found))
        self.finished(overwrite=overwrite)

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder and note the settings in it, or go on in it if it was begun with the same ones.

        Args:
            overwrite: remove what other settings made, and begin anew.

        Raises:
            ALoRAError: as `check`.
        """
        self.check(overwrite=overwrite)
        found = read_json(self.folder / SETTINGS_FILE)
        if found == self.settings:
            return
        if found is not None:
            remove_folder(self.folder)
        write_json(self.folder / SETTINGS_FILE, self.settings)

    def _holds_others_files(self) -> bool:
        """Whether there is anything but what a process that was killed left half-written."""
        if self.folder.exists() and not self.folder.is_dir():
            return True
        return self.folder.is_dir() and not all(map(is_leftover, self.folder.iterdir()))

    def _holds_work(self) -> bool:
        """Whether anything would be lost with this folder: not if a mistake in the recipe ended it as it began."""
        return self._path.exists() or any(self.folder.glob("checkpoints/checkpoint-*"))

    def finished(self, *, overwrite: bool = False) -> dict[str, Any] | None:
        """The outcome, if the step is finished; None if it is still to do.

        Args:
            overwrite: what other settings made does not count.

        Raises:
            ALoRAError: it was made with other settings; the message says which.
        """
        found = read_json(self._path)
        if found is None:
            return None
        if found.pop("settings_digest", None) == self.digest:
            return {key: value for key, value in found.items() if key != "settings"}
        if overwrite:
            return None
        raise ALoRAError(self._stale(found.get("settings")))

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """Mark the step as finished, with its outcome."""
        write_json(self._path, {**outcome, "settings": self.settings, "settings_digest": self.digest})

    def _stale(self, found: Any) -> str:
        return (
            f"{self.folder} was made with other settings ({differences(found, self.settings)}): "
            "choose another --output_dir, or pass --overwrite to make it anew"
        )


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back; what comes from the environment is told by its digest alone."""
    made: dict[str, Any] = json.loads(json.dumps(as_settings(settings), default=str))
    return made


def digest(settings: Mapping[str, Any]) -> str:
    """A digest of plain data (see `plain`) that does not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()


def differences(found: Any, wanted: Any) -> str:
    """Which settings differ and how, for a message: the first three by dotted name, and how many more."""
    before, now = _flat(found or {}), _flat(wanted)
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    shown = [
        f"{key} is secret" if is_secret_name(key) else f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in changed[:3]
    ]
    return ", ".join(shown) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    nested = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return {key: item for one in nested for key, item in one.items()}
