"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.report import page_text
from alora_trainer.experiment.report.drawing.chart import Chart
from alora_trainer.experiment.report.drawing.marks import swatch
from alora_trainer.experiment.report.drawing.page import axis_tools, filters, whole_page
from alora_trainer.experiment.report.drawing.pictures import Drawing, in_page
from alora_trainer.experiment.report.drawing.table import PageCell, sortable
from alora_trainer.experiment.report.figures import FIGURES, pareto
from alora_trainer.experiment.report.figures.axes import AXES
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

TITLE = "What was forgotten, what was learned"
_NUMBER = re.compile(r"[<+-]?\s*(\d+(\.\d+)?)")


def html_page(numbers: Mapping[str, Any], drawings: Mapping[str, Sequence[Drawing]]) -> str:
    """The page for what `report_numbers` gave.

    Args:
        numbers: from `report_numbers`.
        drawings: the figures, by name.
    """
    comparisons = numbers["comparisons"]
    methods = list(dict.fromkeys(row["method"] for one in comparisons for row in one["table"]))
    links = "".join(f'<a href="#{escape(one["id"])}">{escape(one["task"])}</a>' for one in comparisons)
    nav = f"<nav>{links}</nav>\n" if len(comparisons) > 1 else ""
    boxes = filters(methods, methods, {}) if len(methods) > 1 else ""
    sections = "\n".join(line for one in comparisons for line in _section(one, drawings, boxes))
    return whole_page(TITLE, f"{nav}{sections}\n", AXES)


def _section(comparison: Mapping[str, Any], drawings: Mapping[str, Sequence[Drawing]], boxes: str) -> Iterator[str]:
    methods = list(dict.fromkeys(row["method"] for row in comparison["table"]))
    yield f'<section id="{escape(comparison["id"])}">\n<h2>{escape(comparison["task"])}</h2>'
    answers = "".join(f"<p><strong>{escape(ask)}</strong> {escape(said)}</p>" for ask, said in verdict(comparison))
    yield f'<div class="verdict">{answers}</div>'
    yield _note(page_text.headline(comparison))
    said = page_text.findings(comparison)
    if said:
        yield "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"
    yield boxes
    yield _methods_table(main_table(comparison["table"]), comparison["table"], methods) + _note(page_text.TABLE_NOTE)
    yield "<h3>Further measures and costs</h3>"
    yield _methods_table(further_table(comparison["table"]), comparison["table"], methods)
    if comparison["ablation"]:
        yield "<h3>Ablation</h3>" + _table(ablation_table(comparison["ablation"])) + _note(page_text.ABLATION_NOTE)
    if comparison["significance"]:
        yield "<h3>Significance</h3>" + _table(significance_table(comparison["significance"]))
        yield _note(page_text.SIGNIFICANCE_NOTE)
    for module in FIGURES:
        shown = drawings.get(figure_name(comparison, module.NAME))
        if shown:
            yield f"<h3>{escape(module.TITLE)}</h3>"
            figures = "".join(in_page(one, _tools(module.NAME, one)) for one in shown)
            note = comparison["figures"][module.NAME].get("note")
            yield f'<div class="figures">{figures}</div>{_note(module.CAPTION)}{_note(note) if note else ""}'
    yield "<h3>Overlap of recording text and test</h3>"
    if comparison["overlap"]:
        yield _table(overlap_table(comparison["overlap"])) + _note(page_text.OVERLAP_NOTE)
    else:
        yield _note(page_text.NO_OVERLAP)
    if comparison["definitions"]:
        terms = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>" for name, what in comparison["definitions"].items()
        )
        yield f"<h3>What the numbers are</h3>\n<dl>{terms}</dl>"
    yield _note(f"Made with {page_text.made_with(comparison)}.")
    yield "</section>"


def _tools(name: str, drawing: Drawing) -> str:
    if name == pareto.NAME and isinstance(drawing, Chart):
        return axis_tools(drawing, pareto.ACROSS, pareto.UP)
    return ""


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _methods_table(printed: PageTable, rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """A table with a row a variant; those of our own method stand out, and the filters hide them by method."""
    lines = []
    for place, (texts, row) in enumerate(zip(printed.rows, rows, strict=True)):
        name = f"{swatch(row['method'], methods)} {escape(texts[0])}"
        cells = [PageCell(texts[0], kind="text", html=name)]
        for column, text in enumerate(texts[1:], start=1):
            cells.append(PageCell(text, _value(text), kind="best" if (place, column) in printed.bold else ""))
        lines.append((row["method"], cells))
    return sortable(printed.header, lines, [page_text.OURS])


def _value(text: str) -> float | None:
    """What a cell is sorted by: the number that it begins with."""
    found = _NUMBER.match(text)
    return None if found is None else float(found[1]) * (-1 if text.startswith("-") else 1)


def _table(printed: PageTable) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in printed.header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in printed.rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
