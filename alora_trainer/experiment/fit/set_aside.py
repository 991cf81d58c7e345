"""Fits one after the other in one folder: the earlier one is set aside in it, whole, before the next takes its place.

DIR/earlier/1, /2, ... have the earlier fits, and DIR/after.json says which of them the present one comes after, for which data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.fit.look import contents_of
from alora_trainer.experiment.fit.request import FitRequest

PAGE = "report.html"  # written when a fit is finished
HELD_BY = "held_by.json"  # the map, where a fit did not measure its own
FOUND_MAP = "found_map.json"
_NOTE, _EARLIER = "after.json", "earlier"
_OF_A_FIT = (
    *("recipe.yaml", "data", "probes", "run", "adapter", "merged", "promise", "versions.lock", HELD_BY, FOUND_MAP),
    PAGE,  # last: until then the fit in the folder can still be seen to be finished
)


@dataclass(frozen=True)
class SetAside:
    """An earlier fit that is, or will be, in a folder of the one that comes after it.

    Attributes:
        folder: of both.
        place: where the earlier one lies once it is set aside.
        data: the content of what the later one learns.
        begun: whether the later one has begun: whether the earlier one is on its way there, or is there.
        moved: whether it is there.
    """

    folder: Path
    place: Path
    data: Sequence[Any]
    begun: bool = False
    moved: bool = False

    @property
    def now(self) -> Path:
        """Where the earlier fit is."""
        return self.place if (self.place / "data").is_dir() else self.folder

    def move(self) -> None:
        """Set it aside; what was killed on the way goes on where it was."""
        note = {"after": str(self.place.relative_to(self.folder)), "data": list(self.data), "moved": False}
        write_json(self.folder / _NOTE, note)
        self.place.mkdir(parents=True, exist_ok=True)
        for name in _OF_A_FIT:
            if (self.folder / name).exists():
                os.rename(self.folder / name, self.place / name)
        write_json(self.folder / _NOTE, note | {"moved": True})


def set_aside(request: FitRequest) -> SetAside | None:
    """What is to be set aside for `request`, or was; None where it comes after no fit, or after one in another folder.

    Raises:
        ALoRAError: the fit in the folder is not finished.
    """
    folder = request.output_dir
    if request.after is None or request.after.resolve() != folder.resolve():
        return None
    data = contents_of(request.data)
    note = read_json(folder / _NOTE)
    if note is not None and note["data"] == data:
        return SetAside(folder, folder / note["after"], data, begun=True, moved=bool(note["moved"]))
    if not (folder / PAGE).is_file():
        raise ALoRAError(
            f"--after {folder} is the --output_dir, too, and the fit in it is not finished: finish it by its own command, or "
            "choose another --output_dir"
        )
    number = 1 + len(list((folder / _EARLIER).glob("*")))
    return SetAside(folder, folder / _EARLIER / str(number), data)


def as_it_lies(request: FitRequest) -> FitRequest:
    """The request with the place where the earlier fit is at present.

    Raises:
        ALoRAError: as `set_aside`.
    """
    aside = set_aside(request)
    return request if aside is None else replace(request, after=aside.now)


def refuse_own_folder(request: FitRequest) -> None:
    """Raise ALoRAError if the recipe alone is asked for where the earlier fit is."""
    if request.after is not None and request.after.resolve() == request.output_dir.resolve():
        raise ALoRAError(
            f"--after {request.after} is the --output_dir, too: `alora fit` sets the earlier fit aside there; for the recipe "
            "alone, choose another folder"
        )
