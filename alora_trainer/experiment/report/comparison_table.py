"""One task's comparison as a table for the terminal: mean and spread over seeds, a row a variant."""

from __future__ import annotations

from pathlib import PurePath

from alora_trainer.basics.tables import markdown_table
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.page_tables import main_table
from alora_trainer.experiment.report.variant_rows import variant_rows


def format_comparison(comparison: Comparison, width: int | None = None) -> str:
    """The report's first table, with a line above it that says of what; `width` as of `markdown_table`."""
    table = main_table(variant_rows(comparison))
    seeds = comparison.seeds
    over = (
        f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    )
    head = f"{comparison.task}, {PurePath(comparison.model).name}, {over}:"
    return f"{head}\n{markdown_table([table.header, *table.rows], width)}"
