"""The report from end to end: numbers first, then figures and pages made of these numbers alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import write_json, write_text
from alora_trainer.basics.folder_lock import check_folder, folder_lock
from alora_trainer.basics.printable import printable
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.drawing.pictures import Drawing, svg_file
from alora_trainer.experiment.report.figures import FIGURES
from alora_trainer.experiment.report.gather import Comparison, by_task, figure_name, read_runs
from alora_trainer.experiment.report.page_html import html_page
from alora_trainer.experiment.report.page_markdown import markdown_page
from alora_trainer.experiment.report.results import SCHEMA, RunResults
from alora_trainer.experiment.report.significance import significance
from alora_trainer.experiment.report.variant_rows import ablation_rows, variant_rows

NUMBERS = "report.json"


def write_report(sources: Iterable[str | Path], output_dir: str | Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``figures/`` (SVG) into a folder.

    Args:
        sources: as `read_runs` takes them; ``report.json`` of an earlier report is one, and gives the same report again.
        output_dir: where the report goes.

    Returns:
        The path of ``report.html``.

    Raises:
        ALoRAError: there are no results, or scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise ALoRAError(
            "a report needs scipy: pip install scipy (or, in a clone of alora-trainer, its extra: pip install '.[report]')"
        )
    folder = Path(output_dir)
    check_folder(folder)
    with folder_lock(folder):
        numbers = report_numbers(read_runs(sources))
        drawn: dict[str, list[Drawing]] = {}
        for comparison in numbers["comparisons"]:
            drawn |= draw_figures(comparison)
        pages = {"report.md": markdown_page(numbers), "report.html": html_page(numbers, drawn)}
        # Nothing is written before all is there: what fails on the way leaves an earlier report as it was.
        for name, drawings in drawn.items():
            write_text(folder / "figures" / f"{name}.svg", svg_file(drawings))
        write_json(folder / NUMBERS, numbers, indent=None)
        for name, page in pages.items():
            write_text(folder / name, page)
    return folder / "report.html"


def report_numbers(runs: Sequence[RunResults]) -> dict[str, Any]:
    """Everything that a report says, as plain data: the runs themselves, and what is computed from them.

    Returns:
        ``schema``; ``runs``, as they were read; ``comparisons``, one for each task and model: ``task``, ``model``, ``recipe``,
        ``seeds``, ``table``, ``ablation``, ``significance``, ``overlap``, ``definitions``, ``environment``, ``tokenizer`` and
        ``figures`` (what each of them draws, by name).
    """
    return {
        "schema": SCHEMA,
        "runs": [run.to_json() for run in runs],
        "comparisons": [_numbers(one) for one in by_task(runs)],
    }


def draw_figures(comparison: Mapping[str, Any]) -> dict[str, list[Drawing]]:
    """The figures of one comparison of `report_numbers`, by the names of their files without ending."""
    return {
        figure_name(comparison, module.NAME): module.draw(data)
        for module in FIGURES
        if (data := _printable(comparison["figures"].get(module.NAME))) is not None
    }


def _printable(data: Any) -> Any:
    """What a figure draws, with texts that can stand in XML."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, Mapping):
        return {_printable(key): _printable(value) for key, value in data.items()}
    return [_printable(one) for one in data] if isinstance(data, (list, tuple)) else data


def _numbers(comparison: Comparison) -> dict[str, Any]:
    rows = variant_rows(comparison)
    first = comparison.runs[0]
    result = next(iter(comparison.variants[0].entries.values()))
    return {
        "id": _identifier(comparison),
        "task": comparison.task,
        "model": comparison.model,
        "recipe": first.recipe,
        "seeds": comparison.seeds,
        "table": rows,
        "ablation": ablation_rows(rows),
        "significance": significance(comparison),
        "overlap": _overlap(comparison),
        "definitions": first.definitions or {},
        "environment": first.environment,
        "tokenizer": result.tokenizer,
        "figures": {module.NAME: data for module in FIGURES if (data := module.numbers(comparison)) is not None},
    }


def _identifier(comparison: Comparison) -> str:
    text = f"{comparison.task}-{Path(comparison.model).name}"
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in text)


def _overlap(comparison: Comparison) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for run in comparison.runs:
        if run.overlap is not None:
            found.setdefault(run.seed, dict(run.overlap))
    return [{"seed": seed, **found[seed]} for seed in sorted(found)]
