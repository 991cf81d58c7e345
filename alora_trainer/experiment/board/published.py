"""Figures that others published, to be drawn beside a board's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json
from alora_trainer.basics.keys import check_keys
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.measures import MEASURES

_KEYS = ("name", "source", "note", "task", "points")


def read_published(path: Path) -> dict[str, Any]:
    """A file of published figures, checked.

    Its keys: ``name``; ``source``, where they stand; ``note``, what is to be known of them; ``task``, the board's task
    that they are drawn with; and ``points``, each with a ``label`` and figures by the names in `MEASURES`.

    Raises:
        ALoRAError: there is no such file, or something in it is not as it should be.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ALoRAError(f"{path} holds no published figures: it must be an object with {', '.join(_KEYS)}")
    check_keys(content, _KEYS, path.name)
    for key in ("name", "source", "task"):
        if not isinstance(content.get(key), str):
            raise ALoRAError(f"{path} has no {key}")
    points = content.get("points")
    if not isinstance(points, list) or not points:
        raise ALoRAError(f"{path} has no points")
    for number, point in enumerate(points):
        if not isinstance(point, dict) or not isinstance(point.get("label"), str):
            raise ALoRAError(f"{path}: points[{number}] has no label")
        figures = {key: value for key, value in point.items() if key != "label"}
        check_keys(figures, list(MEASURES), f"points[{number}]")
        if not all(isinstance(value, (int, float)) for value in figures.values()):
            raise ALoRAError(f"{path}: a figure of {point['label']} is no number")
    return content
