"""The rows of a board: a method with settings of its own, and the grid that is tried for it, written down beforehand."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alora_trainer.basics.keys import check_keys
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method, get_method
from alora_trainer.experiment.recipe.settings import as_mapping

_OF_ROW = ("method", "text", "settings", "grid")


@dataclass(frozen=True)
class Trial:
    """One point of a row's grid.

    Attributes:
        settings: as ``method_options`` of the row's method has them: dotted name -> value.
    """

    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """For people, such as ``learning_rate=0.002, lam=0.001``."""
        return ", ".join(f"{name.rpartition('.')[2]}={_short(value)}" for name, value in self.settings.items())


@dataclass(frozen=True)
class BoardRow:
    """One row of a board.

    Attributes:
        name: on the board.
        method: what trains it.
        text: one line for people; None takes the method's own.
        settings: of all its trials, over the recipe's, as ``method_options`` of the method has them.
        trials: what is tried.
    """

    name: str
    method: str
    text: str | None
    settings: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def description(self) -> str:
        """One line for people."""
        return self.text or get_method(self.method).description

    def overrides(self, trial: Trial) -> dict[str, str]:
        """A trial's settings over a recipe."""
        values = {**self.settings, **trial.settings}
        return {f"method_options.{self.method}.{name}": json.dumps(value) for name, value in values.items()}

    def variant(self, trial: Trial) -> str:
        """A trial's name in the names of folders."""
        return re.sub(r"[^\w.,=+-]", "_", f"{self.name},{trial.label.replace(', ', ',')}")


def read_row(name: str, written: Any, trials: int) -> BoardRow:
    """A row as a board file has it.

    Args:
        name: the row's.
        written: its keys: ``method`` (the row's name, if it is left out), ``text``, ``settings`` and ``grid``: settings of the
            method -> a list of values, all combinations of them; or a list of such mappings, one after the other.
        trials: how many there must be.

    Raises:
        ALoRAError: an unknown key or method; no grid; another number of trials, or one twice.
    """
    where = f"rows.{name}"
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ALoRAError(f"{where}: the name of a row must be of letters, digits and -_.+")
    values = as_mapping(written, where)
    check_keys(values, _OF_ROW, where)
    method: Method = get_method(str(values.get("method", name)))
    if not method.trains:
        raise ALoRAError(f"{where}: {method.name} trains nothing; the base model is on every board by itself")
    found = _grid(values.get("grid"), f"{where}.grid")
    labels = [trial.label for trial in found]
    if len(found) != trials:
        raise ALoRAError(
            f"{where}.grid has {len(found)} trials, and the board says trials: {trials}: every row is tuned with as many"
        )
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ALoRAError(f"{where}.grid has {twice[0]} twice")
    return BoardRow(
        name, method.name, values.get("text"), as_mapping(values.get("settings"), f"{where}.settings"), found
    )


def _grid(written: Any, where: str) -> tuple[Trial, ...]:
    parts = written if isinstance(written, list) else [written]
    trials: list[Trial] = []
    for part in parts:
        grid = as_mapping(part, where)
        if not grid or not all(isinstance(values, list) and values for values in grid.values()):
            raise ALoRAError(f"{where} must be settings with a list of values each, such as {{alora.lam: [0.01, 0.1]}}")
        trials += [Trial(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    return tuple(trials)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
