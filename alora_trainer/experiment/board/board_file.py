"""A board file: models, tasks and rows, how each is tuned, and how many trials and seeds; everything in it is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_trainer.basics.keys import check_keys, meant_path
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.learning import LEARNING, Learning
from alora_trainer.experiment.board.rows import BoardRow, read_row
from alora_trainer.experiment.recipe.settings import as_mapping, check_no_secrets, parse_yaml
from alora_trainer.experiment.run.sweep import parse_seeds

KEYS = (
    "name",
    "title",
    "models",
    "tasks",
    "settings",
    "validation",
    "finals",
    "trials",
    "shares",
    "reference",
    "against",
    "rows",
    "published",
    "left_out",
)
_OF_TASK = ("recipe", "settings", "validation", "learning")
_OF_VALIDATION = ("seed", "settings")
_OF_FINALS = ("seeds", "points", "settings")
_SHARES = (0.9, 0.95)
PARETO = "pareto"  # as finals.points: all of the front


@dataclass(frozen=True, eq=False)
class BoardTask:
    """One task that rows learn.

    Attributes:
        name: on the board.
        recipe: its file.
        settings: over the recipe, as overrides (dotted name -> text).
        validation: over these, to tune on: what takes the place of the test's text and items.
        learning: what says how much was learned.
    """

    name: str
    recipe: Path
    settings: Mapping[str, str]
    validation: Mapping[str, str]
    learning: Learning


@dataclass(frozen=True, eq=False)
class Board:
    """A board file, read and checked.

    Attributes:
        name, title: for files and people.
        path: the file.
        models: name -> the recipe's section `model`, as its override.
        tasks: what is learned.
        settings: over all recipes.
        validation_seed, validation: of all trials, and settings over theirs.
        seeds, final: of all finals, and settings over theirs.
        points: at most so many trials of a row are finals; None is the whole Pareto front.
        trials: how many every row has.
        shares: of what the reference learned, at which forgetting is compared.
        reference: the row that says how much there is to learn: plain LoRA.
        against: the rows that all others are compared with.
        rows: in their order, which is that of the work.
        published: files with figures of others, to be drawn beside.
        left_out: what is not on the board, and why.
        written: the file's content.
    """

    name: str
    title: str
    path: Path
    models: Mapping[str, str]
    tasks: tuple[BoardTask, ...]
    settings: Mapping[str, str]
    validation_seed: int
    validation: Mapping[str, str]
    seeds: tuple[int, ...]
    final: Mapping[str, str]
    points: int | None
    trials: int
    shares: tuple[float, ...]
    reference: str
    against: tuple[str, ...]
    rows: tuple[BoardRow, ...]
    published: tuple[Path, ...]
    left_out: str | None
    written: Mapping[str, Any]

    def row(self, name: str) -> BoardRow:
        """The row of this name.

        Raises:
            ALoRAError: there is none; the message names the nearest one.
        """
        check_keys([name], [row.name for row in self.rows], "rows")
        return next(row for row in self.rows if row.name == name)

    def only(self, names: list[str]) -> list[BoardRow]:
        """The rows of these names, in the board's order, and with them the reference and those that are compared with.

        Raises:
            ALoRAError: as `row`.
        """
        wanted = {self.row(name).name for name in names} | {self.reference}
        return [row for row in self.rows if row.name in wanted]


def read_board(path: str | Path) -> Board:
    """Read and check a board file. What its recipes make of the settings is looked at by `cells.check_cells`.

    Raises:
        ALoRAError: the file cannot be read; a key is unknown (the message names the nearest one), missing, or of another kind;
            a row has another number of trials than the board says; there is no such method or file.
    """
    path = Path(path)
    try:
        content = as_mapping(parse_yaml(path.read_text(encoding="utf-8"), str(path)), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ALoRAError(f"the board {path} cannot be read: {reason}; {meant_path(path)}".rstrip("; ")) from error
    check_no_secrets(content, "")
    if "domain" in content and "rows" not in content:
        raise ALoRAError(f"{path} is a recipe, and no board: alora run {path} (docs/board.md says what a board is)")
    check_keys(content, KEYS)
    for key in ("models", "tasks", "rows", "trials", "reference"):
        if not content.get(key):
            raise ALoRAError(f"{path} has no {key}: see docs/board.md")
    validation = _section(content, "validation", _OF_VALIDATION)
    finals = _section(content, "finals", _OF_FINALS)
    trials = _count(content["trials"], "trials")
    rows = tuple(read_row(name, written, trials) for name, written in as_mapping(content["rows"], "rows").items())
    names = [row.name for row in rows]
    reference, against = content["reference"], content.get("against") or [content["reference"]]
    check_keys([reference], names, "rows")
    if not isinstance(against, list):
        raise ALoRAError(f"against={against!r} must be a list of rows")
    check_keys(against, names, "rows")
    points = finals.get("points", PARETO)
    title = content.get("title") or content.get("name") or path.stem
    return Board(
        name=_word(content.get("name", path.stem), "name"),
        title=str(title),
        path=path,
        models={name: json.dumps(as_mapping(one, f"models.{name}")) for name, one in _named(content, "models")},
        tasks=tuple(_task(name, as_mapping(one, f"tasks.{name}"), path) for name, one in _named(content, "tasks")),
        settings=_overrides(content, "settings", ""),
        validation_seed=_count(validation.get("seed", 100), "validation.seed", least=0),
        validation=_overrides(validation, "settings", "validation."),
        seeds=tuple(parse_seeds(str(finals.get("seeds", "0,1,2")))),
        final=_overrides(finals, "settings", "finals."),
        points=None if points == PARETO else _count(points, "finals.points", or_else=PARETO),
        trials=trials,
        shares=_shares(content.get("shares", list(_SHARES))),
        reference=reference,
        against=tuple(against),
        rows=rows,
        published=tuple(_file(path.parent / one, "published") for one in content.get("published") or ()),
        left_out=content.get("left_out"),
        written=content,
    )


def _named(content: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    return [(_word(name, section), value) for name, value in as_mapping(content[section], section).items()]


def _word(name: Any, where: str) -> str:
    """A name that may be a folder's."""
    if not isinstance(name, str) or not name or not all(sign.isalnum() or sign in "-_." for sign in name):
        raise ALoRAError(f"{where}: {name!r} must be a name of letters, digits and -_.")
    return name


