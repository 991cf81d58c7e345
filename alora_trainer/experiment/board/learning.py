"""What says how much of a task was learned: always a number that is larger the more was."""

from __future__ import annotations

from dataclasses import dataclass

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.method_result import MethodResult

LEARNING = "choice_cross_entropy"
ANY = "*"


@dataclass(frozen=True)
class Learning:
    """A measure of what was learned.

    Attributes:
        name: ``choice_cross_entropy`` (nats, the far less noisy one), ``accuracy``, ``answer_cross_entropy`` (of free
            answers, nats a token), or ``TASK.METRIC`` of a task that lm-eval scores (``evaluation.general_tasks``);
            ``*.METRIC`` is of the only one, whatever it is called, where validation and test are two.
    """

    name: str

    @classmethod
    def named(cls, name: str, where: str) -> Learning:
        """The measure of this name.

        Raises:
            ALoRAError: there is none.
        """
        if name not in _OF_TASK and not all(part for part in name.partition(".")):
            known = ", ".join(_OF_TASK)
            raise ALoRAError(f"{where}={name!r} is none of {known}, or TASK.METRIC of an lm-eval task")
        return cls(name)

    @property
    def less_is_better(self) -> bool:
        """Whether the figure itself falls as more is learned."""
        return self.name in ("choice_cross_entropy", "answer_cross_entropy")

    @property
    def of_domain(self) -> bool:
        """Whether it is measured on the task's own test items, and not by a task of lm-eval's."""
        return self.name in _OF_TASK

    def figure(self, result: MethodResult) -> float | None:
        """The figure itself in a result; None where it was not measured."""
        if not self.of_domain:
            task, _, metric = self.name.partition(".")
            tasks = result.general.tasks or {}
            scores = next(iter(tasks.values())) if task == ANY and len(tasks) == 1 else tasks.get(task, {})
            found = scores.get(metric)
            return None if found is None else float(found)
        (score,) = result.tasks.values()
        if self.name == "accuracy":
            return score.acc
        if self.name == "choice_cross_entropy":
            return score.choice_cross_entropy
        return score.answer_loss

    def learned(self, before: float, after: float) -> float:
        """How much was learned, given the figure of the untouched model and that of the tuned one."""
        return before - after if self.less_is_better else after - before


_OF_TASK = ("choice_cross_entropy", "accuracy", "answer_cross_entropy")
