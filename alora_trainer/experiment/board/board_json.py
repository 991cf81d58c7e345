"""board.json: all trials and finals of a board and what was computed from them. It is written and read here alone.

It holds no times, so that the same board gives the same file, byte for byte; what trainings took is in ``costs.json``
beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import Board
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.board.published import read_published
from alora_trainer.experiment.report.results import environment

BOARD_FILE, COSTS_FILE = "board.json", "costs.json"
SCHEMA = 2
# Of those before, trials and finals are read as they are; what was computed from them was defined otherwise.
_TRAININGS_OF = (1, SCHEMA)
# What readers ask of each entry, by the kind of its value.
_OF_RESULT: Mapping[str, type] = {
    "model": str,
    "task": str,
    "learning": str,
    "base": dict,
    "reference": dict,
    "trials": list,
    "finals": list,
    "rows": list,
    "comparisons": list,
    "noise": dict,
    "recorded": list,
    "other": list,
    "not_finished": list,
}
# And of each entry of its lists.
_OF_ENTRIES: Mapping[str, Mapping[str, type]] = {
    "trials": {"row": str, "trial": str, "validation": dict},
    "finals": {"row": str, "trial": str, "seeds": dict},
    "rows": {"row": str, "equal": dict, "area": dict, "taken": dict},
    "comparisons": {"row": str, "against": str, "measure": str, "over": str, "verdict": str},
}


def write_board(folder: Path, board: Board, results: Sequence[Mapping[str, Any]]) -> None:
    """Write ``board.json`` into `folder`, whole or not at all.

    Args:
        folder: the board's.
        board: what was run.
        results: an entry a model and task (see `collect.PlaceFound.to_json`).
    """
    content = {
        "schema": SCHEMA,
        "board": board.name,
        "title": board.title,
        "command": f"alora board {board.path.name}",
        "complete": all(not result["not_finished"] for result in results),
        "left_out": board.left_out,
        "written": board.written,
        "environment": environment(),
        "measures": {name: dataclasses.asdict(measure) for name, measure in MEASURES.items()},
        "rows": [
            {"name": row.name, "method": row.method, "text": row.description, "settings": dict(row.settings)}
            for row in board.rows
        ],
        "published": [read_published(path) for path in board.published],
        "results": list(results),
    }
    write_json(folder / BOARD_FILE, content)


def write_costs(folder: Path, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``costs.json``: by training, what it and its recording took (see `TrainingCost`).

    Args:
        folder: the board's.
        outcomes: by cell, as `work_on_cell` leaves them.
    """
    costs = {
        name: {
            stage: {key: entry[stage].get(key) for key in ("seconds", "peak_bytes", "steps")}
            for stage in ("train", "record")
            if stage in entry
        }
        for name, outcome in outcomes.items()
        for entry in outcome["entries"].values()
    }
    write_json(folder / COSTS_FILE, {"schema": SCHEMA, "trainings": costs})


def read_board_json(path: Path, *, trainings_only: bool = False) -> dict[str, Any]:
    """What `write_board` wrote, or somebody else: nothing in it is trusted.

    Args:
        path: of the file, or its folder.
        trainings_only: only the trials and finals in it are wanted, which earlier versions wrote as this one does.

    Raises:
        ALoRAError: there is no such file, it is of another schema, or what a page needs is not there or of another kind.
    """
    if path.is_dir():
        path = path / BOARD_FILE
    content = read_json(path)
    if content is None:
        raise ALoRAError(f"there is no file {path}: name board.json of a board, or its folder")
    if not isinstance(content, dict) or "results" not in content or "board" not in content:
        raise ALoRAError(f"{path} is no board: name board.json of `alora board`")
    schema = content.get("schema")
    if schema not in (_TRAININGS_OF if trainings_only else (SCHEMA,)):
        again = (
            ": the same `alora board` in its folder writes it anew, and trains nothing"
            if schema in _TRAININGS_OF
            else ""
        )
        raise ALoRAError(f"{path} has schema {schema!r}, and this version reads {SCHEMA}{again}")
    _need(content, {"title": str, "rows": list, "results": list, "published": list}, str(path))
    for place, row in enumerate(content["rows"]):
        _need(row, {"name": str, "method": str, "text": str}, f"{path}, rows[{place}]")
    for place, result in enumerate(content["results"]):
        where = f"{path}, results[{place}]"
        _need(result, _OF_RESULT, where)
        for name, keys in _OF_ENTRIES.items():
            for number, entry in enumerate([] if trainings_only and name == "rows" else result[name]):
                _need(entry, keys, f"{where}.{name}[{number}]")
    return content


def _need(value: Any, keys: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise ALoRAError(f"{where} is no object: the file is damaged, or is another")
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            raise ALoRAError(f"{where} has no {key!r} of the right kind: the file is damaged, or is another")


def number_in(value: Any, *path: str) -> float | None:
    """The finite number at a path of keys in somebody's JSON; None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if fine and math.isfinite(value) else None
