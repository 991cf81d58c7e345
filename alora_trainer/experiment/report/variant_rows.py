"""The numbers of the report's tables, a row a variant: mean and spread over seeds, differences, and what is best."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alora_trainer.experiment.report.gather import BASE, OURS, PLAIN, Comparison, MethodVariant
from alora_trainer.experiment.report.method_result import SCALE, MethodResult, TrainingCost

# The paper's table 2, and controls beyond it: method -> what is taken away.
ABLATION = {
    OURS: "whole",
    "alora_no_layer": "- layer weights",
    "alora_no_element": "- element weights",
    "l2": "- layer and element weights, plain L2",
    "shuffled": "importance put to random places",
    "lora_ab": "- layer, element (no penalty)",
}


def summary(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, sample standard deviation (None for a single value) and number; None for no values."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": spread, "n": len(values)}


def variant_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a variant.

    Every measure is ``{"mean", "sd", "n"}`` over seeds or None: ``perplexity`` (general, by token), ``rise`` (of it
    over base, %), ``loss_rise`` (of general loss over base, %), ``free_loss`` (of free answers, nats a token),
    ``free_perplexity``, ``accuracy`` (%), ``accuracy_norm`` (%), ``kl`` (nats a token), ``ece``, ``seconds`` (stage B),
    ``seconds_before`` (stage A and whatever else comes before), ``peak_bytes``. ``item_error`` is the standard error of the
    accuracy over items (%), mean over seeds. ``accuracy_over_base``, ``accuracy_over_lora`` (points) and
    ``perplexity_over_lora`` (%) are differences of means. ``best`` names the measures in which the row is the best of those
    that train.
    """
    rows = [_row(comparison, variant) for variant in comparison.variants]
    base = _only(rows, BASE)
    plain = _only(rows, PLAIN)
    for row in rows:
        row["accuracy_over_base"] = _difference(row, base, "accuracy")
        row["accuracy_over_lora"] = _difference(row, plain, "accuracy")
        row["perplexity_over_lora"] = _ratio(row, plain, "perplexity")
        row["best"] = []
    trained = [row for row in rows if row["method"] != BASE]
    choices: list[tuple[str, Callable[..., Any]]] = [
        ("perplexity", min), ("rise", min), ("loss_rise", min), ("free_loss", min), ("free_perplexity", min),
        ("accuracy", max), ("accuracy_norm", max), ("kl", min), ("ece", min)
    ]  # fmt: skip
    for measure, choose in choices:
        found = [row[measure]["mean"] for row in trained if row[measure] is not None]
        for row in trained if len(found) > 1 else ():
            if row[measure] is not None and row[measure]["mean"] == choose(found):
                row["best"].append(measure)
    return rows


def ablation_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the paper's table 2: `alora` and what is left when parts of it are taken away; empty without `alora`."""
    if not any(row["method"] == OURS for row in rows):
        return []
    found = [
        {"what": what, **{key: row[key] for key in ("label", "method", "perplexity", "rise", "accuracy")}}
        for method, what in ABLATION.items()
        for row in rows
        if row["method"] == method
    ]
    return found if len({row["method"] for row in found}) > 1 else []


def seconds_before(result: MethodResult) -> float:
    """What came before the training on the domain, in seconds: the recording, or the Fisher information."""
    return float((result.record or TrainingCost()).seconds or 0)


def _row(comparison: Comparison, variant: MethodVariant) -> dict[str, Any]:
    task = comparison.task
    free = comparison.is_free
    errors = [
        100 * value for value in variant.task_values(task, lambda score: None if free else score.acc_stderr).values()
    ]
    normalised = [100 * value for value in variant.task_values(task, lambda score: score.acc_norm).values()]
    kl = variant.values(lambda one: one.general.kl_to_base.nats_per_token if one.general.kl_to_base else None)
    seconds = variant.values(lambda one: one.train.seconds if one.train else None)
    peak_bytes = variant.values(lambda one: one.train.peak_bytes if one.train else None)
    return {
        "label": variant.label,
        "method": variant.method,
        "settings": variant.settings,
        "seeds": sorted(variant.entries),
        "perplexity": summary(list(variant.perplexities.values())),
        "rise": summary(list(comparison.rises(variant).values())),
        "loss_rise": summary(list(comparison.loss_rises(variant).values())),
        "free_loss": summary(list(comparison.answer_losses(variant).values())),
        "free_perplexity": summary(list(variant.task_values(task, lambda score: score.answer_perplexity).values())),
        "accuracy": summary(list(comparison.accuracies(variant).values())),
        "accuracy_norm": summary(normalised),
        "item_error": statistics.fmean(errors) if errors else None,
        "kl": summary(list(kl.values())),
        "ece": summary(list(variant.task_values(task, lambda score: score.ece).values())),
        "seconds": summary(list(seconds.values())),
        "seconds_before": summary([seconds_before(result) for result in variant.entries.values()]),
        "peak_bytes": summary(list(peak_bytes.values())),
    }


def _only(rows: Sequence[Mapping[str, Any]], method: str) -> Mapping[str, Any] | None:
    """The row of a method that has one variant, its finished adapter times a number apart."""
    found = [row for row in rows if row["method"] == method and row["settings"].get(SCALE, 1.0) == 1.0]
    return found[0] if len(found) == 1 else None


def _difference(row: Mapping[str, Any], other: Mapping[str, Any] | None, measure: str) -> float | None:
    if other is None or row[measure] is None or other[measure] is None:
        return None
    return float(row[measure]["mean"] - other[measure]["mean"])


def _ratio(row: Mapping[str, Any], other: Mapping[str, Any] | None, measure: str) -> float | None:
    if other is None or row[measure] is None or other[measure] is None:
        return None
    return float(100 * (row[measure]["mean"] / other[measure]["mean"] - 1))
