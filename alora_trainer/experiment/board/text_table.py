"""A board's rows as text: one table for every model and task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alora_trainer.basics.tables import markdown_table
from alora_trainer.experiment.board.board_json import number_in
from alora_trainer.experiment.board.page_chart import shown_value

_NONE = "-"
# Of the training that one would take.
_SHOWN = {
    "learned": "learned",
    "accuracy": "accuracy (%)",
    "rise_recorded": "rise, recorded kinds",
    "rise_other": "rise, other kinds",
}


def board_tables(board: Mapping[str, Any], width: int | None = None) -> str:
    """Markdown tables that are also readable as plain text.

    Args:
        board: from `read_board_json`.
        width: that a line may have; see `markdown_table`.

    Returns:
        For every model and task a heading and a line a row: the rise of general cross-entropy (nats a token) where as much was
        learned as some share of what the reference learned, the area behind the curve, and of the training that one would take
        what it learned, accuracy, rise by kinds of text, and settings; each mean ± standard error over seeds. What is not
        finished is named below.
    """
    return "\n\n".join(_table(result, width) for result in board["results"])


def _table(result: Mapping[str, Any], width: int | None) -> str:
    equal = list(dict.fromkeys(name for row in result["rows"] for name in row["equal"]))
    header = ["row", *(f"rise at {name.rpartition('_')[2]} %" for name in equal), "area", *_SHOWN.values(), "settings"]
    lines = [header]
    for row in result["rows"]:
        figures = row["taken"].get("figures", {})
        lines.append(
            [
                str(row["row"]),
                *(_spread(row["equal"].get(name), "rise") for name in equal),
                _spread(row["area"], None),
                *(_spread(figures.get(name), name) for name in _SHOWN),
                str(row["taken"].get("trial", _NONE)),
            ]
        )
    said = [f"{result['model']} on {result['task']}", "", markdown_table(lines, width)]
    if result["not_finished"]:
        said += ["", f"not finished: {', '.join(map(str, result['not_finished']))}"]
    return "\n".join(said)


def _spread(spread: Any, measure: str | None) -> str:
    mean, error = number_in(spread, "mean"), number_in(spread, "error")
    if mean is None:
        return _NONE
    if measure is not None:
        return shown_value(measure, mean, error)
    return f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}")
