"""The report as Markdown, with the pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alora_trainer.experiment.report import page_text
from alora_trainer.experiment.report.figures import FIGURES
from alora_trainer.experiment.report.gather import figure_name
from alora_trainer.experiment.report.page_tables import (
    PageTable,
    ablation_table,
    further_table,
    main_table,
    overlap_table,
    significance_table,
)


def markdown_page(numbers: Mapping[str, Any]) -> str:
    """The page for what `report_numbers` gave."""
    lines = ["# Report", ""]
    for comparison in numbers["comparisons"]:
        lines += _section(comparison)
    return "\n".join(lines)


def _section(comparison: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {comparison['task']}", "", page_text.headline(comparison), "")
    for sentence in page_text.findings(comparison):
        yield f"- {sentence}"
    yield from ("", *_table(main_table(comparison["table"])), "", page_text.TABLE_NOTE, "")
    yield from ("### Further measures and costs", "", *_table(further_table(comparison["table"])), "")
    if comparison["ablation"]:
        yield from (
            "### Ablation",
            "",
            *_table(ablation_table(comparison["ablation"])),
            "",
            page_text.ABLATION_NOTE,
            "",
        )
    if comparison["significance"]:
        yield from ("### Significance", "", *_table(significance_table(comparison["significance"])), "")
        yield from (page_text.SIGNIFICANCE_NOTE, "")
    for module in FIGURES:
        if module.NAME in comparison["figures"]:
            yield from (f"### {module.TITLE}", "")
            yield from (
                f"![{module.TITLE}](figures/{figure_name(comparison, module.NAME)}.png)",
                "",
                module.CAPTION,
                "",
            )
    yield from ("### Overlap of recording text and test", "")
    if comparison["overlap"]:
        yield from (*_table(overlap_table(comparison["overlap"])), "", page_text.OVERLAP_NOTE, "")
    else:
        yield from (page_text.NO_OVERLAP, "")
    if comparison["definitions"]:
        yield from ("### What the numbers are", "")
        yield from (f"- {name}: {meaning}" for name, meaning in comparison["definitions"].items())
        yield ""
    yield from (f"Made with {page_text.made_with(comparison)}.", "")


def _table(printed: PageTable) -> Iterator[str]:
    yield "| " + " | ".join(printed.header) + " |"
    yield "|" + "|".join([":--"] + ["--:"] * (len(printed.header) - 1)) + "|"
    for place, row in enumerate(printed.rows):
        cells = [f"**{cell}**" if (place, column) in printed.bold else cell for column, cell in enumerate(row)]
        yield "| " + " | ".join(cells) + " |"
