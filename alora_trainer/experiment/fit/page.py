"""What a fit did, as one page that needs nothing beside it: what was promised, learned and found, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.fit.probing import ShortTraining
from alora_trainer.experiment.report.results import RunResults
from alora_trainer.experiment.report.text_table import format_table

_STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 2rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f6f6f6; padding: .75rem; overflow-x: auto; white-space: pre-wrap; }
.kept { border-left: .4rem solid #2a7; padding: .5rem 1rem; background: #f1faf5; }
.broken { border-left: .4rem solid #c33; padding: .5rem 1rem; background: #fdf3f3; }
svg { width: 100%; height: 12rem; background: #fafafa; }
"""
_WIDTH, _HEIGHT = 600, 180


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
    body = "\n".join([*_sections(outcome, data, results), *_trials(tried)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n<style>{_STYLE}</style>'
        f"</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _sections(outcome: Mapping[str, Any], data: Mapping[str, Any], results: RunResults) -> Iterator[str]:
    promise = outcome["promise"]
    yield f'<p class="{"kept" if promise["kept"] else "broken"}">{escape(promise["sentence"])}.</p>'
    yield f"<p>Measured: {escape(promise['measure'])}. The adapter is what was trained times {promise['scale']:.4g}.</p>"
    yield "<h2>What was learned</h2>"
    yield f"<pre>{escape(format_table(results.methods))}</pre>"
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


def _figures(bound: Mapping[str, Any]) -> tuple[str, str, str]:
    upper = bound["upper"]
    known = upper is not None and math.isfinite(upper)
    return f"{bound['rise']:.2%}", f"{upper:.2%}" if known else "-", str(bound["sequences"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _curves(results: RunResults) -> Iterator[str]:
    """The loss of the training, and the rise that steered it, by step; and what both cost."""
    train = results.methods["adapter"].train
    if train is None:
        return
    log = (train.history or {}).get("training", {})
    losses = log.get("ce_loss") or log.get("loss", [])
    drawn = [
        ("training loss, nats a token", list(zip(log.get("step", []), losses, strict=False))),
        ("rise on the text that steered, share", [(one["step"], one["probe_rise"]) for one in train.probe or ()
                                                  if "step" in one and "probe_rise" in one]),
    ]  # fmt: skip
    for name, points in drawn:
        points = [(x, y) for x, y in points if isinstance(x, (int, float)) and isinstance(y, (int, float))]
        if len(points) > 1:
            yield f"<h2>{escape(name)}</h2>{_line(points)}"
    if train.seconds is not None:
        yield f"<p>The training took {train.seconds:.0f} seconds and {train.steps or 0} steps.</p>"


def _line(points: Sequence[tuple[float, float]]) -> str:
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    places = " ".join(
        f"{_WIDTH * (x - left) / ((right - left) or 1):.1f},{_HEIGHT - (_HEIGHT - 10) * (y - low) / ((high - low) or 1):.1f}"
        for x, y in points
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" preserveAspectRatio="none"><polyline points="{places}" fill="none" '
        f'stroke="#06c" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
        f"<p>steps {left:g} to {right:g}; {low:.4g} to {high:.4g}</p>"
    )
