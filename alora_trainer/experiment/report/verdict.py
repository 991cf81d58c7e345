"""The three questions that somebody opens a report with, answered in plain words from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alora_trainer.experiment.report.gather import BASE, OURS, PLAIN
from alora_trainer.experiment.report.method_result import SCALE

Row = Mapping[str, Any]
# So many standard errors over test items, of which there are many, make a difference that is more than chance.
_ERRORS = 2.0
# What the figures of one training can answer, which may be more than chance or not.
_ONE = "One training alone says"


def verdict(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Questions and answers on one comparison of `report_numbers`: of `alora` where there is one, else of all methods."""
    trained = [row for row in comparison["table"] if row["method"] != BASE and row["settings"].get(SCALE, 1.0) == 1.0]
    base = next((row for row in comparison["table"] if row["method"] == BASE), None)
    plain = next((row for row in trained if row["method"] == PLAIN), None)
    chosen = [row for row in trained if row["method"] == OURS] or trained
    return [
        ("Did it forget?", _forgot(chosen, plain)),
        ("Did it learn?", _learned(chosen, base, plain, comparison["task"])),
        ("Can I trust it?", _trusted(comparison, chosen)),
    ]


def _forgot(rows: Sequence[Row], plain: Row | None) -> str:
    known = [row for row in rows if row["rise"] is not None]
    if not known:
        return "That is not known: general text was not measured, or not with the untouched model beside."
    states = [_sure(row["rise"]["mean"], _seed_margin(row["rise"])) for row in known]
    least, most = (choose(known, key=lambda row: row["rise"]["mean"]) for choose in (min, max))
    said = f"{_answer(states, 'Yes', 'No')}: {_ends(least, most, 'general perplexity is', _rise)} against the untouched model"
    if plain is not None and plain not in rows and plain["rise"] is not None:
        said += f"; after plain LoRA it is {_rise(plain)}"
    return said + "."


def _rise(row: Row) -> str:
    spread = row["rise"]["sd"]
    return f"{row['rise']['mean']:+.1f} %" + ("" if spread is None else f" (± {spread:.1f} over seeds)")


def _learned(rows: Sequence[Row], base: Row | None, plain: Row | None, task: str) -> str:
    free = any(row["free_loss"] is not None for row in rows)
    measure, sign = ("free_loss", -1.0) if free else ("accuracy", 1.0)
    known = [row for row in rows if row[measure] is not None]
    if base is None or base[measure] is None or not known:
        return f"That is not known: {task} was not measured, or not with the untouched model beside."
    before = base[measure]["mean"]
    gains = [sign * (row[measure]["mean"] - before) for row in known]
    margins = [_seed_margin(row[measure]) if free else _item_margin(row, base) for row in known]
    states = [_sure(gain, margin) for gain, margin in zip(gains, margins, strict=True)]
    order = sorted(known, key=lambda row: sign * row[measure]["mean"])
    show = _loss if free else _accuracy
    what = f"{task} answer loss is" if free else f"{task} accuracy is"
    said = f"{_answer(states, 'Yes', 'Not that it shows')}: {_ends(order[0], order[-1], what, show)}, before it {show(base)}"
    if not free and 0 in states:
        widest = max(margin for margin in margins if margin is not None)
        said += f" (two standard errors over test items are {widest:.1f} points)"
    if plain is not None and plain not in rows and plain[measure] is not None:
        said += f"; plain LoRA {show(plain)}"
    return said + "."


def _accuracy(row: Row) -> str:
    return f"{row['accuracy']['mean']:.1f} %"


def _loss(row: Row) -> str:
    return f"{row['free_loss']['mean']:.3f} nats a token"


def _trusted(comparison: Mapping[str, Any], rows: Sequence[Row]) -> str:
    seeds = len(comparison["seeds"])
    answer = {1: "As a first look only", 2: "With care"}.get(seeds, "As far as its seeds and items go")
    few = "one seed, so what another training would give is not known"
    said = [few if seeds == 1 else f"{seeds} seeds, whose spread stands in the table"]
    unfinished = [row["label"] for row in rows if len(row["seeds"]) < seeds]
    if unfinished:
        said.append(f"not all of them for {', '.join(unfinished)}")
    errors = [row["item_error"] for row in rows if row["item_error"] is not None]
    if errors:
        said.append(
            f"the choice of test items alone makes {max(errors):.1f} points of accuracy uncertain (one standard error)"
        )
    pair = _against_plain(comparison)
    if pair:
        said.append(pair)
    if len(rows) > 1 and all(row["method"] == OURS for row in rows):
        said.append(
            f"{len(rows)} settings of ALoRA stand here, and the best of them, if chosen by this page, is chosen on the test"
        )
    overlap = sum(int(one["overlapping"]) for one in comparison["overlap"][:1])
    if overlap:
        said.append(f"{overlap} test items share a run of 13 words with the text that importance was recorded on")
    return f"{answer}: {'; '.join(said)}."


def _against_plain(comparison: Mapping[str, Any]) -> str | None:
    """ALoRA against plain LoRA where both have forgotten as much."""
    rows = (comparison["figures"].get("intervals") or {"rows": []})["rows"]
    row = next((row for row in rows if row["method"] == PLAIN and row["low"] is not None), None)
    if row is None:
        return None
    if row["low"] > 0 or row["high"] < 0:
        shown = f"{'more' if row['difference'] > 0 else 'fewer'} of the items rightly than plain LoRA"
        size = f"{abs(row['difference']):.1f} points {shown}"
    else:
        size = "neither more nor fewer of the items rightly than plain LoRA, as far as these items show"
    interval = f"95 % interval {row['low']:+.1f} to {row['high']:+.1f}"
    flatters = "plain LoRA read on a straight line to the untouched model, which flatters ALoRA"
    read = f"; {flatters}" if row["other_between"] else ""
    return f"at equal forgetting ({row['at']:+.1f} %) {row['ours']} answers {size} ({interval}{read})"


def _ends(first: Row, last: Row, what: str, show: Any) -> str:
    """One row, or the two ends of several."""
    if first is last:
        return f"after {first['label']} {what} {show(first)}"
    return f"{what} from {show(first)} after {first['label']} to {show(last)} after {last['label']}"


def _answer(states: Sequence[int | None], yes: str, no: str) -> str:
    """Yes, if all are above zero by more than chance; no, if none is; where chance is not known, neither."""
    if None in states:
        return _ONE
    if all(state == 1 for state in states):
        return yes
    return "Some settings did" if 1 in states else no


def _sure(difference: float, margin: float | None) -> int | None:
    """The sign of a difference that is more than chance, else 0; None where it is not known what chance does."""
    if margin is None:
        return None
    if abs(difference) <= margin:
        return 0
    return 1 if difference > 0 else -1


def _seed_margin(measure: Mapping[str, Any]) -> float | None:
    """Half of the 95 % interval of a mean over seeds by Student's t: with two or three seeds it is far more than two errors."""
    from scipy import stats

    if measure["sd"] is None:
        return None
    return float(stats.t.ppf(0.975, measure["n"] - 1) * measure["sd"] / measure["n"] ** 0.5)


def _item_margin(row: Row, base: Row) -> float | None:
    """Of the difference of two accuracies over items, as if they were not of the same items: rather too large."""
    errors = [row["item_error"], base["item_error"]]
    return None if None in errors else _ERRORS * float(sum(error**2 for error in errors) ** 0.5)
