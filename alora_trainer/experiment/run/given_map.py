"""A map that is given to a run, in the place of one that it would make: for which methods, and what tells it from others."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from alora_trainer.artefact.hub.download import config_of, fetch, pinned
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.contents import CONTENTS
from alora_trainer.experiment.run.dependencies import Given
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.recording.measured import MEASURED, Measured


class GivenMap:
    """A map, at one commit: one run keeps to one map.

    Args:
        source: a folder or Hub id.
        storage: the format that the recipe holds importance in; None is the map's own.
    """

    def __init__(self, source: str, storage: str | None) -> None:
        self._source = source
        self._storage = storage

    @cached_property
    def place(self) -> str:
        """The map's folder, or its Hub id with the commit.

        Raises:
            ALoRAError: there is no such map.
        """
        # What recipes say of storage is of element-wise importance; any other is taken as it is.
        elementwise = config_of(self._source).kind == ELEMENTWISE
        return pinned(self._source, storage=self._storage if elementwise else None)

    @cached_property
    def identity(self) -> Given:
        """What tells the map from every other."""
        folder = Path(self.place)
        return CONTENTS.loaded(folder) if folder.is_dir() else self.place

    @cached_property
    def measured(self) -> Measured | None:
        """What the map measures; None for one that was recorded in a training."""
        return MEASURED.get(config_of(self.place).info.estimator or "")

    def is_for(self, method: Method | None) -> bool:
        """Whether a method starts from such a map, or is held by it.

        A map that was recorded is for those that go on from a recording; one that was measured, for those held by the same.

        Args:
            method: None is the recording that methods share.
        """
        if method is None:
            return self.measured is None
        return method.takes_map and method.measured == self.measured

    def check(self, method: Method) -> None:
        """Raise ALoRAError if the map is not for the method."""
        if not self.is_for(method):
            held = f"of {self.measured.name} importance" if self.measured else "recorded in a training"
            wanted = f"one of {method.measured.name} importance" if method.measured else "one that was recorded in one"
            raise ALoRAError(f"the importance map {self._source} is {held}, and {method.name} takes {wanted}")

    def folder(self, storage: str | None) -> Path:
        """The files of the map, fetched if need be.

        Args:
            storage: the format that they are read in; None is the first one.
        """
        return fetch(self.place, storage=storage)[0]
