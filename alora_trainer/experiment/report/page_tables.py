"""The report's tables as texts, which both kinds of page print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

NONE = "-"


@dataclass
class PageTable:
    """A table of texts.

    Attributes:
        header: one text a column; the first column names the rows.
        rows: of texts.
        bold: (row, column) of what is best.
    """

    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """With so many digits after the point, and with its sign if that is asked for."""
    if value is None:
        return NONE
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def mean_and_sd(measure: Mapping[str, Any] | None, digits: int, *, sign: bool = False) -> str:
    """Mean ± standard deviation; the mean alone where there is no spread."""
    if measure is None:
        return NONE
    mean = number(measure["mean"], digits, sign=sign)
    return mean if measure["sd"] is None else f"{mean} ± {measure['sd']:.{digits}f}"


def p_value(value: float | None) -> str:
    """With three digits after the point."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def gibibytes(measure: Mapping[str, Any] | None) -> str:
    """The mean of a measure in bytes, in GiB."""
    if measure is None or not measure["mean"]:
        return NONE
    return f"{measure['mean'] / 2**30:.2f}"


Column: TypeAlias = "tuple[str, str | None, list[str]]"  # header, the measure that `best` names, a text for each row


def main_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """What the methods forgot and learned."""
    return _columns(
        rows,
        [
            ("general perplexity", "perplexity", [mean_and_sd(row["perplexity"], 2) for row in rows]),
            ("its rise over base (%)", "rise", [mean_and_sd(row["rise"], 1, sign=True) for row in rows]),
            ("general loss's rise (%)", "loss_rise", [mean_and_sd(row["loss_rise"], 2, sign=True) for row in rows]),
            ("perplexity to LoRA (%)", None, [number(row["perplexity_over_lora"], 1, sign=True) for row in rows]),
            ("answer loss (nats a token)", "free_loss", [mean_and_sd(row["free_loss"], 3) for row in rows]),
            ("answer perplexity", "free_perplexity", [mean_and_sd(row["free_perplexity"], 2) for row in rows]),
            ("accuracy (%)", "accuracy", [mean_and_sd(row["accuracy"], 1) for row in rows]),
            ("its standard error over items", None, [number(row["item_error"], 1) for row in rows]),
            ("accuracy to base (points)", None, [number(row["accuracy_over_base"], 1, sign=True) for row in rows]),
            ("accuracy to LoRA (points)", None, [number(row["accuracy_over_lora"], 1, sign=True) for row in rows]),
            ("seeds", None, [str(len(row["seeds"])) for row in rows]),
        ],
    )


def further_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """Further measures and costs."""
    return _columns(
        rows,
        [
            ("acc_norm (%)", "accuracy_norm", [mean_and_sd(row["accuracy_norm"], 1) for row in rows]),
            ("KL to base (nats a token)", "kl", [mean_and_sd(row["kl"], 3) for row in rows]),
            ("calibration error", "ece", [mean_and_sd(row["ece"], 3) for row in rows]),
            ("tuning (s)", None, [mean_and_sd(row["seconds"], 0) for row in rows]),
            ("before it (s)", None, [mean_and_sd(row["seconds_before"], 0) for row in rows]),
            ("peak memory (GiB)", None, [gibibytes(row["peak_bytes"]) for row in rows]),
        ],
    )


def _columns(rows: Sequence[Mapping[str, Any]], columns: list[Column]) -> PageTable:
    """A table of methods; columns that nothing was measured for are left out."""
    columns = [column for column in columns if any(text != NONE for text in column[2])]
    printed = PageTable(["method", *(header for header, _, _ in columns)], [])
    for place, row in enumerate(rows):
        printed.rows.append([row["label"], *(texts[place] for _, _, texts in columns)])
        printed.bold |= {(place, at) for at, (_, measure, _) in enumerate(columns, start=1) if measure in row["best"]}
    return printed


def significance_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """One row a pair: the tests over seeds and the bootstrap over items."""
    printed = PageTable(
        [
            "pair (first - second)",
            "accuracy (pt)",
            "Welch p",
            "perplexity",
            "Welch p",
            "accuracy over items (pt)",
            "95 % interval",
            "bootstrap p",
        ],
        [],
    )
    for row in rows:
        accuracy, perplexity, items = (row[key] or {} for key in ("accuracy", "perplexity", "items"))
        interval = f"{items['low']:+.1f} to {items['high']:+.1f}" if items else NONE
        printed.rows.append(
            [
                f"{row['ours']} - {row['other']}",
                number(accuracy.get("difference"), 1, sign=True),
                p_value(accuracy.get("p")),
                number(perplexity.get("difference"), 2, sign=True),
                p_value(perplexity.get("p")),
                number(items.get("difference"), 1, sign=True),
                interval,
                p_value(items.get("p")),
            ]
        )
    return printed


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """The paper's table 2."""
    printed = PageTable(["what", "method", "general perplexity", "rise over base (%)", "accuracy (%)"], [])
    for row in rows:
        texts = [
            mean_and_sd(row["perplexity"], 2),
            mean_and_sd(row["rise"], 1, sign=True),
            mean_and_sd(row["accuracy"], 1),
        ]
        printed.rows.append([row["what"], row["label"], *texts])
    return printed


def overlap_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """Test items that the recording text holds."""
    printed = PageTable(["seed", "test items", "with a run of 13 words", "sharing one with the recording text"], [])
    for row in rows:
        printed.rows.append([str(row["seed"]), str(row["items"]), str(row["long_enough"]), str(row["overlapping"])])
    return printed