def _section(content: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    section = as_mapping(content.get(name), name)
    check_keys(section, keys, name)
    return section


def _task(name: str, written: Mapping[str, Any], board: Path) -> BoardTask:
    where = f"tasks.{name}"
    check_keys(written, _OF_TASK, where)
    for key in ("recipe", "validation"):
        if not written.get(key):
            raise ALoRAError(f"{where} has no {key}: rows are tuned on other items than they are tested on")
    return BoardTask(
        name,
        _file(board.parent / str(written["recipe"]), f"{where}.recipe"),
        _overrides(written, "settings", f"{where}."),
        _overrides(written, "validation", f"{where}."),
        Learning.named(str(written.get("learning", LEARNING)), f"{where}.learning"),
    )


def _file(path: Path, where: str) -> Path:
    if not path.is_file():
        raise ALoRAError(f"{where}: there is no file {path} (paths in a board start from its folder)")
    return path


def _overrides(section: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """Settings over a recipe, each as the text that an override has."""
    written = as_mapping(section.get(key), f"{where}{key}")
    if "methods" in written or "seed" in written:
        raise ALoRAError(
            f"{where}{key}: methods and seed are the board's own: see rows, validation.seed and finals.seeds"
        )
    return {name: json.dumps(value) for name, value in written.items()}


def _count(value: Any, where: str, *, least: int = 1, or_else: str | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        others = f", or {or_else}" if or_else else ""
        raise ALoRAError(f"{where}={value!r} must be a whole number of at least {least}{others}")
    return value


def _shares(values: Any) -> tuple[float, ...]:
    numbers = isinstance(values, list) and values and all(isinstance(value, (int, float)) for value in values)
    if not numbers or not all(0 < value <= 1 for value in values):
        raise ALoRAError(f"shares={values!r} must be a list of numbers above 0 and up to 1, such as [0.9, 0.95]")
    return tuple(float(value) for value in values)
