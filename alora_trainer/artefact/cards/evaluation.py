"""What a run measured (results.json), for a card: model-index metadata, and what was forgotten in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.artefact.files import read_json
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from typing import TypeGuard

_METRICS = {"acc": "accuracy", "acc_norm": "length-normalised accuracy"}


def method_results(path: Path, method: str) -> dict[str, Any]:
    """One method's entry of a results.json, with the base model's beside it as `base`, where there is one.

    Raises:
        ALoRAError: there is no such file or entry.
    """
    if not path.is_file():
        raise ALoRAError(f"there is no file {path}: give the results.json of `alora run` or `alora eval`")
    methods = read_json(path).get("methods")
    if not isinstance(methods, Mapping) or method not in methods:
        known = ", ".join(methods) if isinstance(methods, Mapping) else "none"
        raise ALoRAError(f"{path} has no results of {method!r}: it has those of {known}")
    return {"base": methods.get("base"), **methods[method]}


def evaluation_entries(results: Mapping[str, Any]) -> list[Any]:
    """The results as `huggingface_hub.EvalResult`: accuracies of the tasks, and perplexity on general text."""
    from huggingface_hub import EvalResult

    from alora_trainer.data.tasks import BUILT_IN

    entries = []
    for name, task in (results.get("tasks") or {}).items():
        source = BUILT_IN[name].hub.get("test") if name in BUILT_IN and BUILT_IN[name].hub else None
        for key, metric in _METRICS.items():
            if _number(task.get(key)):
                entries.append(
                    EvalResult(
                        task_type="question-answering",
                        dataset_name=name,
                        dataset_type=source["hub"] if source else name,
                        dataset_split=(source or {}).get("split"),
                        metric_type="accuracy",
                        metric_name=metric,
                        metric_value=round(task[key], 6),
                    )
                )
    perplexity = (results.get("general") or {}).get("token_perplexity")
    if _number(perplexity):
        entries.append(
            EvalResult(
                task_type="text-generation",
                dataset_name="held-out general text",
                dataset_type="general-text",
                metric_type="perplexity",
                metric_name="perplexity of a token",
                metric_value=round(perplexity, 6),
            )
        )
    return entries


def forgotten_text(results: Mapping[str, Any]) -> str | None:
    """How perplexity on general text and the tasks' accuracy changed against the base model, in a few sentences."""
    general, base = results.get("general") or {}, results.get("base") or {}
    after, before = general.get("token_perplexity"), (base.get("general") or {}).get("token_perplexity")
    lines = []
    if _number(after) and _number(before) and before > 0:
        change = 100 * (after / before - 1)
        lines.append(
            f"Perplexity on held-out general text went from {before:.2f} (base model) to {after:.2f} ({change:+.1f} %)."
        )
    elif _number(after):
        lines.append(f"Perplexity on held-out general text is {after:.2f}; the base model was not measured beside it.")
    for name, task in (results.get("tasks") or {}).items():
        before = ((base.get("tasks") or {}).get(name) or {}).get("acc")
        if _number(task.get("acc")):
            was = f" (base model {100 * before:.1f} %)" if _number(before) else ""
            items = f" on {task['items']} items" if "items" in task else ""
            lines.append(f"Accuracy in {name} is {100 * task['acc']:.1f} %{was}{items}.")
    return " ".join(lines) or None


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
