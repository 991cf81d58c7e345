"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from html import escape
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

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1f2328; font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 21px; margin: 44px 0 6px; padding-top: 14px; border-top: 2px solid #0072b2; }
h3 { font-size: 16.5px; margin: 34px 0 8px; }
p, li { max-width: 78ch; }
nav a { margin-right: 14px; }
a { color: #005a8e; }
.note { color: #57606a; font-size: 13.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; margin: 8px 0; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e6ea; }
th { vertical-align: bottom; white-space: normal; min-width: 62px; color: #57606a; font-weight: 600; }
thead th { border-bottom: 1.5px solid #8c959f; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
tr.ours td { background: #eef6fc; }
td.best { font-weight: 700; }
figure { margin: 10px 0 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #57606a; font-size: 13.5px; max-width: 90ch; margin-top: 6px; }
dl { font-size: 13.5px; display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; }
dt { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
dd { margin: 0; }
details > summary { cursor: pointer; color: #005a8e; }
"""


def html_page(numbers: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page for what `report_numbers` gave.

    Args:
        numbers: from `report_numbers`.
        pictures: the figures as SVG, by name.
    """
    comparisons = numbers["comparisons"]
    links = "".join(f'<a href="#{escape(one["id"])}">{escape(one["task"])}</a>' for one in comparisons)
    sections = "\n".join(line for one in comparisons for line in _section(one, pictures))
    title = "What was forgotten, what was learned"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<nav>{links}</nav>\n"
        f"{sections}\n</main>\n</body>\n</html>\n"
    )


def _section(comparison: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    yield f'<section id="{escape(comparison["id"])}">\n<h2>{escape(comparison["task"])}</h2>'
    yield f"<p>{escape(page_text.headline(comparison))}</p>"
    said = page_text.findings(comparison)
    if said:
        yield "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"
    ours = {place for place, row in enumerate(comparison["table"]) if row["method"] == page_text.OURS}
    yield _table(main_table(comparison["table"]), ours) + _note(page_text.TABLE_NOTE)
    yield "<h3>Further measures and costs</h3>" + _table(further_table(comparison["table"]), ours)
    if comparison["ablation"]:
        yield "<h3>Ablation</h3>" + _table(ablation_table(comparison["ablation"])) + _note(page_text.ABLATION_NOTE)
    if comparison["significance"]:
        yield "<h3>Significance</h3>" + _table(significance_table(comparison["significance"]))
        yield _note(page_text.SIGNIFICANCE_NOTE)
    for module in FIGURES:
        name = figure_name(comparison, module.NAME)
        if name in pictures:
            # As data and not inline: the identifiers inside of several SVG files would clash in one document.
            data = base64.b64encode(pictures[name].encode("utf-8")).decode("ascii")
            yield f"<h3>{escape(module.TITLE)}</h3>"
            yield (
                f'<figure><img alt="{escape(module.TITLE)}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{escape(module.CAPTION)}</figcaption></figure>"
            )
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


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def _table(printed: PageTable, marked: set[int] | None = None) -> str:
    """A table; rows in `marked` are those of our own method."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in printed.header)
    body = []
    for place, row in enumerate(printed.rows):
        cells = "".join(
            f'<td class="best">{escape(cell)}</td>' if (place, column) in printed.bold else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        body.append(f'<tr class="ours">{cells}</tr>' if marked and place in marked else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
