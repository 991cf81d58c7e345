"""What a fit did, as one page that needs nothing beside it: what was promised, learned and found, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.fit.probing import ShortTraining
from alora_trainer.experiment.report.drawing.chart import Axis, Box, Chart, Mark
from alora_trainer.experiment.report.drawing.page import whole_page
from alora_trainer.experiment.report.drawing.pictures import in_page
from alora_trainer.experiment.report.results import RunResults
from alora_trainer.experiment.report.text_table import table_rows

_STYLE = """<style>
pre { background: var(--marked); padding: .75rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.kept, .broken { border-left: 4px solid var(--good); padding: 2px 14px; background: var(--marked); }
.broken { border-left-color: var(--bad); }
</style>"""
# What is drawn of the training, and the columns of its log that have it.
_AXES = {
    "step": Axis("optimizer step", digits=0),
    "loss": Axis("training loss (nats a token)"),
    "rise": Axis("rise on the text that steered (%)", factor=100, digits=2),
}


def fit_page(
    title: str, outcome: Mapping[str, Any], data: Mapping[str, Any], results: RunResults, tried: Sequence[ShortTraining]
) -> str:
    """The page.

    Args:
        title: what was fitted.
        outcome: of `guarantee.keep_promise`.
        data: of `files.write_files`.
        results: of the base model and the adapter.
        tried: the short trainings, if there were any.
    """
    body = "\n".join([_STYLE, *_sections(outcome, data, results), *_trials(tried)])
    return whole_page(title, f"{body}\n", _AXES)


def _sections(outcome: Mapping[str, Any], data: Mapping[str, Any], results: RunResults) -> Iterator[str]:
    promise = outcome["promise"]
    answers = "".join(
        f"<p><strong>{escape(ask)}</strong> {escape(said)}</p>" for ask, said in _verdict(promise, results)
    )
    yield f'<div class="{"kept" if promise["kept"] else "broken"}">{answers}</div>'
    yield f"<p>Measured: {escape(promise['measure'])}. The adapter is what was trained times {promise['scale']:.4g}.</p>"
    yield "<h2>What was learned</h2>"
    head, *lines = table_rows(results.methods)
    yield _table(head, lines)
    yield "<h2>What was kept</h2>"
    kinds = [(kind, *_figures(bound)) for kind, bound in promise["kinds"].items()]
    yield _table(("kind of text that the map saw", "rise", "at most (95 %)", "passages"), kinds)
    if outcome["unseen"]:
        apart = [(kind, *_figures(bound)) for kind, bound in outcome["unseen"].items()]
        yield _table(("kind of text that no part saw (not promised)", "rise", "at most (95 %)", "passages"), apart)
    else:
        yield "<p>No other kind of text was given (--unseen): on such kinds, general loss may rise more.</p>"
    tested = [(f"{one['scale']:.4g}", *_figures(one["bound"])) for one in promise["tested"]]
    yield "<h2>Scales tested, in their order</h2>"
    yield _table(("scale", "rise", "at most (95 %)", "passages"), tested)
    learned = [(f"{scale:.4g}", f"{loss:.4f}") for scale, loss in promise["validation"]]
    if learned:
        yield "<h2>The validation at each scale</h2>"
        yield _table(("scale", "nats a token of the validation's right answers"), learned)
    yield "<h2>Answers before and after</h2>"
    for one in outcome["answers"]:
        said = f"{one['prompt']}\n\nright:  {one['right']}\nbefore: {one['before']}\nafter:  {one['after']}"
        yield f"<pre>{escape(said)}</pre>"
    yield "<h2>The general passages that got worse most</h2>"
    for one in outcome["worst"]:
        yield f"<p>{one['rise']:+.3f} nats a token, {escape(one['kind'])}</p><pre>{escape(one['text'])}</pre>"
    yield from _curves(results)
    yield "<h2>The data</h2>"
    rows = [
        (one["name"], one["kind"], str(one["records"]), str(one["left_out"]), one["first"]) for one in data["files"]
    ]
    yield _table(("file", "form", "records", "left out", "the first of them"), rows)
    yield (
        f"<p>{data['train_items']} items trained on, {data['validation_items']} compared by, {data['test_items']} tested on "
        f"({'held out' if data['held_out'] else 'as given'}); {data['duplicates']} duplicates left out, {data['overlap']} that "
        "the test asks, too.</p>"
    )


def _trials(tried: Sequence[ShortTraining]) -> Iterator[str]:
    if not tried:
        return
    yield "<h2>Short trainings</h2>"
    head = (
        "method",
        "learning rate",
        "steps",
        "scale that keeps the budget",
        "nats a token of the validation's answers there",
    )
    rows = [(one.method, f"{one.rate:.4g}", str(one.steps), f"{one.scale:.3g}", f"{one.loss:.4f}") for one in tried]
    yield _table(head, rows)


def _verdict(promise: Mapping[str, Any], results: RunResults) -> Iterator[tuple[str, str]]:
    """What people ask first, and the answers."""
    yield "Did it forget?", f"{promise['sentence']}."
    base, adapter = results.methods["base"], results.methods["adapter"]
    for name, before in base.tasks.items():
        after = adapter.tasks.get(name)
        if after is None:
            continue
        if before.is_free:
            figures, unit = (
                (before.answer_loss, after.answer_loss),
                "the loss of the right answers went from {:.3f} to {:.3f} nats a token",
            )
        else:
            figures, unit = (before.acc, after.acc), "accuracy went from {:.1%} to {:.1%}"
        if None not in figures:
            error = "" if after.acc_stderr is None else f" (a standard error is {100 * after.acc_stderr:.1f} points)"
            yield "Did it learn?", f"On {after.items} items of {name}, {unit.format(*figures)}{error}."


def _figures(bound: Mapping[str, Any]) -> tuple[str, str, str]:
    upper = bound["upper"]
    known = upper is not None and math.isfinite(upper)
    return percent(bound["rise"]), percent(upper) if known else "-", str(bound["sequences"])


def percent(share: float) -> str:
    """With two digits, and no minus before zero."""
    return f"{round(share, 4) + 0.0:.2%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _curves(results: RunResults) -> Iterator[str]:
    """The loss of the training, and the rise that steered it, by step; and what both cost."""
    train = results.methods["adapter"].train
    if train is None:
        return
    log = (train.history or {}).get("training", {})
    losses = zip(log.get("step", []), log.get("ce_loss") or log.get("loss", []), strict=False)
    looks = [(one.get("step"), one.get("probe_rise")) for one in train.probe or ()]
    figures = [figure for name, points in (("loss", losses), ("rise", looks)) for figure in _curve(name, points)]
    if figures:
        yield f'<h2>The training</h2><div class="figures">{"".join(figures)}</div>'
    if train.seconds is not None:
        yield f"<p>The training took {train.seconds:.0f} seconds and {train.steps or 0} steps.</p>"


def _curve(name: str, points: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    """A figure of one curve; none of fewer than two points."""
    known = [(x, y) for x, y in points if isinstance(x, (int, float)) and isinstance(y, (int, float))]
    if len(known) < 2:
        return
    marks = [
        Mark("adapter", f"step {x:g}", {"step": (x, None), name: (y, None)}, curve="adapter", small=True)
        for x, y in known
    ]
    first, last = (_AXES[name].shown(y) for _, y in (known[0], known[-1]))
    text = f"{_AXES[name].label} over {len(known)} steps: {first} at the first, {last} at the last"
    yield in_page(Chart(marks, _AXES, x="step", y=name, rows=["adapter"], box=Box(), text=text))
