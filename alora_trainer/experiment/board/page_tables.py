"""The tables of a board's page: rows over all boards, comparisons with their P values, and every trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.board.board_json import number_in
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.board.page_chart import shown_value
from alora_trainer.experiment.board.paired import BETTER, NOT_BETTER, WORSE
from alora_trainer.experiment.report.drawing.marks import swatch
from alora_trainer.experiment.report.drawing.table import PageCell, sortable

# Of the training that one would take, what the first table shows.
_SHOWN = (
    "learned",
    "accuracy",
    "choices",
    "rise",
    "rise_recorded",
    "rise_other",
    "kl",
    "top_changed",
    "lost_adjusted",
    "won_adjusted",
)


def rows_table(boards: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> str:
    """Every row of every board: forgetting at equal learning, area, and the training that one would take."""
    results = [(board, result) for board in boards for result in board["results"]]
    equal = list(dict.fromkeys(name for _, result in results for row in result["rows"] for name in row["equal"]))
    header = ["row", "model", "task", *map(equal_label, equal), "area"]
    header += [MEASURES[name].label for name in _SHOWN] + ["settings"]
    lines = []
    for board, result in results:
        for row in result["rows"]:
            name = row["row"]
            cells = [
                PageCell(name, kind="text", html=f"{swatch(name, rows)} {escape(name)}"),
                PageCell(_model(board, result, boards), kind="text"),
                PageCell(result["task"], kind="text"),
                *(_spread(row["equal"].get(one), "rise") for one in equal),
                _spread(row["area"], None),
            ]
            figures = row["taken"].get("figures", {})
            cells += [_spread(figures.get(one), one) for one in _SHOWN]
            lines.append((name, [*cells, PageCell(str(row["taken"].get("trial", "")), kind="text")]))
    references = [str(result["reference"].get("row")) for _, result in results]
    return sortable(header, lines, references)


def equal_label(name: str) -> str:
    """What a figure at equal learning is called, for people."""
    return f"rise at {name.rpartition('_')[2]} % (nats a token)"


def _model(board: Mapping[str, Any], result: Mapping[str, Any], boards: Sequence[Mapping[str, Any]]) -> str:
    return str(result["model"]) if len(boards) == 1 else f"{result['model']} ({board['board']})"


def _spread(spread: Any, measure: str | None) -> PageCell:
    """Mean and standard error over seeds; a dash where not every seed has it."""
    mean, error = number_in(spread, "mean"), number_in(spread, "error")
    if mean is None:
        return PageCell("–")
    if measure is not None:
        return PageCell(shown_value(measure, mean, error), mean)
    return PageCell(f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}"), mean)


_MEASURED = {
    "area": "area",
    "rise": "rise, at the settings that one would take",
    "choices": "cross-entropy over choices, likewise",
    "accuracy": "accuracy, likewise (points)",
}


def comparisons_table(result: Mapping[str, Any]) -> str:
    """Rows against rows of one model and task, and what each comparison shows."""
    header = ["row", "against", "measure", "difference", "95 % interval", "paired over", "P", "P (Holm)", "shows"]
    lines = []
    for entry in result["comparisons"]:
        measure = entry["measure"]
        factor = 100 if measure == "accuracy" else 1
        label = _MEASURED.get(measure) or equal_label(measure)
        found = {key: number_in(entry, key) for key in ("difference", "low", "high", "p", "p_holm")}
        low, high = found["low"], found["high"]
        interval = "" if low is None or high is None else f"{factor * low:+.4f} to {factor * high:+.4f}"
        said = entry["verdict"] if entry["verdict"] in (BETTER, WORSE, NOT_BETTER) else ""
        difference = found["difference"]
        cells = [
            PageCell(entry["row"], kind="text"),
            PageCell(entry["against"], kind="text"),
            PageCell(label, kind="text"),
            PageCell("–" if difference is None else f"{factor * difference:+.4f}", difference),
            PageCell(interval, low),
            PageCell(_counted(entry), kind="text"),
            _p(found["p"]),
            _p(found["p_holm"]),
            PageCell(said, kind="text", html=f'<span class="{said.replace(" ", "-")}">{escape(said)}</span>'),
        ]
        lines.append((entry["row"], cells))
    return sortable(header, lines)


def _counted(entry: Mapping[str, Any]) -> str:
    units = number_in(entry, "units")
    return str(entry["over"]) if units is None else f"{units:.0f} {entry['over']}"


def _p(value: float | None) -> PageCell:
    return PageCell("–") if value is None else PageCell(f"{value:.3g}", value)


def trials_table(result: Mapping[str, Any]) -> str:
    """Every trial of one model and task, on validation."""
    measures = [name for name in ("learned", "accuracy", "choices", "rise", "rise_recorded", "rise_other")]
    lines = []
    for trial in result["trials"]:
        figures = [number_in(trial["validation"], name) for name in measures]
        cells = [PageCell(trial["row"], kind="text"), PageCell(trial["trial"], kind="text")]
        cells += [
            PageCell(shown_value(name, value) or "–", value) for name, value in zip(measures, figures, strict=True)
        ]
        lines.append((trial["row"], [*cells, PageCell("final" if trial.get("final") is True else "", kind="text")]))
    return sortable(["row", "settings", *(MEASURES[name].label for name in measures), ""], lines)


def kinds_table(result: Mapping[str, Any]) -> str:
    """The rise by kind of general text, of the training that one would take of each row."""
    recorded = [str(kind) for kind in result["recorded"]]
    kinds = [*recorded, *(str(kind) for kind in result["other"])]
    lines = []
    for row in result["rows"]:
        rises = [number_in(row["taken"], "rises", kind) for kind in kinds]
        cells = [PageCell(shown_value("rise", value) or "–", value) for value in rises]
        lines.append((row["row"], [PageCell(row["row"], kind="text"), *cells]))
    header = [f"{kind} (recorded)" if kind in recorded else kind for kind in kinds]
    return sortable(["row", *header], lines, [str(result["reference"].get("row"))])


def findings(result: Mapping[str, Any]) -> Iterator[str]:
    """What the first comparison at equal learning shows of every row, as sentences."""
    wanted = next(iter(result["rows"][0]["equal"]), None) if result["rows"] else None
    at = {row["row"]: row["equal"].get(wanted) for row in result["rows"]}
    for entry in result["comparisons"]:
        if entry["measure"] != wanted:
            continue
        own, other = (number_in(at.get(entry[key]), "mean") for key in ("row", "against"))
        percent = str(wanted).rpartition("_")[2]
        if own is None or other is None:
            who = entry["row"] if own is None else entry["against"]
            yield (
                f"{entry['row']} against {entry['against']}: {entry['verdict']}, since {who} did not learn {percent} % of the "
                "reference's learning with every seed."
            )
            continue
        p = number_in(entry, "p_holm")
        tested = "not tested with so few seeds" if p is None else f"P = {p:.2g} after Holm"
        yield (
            f"{entry['row']} against {entry['against']}: {entry['verdict']}. At {percent} % of the reference's learning "
            f"general cross-entropy rises by {own:.4f}, with {entry['against']} by {other:.4f} nats a token ({tested})."
        )
