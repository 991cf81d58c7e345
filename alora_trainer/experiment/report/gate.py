"""A gate for pipelines: does a model hold what was asked of it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.method_result import MethodResult

FAILED_STATUS = 3  # the exit status of a command whose gate failed


@dataclass(frozen=True)
class Check:
    """One comparison of the gate.

    Attributes:
        what: in words.
        found, limit: the figures.
        passed: whether the model holds the limit.
        unit: of the figures; "%" for shares of 1.
    """

    what: str
    found: float
    limit: float
    passed: bool
    unit: str = "%"

    def __str__(self) -> str:
        sign = ">=" if self.what.endswith(("accuracy", "change over base")) else "<="
        verdict, scale = "passed" if self.passed else "FAILED", 100 if self.unit == "%" else 1
        found, limit = (f"{scale * figure:.4g} {self.unit}" for figure in (self.found, self.limit))
        return f"gate {verdict}: {self.what} is {found}, wanted {sign} {limit}"


def parse_share(text: str) -> float:
    """A share as people write it: ``0.01`` and ``1%`` are the same.

    Raises:
        ALoRAError: it is neither.
    """
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        raise ALoRAError(f"{text} is no share: write 0.01 or 1%") from None
    if not -1 <= share <= 100:
        raise ALoRAError(f"{text} is out of range: write a share such as 0.01 or 1%")
    return share


def parse_rise(text: str) -> float:
    """A share by which general loss may rise, as `parse_share` reads it.

    Raises:
        ALoRAError: it is no share; it is a whole number without a sign, by which people mean per cent.
    """
    share = parse_share(text)
    if share >= 1 and not text.endswith("%"):
        raise ALoRAError(f"{text} would be a rise of {100 * share:.0f} %: write {text}% or {share / 100:g}")
    return share


def parse_kept(given: str | Sequence[str] | Mapping[str, float | str]) -> dict[str, float]:
    """Tasks with the least change of each one's score over the base model's.

    Args:
        given: ``TASK=-1pt`` (points), ``TASK=-1%`` or ``TASK=-0.01``; several of them; or task -> change, a number or as above.

    Raises:
        ALoRAError: it is none of these; a score would have to rise, or could fall by all that there is; a task is named twice.
    """
    if isinstance(given, Mapping):
        return {str(task): _change_of(str(task), change) for task, change in given.items()}
    kept: dict[str, float] = {}
    for text in [given] if isinstance(given, str) else given:
        task, _, change = str(text).rpartition("=")
        if not task or not change:
            raise ALoRAError(f"{text} names no task with its least change: write TASK=-1pt")
        if task in kept:
            raise ALoRAError(f"{task} is to be kept twice: leave one of them out")
        kept[task] = _change_of(task, change)
    return kept


def _change_of(task: str, written: float | str) -> float:
    """The least change of a task's score, as a share."""
    if isinstance(written, str):
        share = parse_share(f"{written[:-2]}%" if written.endswith("pt") else written)
    elif isinstance(written, (int, float)) and not isinstance(written, bool):
        share = float(written)
    else:
        raise ALoRAError(f"{task}={written!r} must be the least change of its score: -0.01, or '-1pt'")
    if share > 0:
        said = str(written).removeprefix("+")
        raise ALoRAError(f"{task}={written} would have its score rise: write {task}=-{said} for how far it may fall")
    if share < -1 or (share == -1 and isinstance(written, str) and not written.endswith(("pt", "%"))):
        raise ALoRAError(
            f"{task}={written} would let its score fall by {-100 * share:.0f} points: write {task}={written}pt"
        )
    return share


def run_gate(
    methods: Mapping[str, MethodResult],
    name: str,
    *,
    max_general_rise: float | None = None,
    min_accuracy: float | None = None,
    max_answer_loss: float | None = None,
    keep: Mapping[str, float] | None = None,
) -> list[Check]:
    """Compare one entry of results.json with the limits.

    Args:
        methods: the entries, with ``base`` among them if `max_general_rise` is given.
        name: the entry in question.
        max_general_rise: by how much, as a share, general loss (nats a token) may lie over the base model's: the measure of
            `alora.budget` and of the table.
        min_accuracy: the least accuracy (``acc``) on every task with choices.
        max_answer_loss: the most loss (nats a token) of every task with free answers.
        keep: task of general ability (``evaluation.general_tasks``) -> the least change of its score over the base model's.

    Raises:
        ALoRAError: what is to be compared was not measured.
    """
    entry = methods[name]
    checks = []
    if max_general_rise is not None:
        after, before = (methods.get(one, MethodResult()).general.loss for one in (name, "base"))
        if after is None or not before:
            raise ALoRAError("the gate needs the general loss of the model and of base: evaluate both")
        rise = after / before - 1
        checks.append(Check("general loss's rise over base", rise, max_general_rise, rise <= max_general_rise))
    if min_accuracy is not None:
        if not entry.tasks:
            raise ALoRAError("the gate needs an accuracy, and no task was evaluated")
        for task, score in entry.tasks.items():
            if score.is_free:
                raise ALoRAError(
                    f"the gate needs an accuracy, and the answers of {task} are free text: use --max-answer-loss"
                )
            if score.acc is None:
                raise ALoRAError(f"the gate needs an accuracy, and {task} has none in these results")
            found = score.acc
            checks.append(Check(f"{task} accuracy", found, min_accuracy, found >= min_accuracy))
    if max_answer_loss is not None:
        losses = {task: score.answer_loss for task, score in entry.tasks.items() if score.answer_loss is not None}
        if not losses:
            raise ALoRAError("the gate needs the loss of free answers, and no task has any: use --min-accuracy")
        for task, loss in losses.items():
            checks.append(
                Check(f"{task} answer loss", loss, max_answer_loss, loss <= max_answer_loss, unit="nats a token")
            )
    for task, least in (keep or {}).items():
        metric, changed = _change(methods, name, task)
        checks.append(Check(f"{task} {metric}'s change over base", changed, least, changed >= least))
    return checks


# Of lm-eval's metrics of a task, the one that its change is told by: the first that it has.
_METRICS = ("acc", "exact_match", "prompt_level_strict_acc", "acc_norm", "f1", "em")


def _change(methods: Mapping[str, MethodResult], name: str, task: str) -> tuple[str, float]:
    after, before = (
        dict((methods.get(one, MethodResult()).general.tasks or {}).get(task, {})) for one in (name, "base")
    )
    metric = next(
        (one for known in _METRICS for one in after if one.partition(",")[0] == known and one in before), None
    )
    if metric is None:
        raise ALoRAError(
            f"the gate needs a score of {task} from both {name} and base: put it into evaluation.general_tasks (with one "
            f"of the metrics {', '.join(_METRICS)})"
        )
    return metric, float(after[metric]) - float(before[metric])
