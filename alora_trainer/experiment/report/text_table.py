"""The table at the end of a run: one line a method."""

from __future__ import annotations

import math
from collections.abc import Mapping

from alora_trainer.basics.printable import markdown_text
from alora_trainer.basics.scores import TaskScore
from alora_trainer.experiment.report.method_result import MethodResult, TrainingCost

_NONE = "-"


def format_table(results: Mapping[str, MethodResult]) -> str:
    """A Markdown table that is also readable as plain text.

    Args:
        results: by method. Anything may be missing in them; the change is against the method called ``base``.

    Returns:
        The lines: method, token perplexity of the general text and its change against ``base`` in per cent, accuracy ±
        standard error and length-normalised accuracy of each task in per cent, seconds and peak memory of training.
    """
    tasks = list(dict.fromkeys(name for result in results.values() for name in result.tasks))
    header = ["method", "general perplexity", "change"]
    for task in tasks:
        header += [f"{task} acc (%)", "acc_norm (%)"]
    header += ["seconds", "peak memory"]
    base = _perplexity(results.get("base", MethodResult()))
    rows = [header]
    for method, result in results.items():
        perplexity, train = _perplexity(result), result.train or TrainingCost()
        row = [method, _NONE if perplexity is None else f"{perplexity:.2f}", _change(perplexity, base)]
        for task in tasks:
            score = result.tasks.get(task, TaskScore())
            row += [_share(score.acc, score.acc_stderr), _share(score.acc_norm, score.acc_norm_stderr)]
        seconds = _number(train.seconds)
        row += [_NONE if seconds is None else f"{seconds:.0f}", _memory(train.peak_bytes)]
        rows.append(row)
    return _markdown(rows)


def _number(value: float | None) -> float | None:
    """None for nan, too: null in results.json. An infinite perplexity is one that can be said."""
    return None if value is None or math.isnan(value) else value


def _perplexity(result: MethodResult) -> float | None:
    return _number(result.general.token_perplexity)


def _change(perplexity: float | None, base: float | None) -> str:
    if perplexity is None or base is None:
        return _NONE
    return f"{100 * (perplexity / base - 1):+.1f} %"


def _share(value: float | None, error: float | None) -> str:
    if _number(value) is None:
        return _NONE
    assert value is not None
    spread = "" if error is None or math.isnan(error) else f" ± {100 * error:.1f}"
    return f"{100 * value:.1f}{spread}"


def _memory(peak: float | None) -> str:
    if not _number(peak):
        return _NONE
    assert peak is not None
    return f"{peak / 2**30:.2f} GiB" if peak >= 2**30 else f"{peak / 2**20:.0f} MiB"


def _markdown(rows: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, numbers to the right."""
    rows = [[markdown_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)
