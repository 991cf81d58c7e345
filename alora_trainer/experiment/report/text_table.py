"""The table at the end of a run: one line a method."""

from __future__ import annotations

import math
from collections.abc import Mapping

from alora_trainer.basics.scores import TaskScore
from alora_trainer.basics.tables import markdown_table
from alora_trainer.experiment.report.method_result import MethodResult, TrainingCost

_NONE = "-"


def format_table(results: Mapping[str, MethodResult], width: int | None = None) -> str:
    """`table_rows` as a Markdown table that is also readable as plain text.

    Args:
        results: as of `table_rows`.
        width: that a line may have; see `markdown_table`.
    """
    return markdown_table(table_rows(results), width)


def table_rows(results: Mapping[str, MethodResult]) -> list[list[str]]:
    """The header, and a line a method, as texts.

    Args:
        results: by method. Anything may be missing in them; the change is against the method called ``base``.

    Returns:
        The lines: method; token perplexity of the general text, and by how much general loss (its logarithm, which a budget is
        of) lies over that of ``base`` in per cent; of each task accuracy ± standard error and length-normalised accuracy in per
        cent, or of free answers loss and perplexity a token; seconds and peak memory of training.
    """
    tasks = list(dict.fromkeys(name for result in results.values() for name in result.tasks))
    free = [task for task in tasks if any(task in one.tasks and one.tasks[task].is_free for one in results.values())]
    header = ["method", "general perplexity", "loss rise"]
    for task in tasks:
        header += [f"{task} loss", "perplexity"] if task in free else [f"{task} acc (%)", "acc_norm (%)"]
    header += ["seconds", "peak memory"]
    base = _number(results.get("base", MethodResult()).general.loss)
    rows = [header]
    for method, result in results.items():
        perplexity, train = _perplexity(result), result.train or TrainingCost()
        row = [method, _NONE if perplexity is None else f"{perplexity:.2f}", _rise(_number(result.general.loss), base)]
        for task in tasks:
            score = result.tasks.get(task, TaskScore())
            if task in free:
                row += [_plain(score.answer_loss, 3), _plain(score.answer_perplexity, 2)]
            else:
                row += [_share(score.acc, score.acc_stderr), _share(score.acc_norm, score.acc_norm_stderr)]
        seconds = _number(train.seconds)
        row += [_NONE if seconds is None else f"{seconds:.0f}", _memory(train.peak_bytes)]
        rows.append(row)
    return rows


def _number(value: float | None) -> float | None:
    """None for nan, too: null in results.json. An infinite perplexity is one that can be said."""
    return None if value is None or math.isnan(value) else value


def _perplexity(result: MethodResult) -> float | None:
    return _number(result.general.token_perplexity)


def _rise(loss: float | None, base: float | None) -> str:
    """In per cent; with two digits, as a budget of one per cent is looked at."""
    if loss is None or not base:
        return _NONE
    return f"{100 * (loss / base - 1):+.2f} %"


def _plain(value: float | None, digits: int) -> str:
    found = _number(value)
    return _NONE if found is None else f"{found:.{digits}f}"


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
