"""The table at the end of a run: one line a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NONE = "-"


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table that is also readable as plain text.

    Args:
        results: method -> ``{"general": ..., "tasks": ..., "train": {"seconds", "peak_bytes"}}`` with the first two as
            `evaluate_model` returns them. Anything may be missing; the change is against the method called ``base``.

    Returns:
        The lines: method, token perplexity of the general text and its change against ``base`` in per cent, accuracy ±
        standard error and length-normalised accuracy of each task in per cent, seconds and peak memory of training.
    """
    tasks = list(dict.fromkeys(name for result in results.values() for name in result.get("tasks", {})))
    header = ["method", "general perplexity", "change"]
    for task in tasks:
        header += [f"{task} acc (%)", "acc_norm (%)"]
    header += ["seconds", "peak memory"]
    base = _perplexity(results.get("base", {}))
    rows = [header]
    for method, result in results.items():
        perplexity, train = _perplexity(result), result.get("train", {})
        row = [method, _NONE if perplexity is None else f"{perplexity:.2f}", _change(perplexity, base)]
        for task in tasks:
            scores = result.get("tasks", {}).get(task, {})
            row += [_accuracy(scores, "acc"), _accuracy(scores, "acc_norm")]
        seconds = train.get("seconds")
        row += [_NONE if seconds is None else f"{seconds:.0f}", _memory(train.get("peak_bytes"))]
        rows.append(row)
    return _markdown(rows)


def _perplexity(result: Mapping[str, Any]) -> float | None:
    value = result.get("general", {}).get("token_perplexity")
    return None if value is None else float(value)


def _change(perplexity: float | None, base: float | None) -> str:
    if perplexity is None or base is None:
        return _NONE
    return f"{100 * (perplexity / base - 1):+.1f} %"


def _accuracy(scores: Mapping[str, Any], metric: str) -> str:
    if scores.get(metric) is None:
        return _NONE
    error = scores.get(f"{metric}_stderr")
    return f"{100 * scores[metric]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _memory(peak: float | None) -> str:
    if not peak:
        return _NONE
    return f"{peak / 2**30:.2f} GiB" if peak >= 2**30 else f"{peak / 2**20:.0f} MiB"


def _markdown(rows: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)
