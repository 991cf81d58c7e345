"""Two evaluated methods beside each other: items won and lost, and which general texts got harder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json
from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.runner import answer_losses, pooled

SAMPLES = "samples.jsonl"
_EXCERPT = 160


def compare_folders(before: Path, after: Path, *, method: str | None = None, examples: int = 5) -> dict[str, Any]:
    """Compare what two evaluations left behind.

    Args:
        before, after: a method's folder in a run; or a run folder, of which `method` is taken (``alora`` if it is None).
        method: see above.
        examples: how many items and texts to name.

    Returns:
        ``before`` and ``after``, their names; ``tasks``: for each, how many ``items``, ``both`` right, ``neither``, ``won``
        (only the second right) and ``lost``, ``p`` of the exact sign test of won against lost (McNemar), and examples of both;
        ``subsets``: for each, token perplexities and their change in per cent, the worst first; ``texts``: the documents whose
        loss a token rose most, with the beginning of each.

    Raises:
        ALoRAError: a folder has no evaluation, or the two scored different items.
    """
    folders = [_method_folder(folder, method) for folder in (before, after)]
    rows = [_by_document(folder) for folder in folders]
    if not set(rows[0]) & set(rows[1]):
        raise ALoRAError(f"{folders[0]} and {folders[1]} have no document in common: they were evaluated on other data")
    if set(rows[0]) != set(rows[1]):
        missing = len(set(rows[0]) ^ set(rows[1]))
        raise ALoRAError(
            f"{missing} documents were scored in only one of {folders[0]} and {folders[1]}: evaluate both with the same recipe"
        )
    pairs = [(rows[0][key], rows[1][key]) for key in rows[0]]
    texts = _Texts(folders[1].parent)
    tasks = dict.fromkeys(one["task"] for one, _ in pairs if "task" in one)
    subsets = dict.fromkeys(one["subset"] for one, _ in pairs if "subset" in one)
    return {
        "before": _name(folders[0]),
        "after": _name(folders[1]),
        "tasks": {task: _task([p for p in pairs if p[0].get("task") == task], texts, examples) for task in tasks},
        "subsets": _subsets({name: [p for p in pairs if p[0].get("subset") == name] for name in subsets}),
        "texts": _risen([pair for pair in pairs if "subset" in pair[0]], texts, examples),
    }


def comparison_text(found: Mapping[str, Any]) -> str:
    """What `compare_folders` found, for people."""
    lines = [f"A: {found['before']}", f"B: {found['after']}"]
    for name, task in found["tasks"].items():
        what = f"both right {task['both']}, neither {task['neither']}"
        if "answer_loss" in task:
            before, after = task["answer_loss"]
            what = f"the right answer is likelier or less likely; loss a token {before:.3f} -> {after:.3f} nats"
        lines += [
            "",
            f"{name}: of {task['items']} items, B wins {task['won']} and loses {task['lost']} "
            f"({what}; exact sign test p = {task['p']:.3g})",
        ]
        for verdict in ("won", "lost"):
            lines += [f"  {verdict}: {text}" for text in task[f"{verdict}_examples"]]
    if found["subsets"]:
        lines += ["", "general text, token perplexity A -> B:"]
        for name, subset in found["subsets"].items():
            figures = f"{subset['before']:.2f} -> {subset['after']:.2f} ({subset['change']:+.1f} %)"
            lines.append(f"  {name}: {figures}" + (" lost" if subset["change"] > 0 else ""))
    if found["texts"]:
        lines += ["", "texts whose loss rose most (nats a token):"]
        for text in found["texts"]:
            lines.append(f"  {text['rise']:+.3f} {text['subset']} {text['doc_id']}: {text['text']}")
    return "\n".join(lines)


def _method_folder(folder: Path, method: str | None) -> Path:
    for candidate in (folder, folder / (method or "alora")):
        if (candidate / SAMPLES).is_file():
            return candidate
    raise ALoRAError(
        f"{folder} has no {SAMPLES}, neither itself nor in {method or 'alora'}/: name a method's folder of a finished run"
    )


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _by_document(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in read_lines(folder / SAMPLES):
        rows[row.get("task") or f"subset {row['subset']}", row["doc_hash"], row["doc_id"]] = row
    return rows


def _task(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], texts: _Texts, examples: int) -> dict[str, Any]:
    from scipy.stats import binomtest

    free = bool(pairs) and "tokens" in pairs[0][0]
    gains = [(after, _merit(after, free) - _merit(before, free)) for before, after in pairs]
    won = [after for after, gain in gains if gain > 0]
    lost = [after for after, gain in gains if gain < 0]
    losses = [answer_losses([pair[side] for pair in pairs]) for side in (0, 1)] if free else []
    both = sum(before["acc"] == after["acc"] == 1 for before, after in pairs)
    decided = len(won) + len(lost)
    return {
        "items": len(pairs),
        "both": both,
        "neither": len(pairs) - both - decided,
        "won": len(won),
        "lost": len(lost),
        "p": float(binomtest(len(won), decided).pvalue) if decided else 1.0,
        "won_examples": [texts.item(row["doc_id"]) for row in won[:examples]],
        "lost_examples": [texts.item(row["doc_id"]) for row in lost[:examples]],
        **({"answer_loss": [found["answer_loss"] for found in losses]} if free else {}),
    }


def _merit(row: Mapping[str, Any], free: bool) -> float:
    """What an item is won by: being right or, of a free answer, how likely it is."""
    return float(row["log_likelihoods"][0] if free else row["acc"])


def _subsets(
    pairs: Mapping[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]],
) -> dict[str, dict[str, float]]:
    found = {}
    for name, own in pairs.items():
        perplexities = [pooled([pair[side] for pair in own]).token_perplexity or math.nan for side in (0, 1)]
        change = 100 * (perplexities[1] / perplexities[0] - 1)
        found[name] = {"before": perplexities[0], "after": perplexities[1], "change": change}
    return dict(sorted(found.items(), key=lambda item: -item[1]["change"]))


def _risen(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], texts: _Texts, examples: int
) -> list[dict[str, Any]]:
    rises = [
        {
            "subset": before["subset"],
            "doc_id": before["doc_id"],
            "rise": (before["log_likelihood"] - after["log_likelihood"]) / before["tokens"],
            "tokens": before["tokens"],
        }
        for before, after in pairs
        if before["tokens"] > 0
    ]
    rises.sort(key=lambda row: -row["rise"] if math.isfinite(row["rise"]) else -math.inf)
    return [row | {"text": texts.general(row["subset"], row["doc_id"])} for row in rises[:examples] if row["rise"] > 0]


class _Texts:
    """The documents that a run was evaluated on, for excerpts."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._files = read_json(run / "data" / "data.json")
        self._read: dict[str, list[dict[str, Any]]] = {}

    def item(self, number: int) -> str:
        """The beginning of a test item's question."""
        doc = self._documents(self._files["test"] if self._files else None, number)
        fields = [str(doc[key]) for key in ("question", "goal", "question_stem", "prompt") if doc and key in doc]
        return _excerpt(fields[0]) if fields else f"item {number}"

    def general(self, subset: str, number: int) -> str:
        """The beginning of a document of general text."""
        doc = self._documents(self._files["general"].get(subset) if self._files else None, number)
        return _excerpt(doc["text"]) if doc else ""

    def _documents(self, path: str | None, number: int) -> dict[str, Any]:
        if path is None or not (self._run / path).is_file():
            return {}
        if path not in self._read:
            self._read[path] = read_lines(self._run / path)
        return self._read[path][number]


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"
