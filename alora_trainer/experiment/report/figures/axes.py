"""What can stand on the axes of a report's charts, and how lines over steps, layers or strengths become marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alora_trainer.experiment.report.drawing.chart import Axis, Box, Chart, Mark, ends_in_words

AXES: Mapping[str, Axis] = {
    "rise": Axis("rise of general perplexity over the base model (%)", digits=2),
    "loss_rise": Axis("rise of general loss over the base model (%)", digits=2),
    "kl": Axis("KL to the base model on general text (nats a token)"),
    "accuracy": Axis("accuracy (%)", digits=1),
    "accuracy_norm": Axis("length-normalised accuracy (%)", digits=1),
    "free_loss": Axis("answer loss (nats a token)", digits=3, downwards=True),
    "ece": Axis("calibration error", digits=3, downwards=True),
    "step": Axis("optimizer step", digits=0),
    "task": Axis("task loss (nats a token)"),
    "penalty": Axis("penalty, or loss on general text", log=True),
    "total": Axis("total"),
    "general_perplexity": Axis("general perplexity", digits=2),
    "domain_accuracy": Axis("domain accuracy (%)", digits=1),
    "lam": Axis("strength lambda", log=True),
    "layer": Axis("layer", digits=0),
    "drift": Axis("norm of W - W_start"),
}


def line_marks(curves: Sequence[Mapping[str, Any]], x: str, y: str) -> list[Mark]:
    """The marks of curves, each with ``method``, ``label`` and lists under the names of both axes; None has no place."""
    counts = Counter(curve["method"] for curve in curves)
    drawn: Counter[str] = Counter()
    marks = []
    for curve in curves:
        method = curve["method"]
        number, drawn[method] = drawn[method], drawn[method] + 1
        points = zip(curve[x], curve.get(y) or [None] * len(curve[x]), strict=True)
        found = [(across, up) for across, up in points if across is not None and up is not None]
        for place, (across, up) in enumerate(found, start=1):
            values = {x: (float(across), None), y: (float(up), None)}
            small = place < len(found)
            marks.append(Mark(method, curve["label"], values, curve["label"], number, counts[method], small=small))
    return marks


def line_chart(marks: Sequence[Mark], methods: Sequence[str], x: str, y: str, beside: str = "") -> Chart:
    """A chart of curves with their names; `beside` is said of it first."""
    text = f"{beside}{AXES[y].label} by {AXES[x].label}. {ends_in_words(marks, AXES, x, y)}"
    box = Box.labelled(len({mark.curve for mark in marks if mark.curve}))
    return Chart(marks, AXES, x=x, y=y, rows=methods, box=box, text=text)
