"""The report as Markdown, with the pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alora_trainer.basics.printable import markdown_text
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
from alora_trainer.experiment.report.verdict import verdict


def markdown_page(numbers: Mapping[str, Any]) -> str:
    """The page for what `report_numbers` gave; names and words of the runs are in it as text, whatever they are."""
    lines = ["# Report", ""]
    for comparison in numbers["comparisons"]:
        lines += _section(comparison)
    return "\n".join(lines)


def _section(comparison: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {markdown_text(comparison['task'])}", "", markdown_text(page_text.headline(comparison)), "")
    for question, answer in verdict(comparison):
        yield from (f"**{question}** {markdown_text(answer)}", "")
    for sentence in page_text.findings(comparison):
        yield f"- {markdown_text(sentence)}"
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
                f"![{module.TITLE}](figures/{figure_name(comparison, module.NAME)}.svg)",
                "",
                module.CAPTION,
                "",
            )
            if comparison["figures"][module.NAME].get("note"):
                yield from (markdown_text(comparison["figures"][module.NAME]["note"]), "")
    yield from ("### Overlap of recording text and test", "")
    if comparison["overlap"]:
        yield from (*_table(overlap_table(comparison["overlap"])), "", page_text.OVERLAP_NOTE, "")
    else:
        yield from (page_text.NO_OVERLAP, "")
    if comparison["definitions"]:
        yield from ("### What the numbers are", "")
        meanings = comparison["definitions"].items()
        yield from (f"- {markdown_text(name)}: {markdown_text(meaning)}" for name, meaning in meanings)
        yield ""
    yield from (f"Made with {markdown_text(page_text.made_with(comparison))}.", "")


def _table(printed: PageTable) -> Iterator[str]:
    yield "| " + " | ".join(map(markdown_text, printed.header)) + " |"
    yield "|" + "|".join([":--"] + ["--:"] * (len(printed.header) - 1)) + "|"
    for place, row in enumerate(printed.rows):
        texts = [markdown_text(cell) for cell in row]
        cells = [f"**{text}**" if (place, column) in printed.bold else text for column, text in enumerate(texts)]
        yield "| " + " | ".join(cells) + " |"
