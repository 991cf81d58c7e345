"""The recipe's section on evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from alora_trainer.data.general import check_count
from alora_trainer.errors import ALoRAError

AUTO = "auto"


@dataclass
class EvaluationConfig:
    """The recipe's section on evaluation.

    Attributes:
        batch_size: sequences scored at once; "auto" finds the most that fit.
        max_length: tokens of context, at most; None is the model's own limit.
        limit: score only this many documents of each subset and items of each task; for trying things out.
        bootstrap_iters: resamples for standard errors that have no formula (only a free answer's perplexity has none);
            0 gives no standard errors at all.
        document_tokens: score only the first so many tokens of each document of general text, what the tokenizer puts before a
            text counted, as PEFT's method comparison does with 768 (words and bytes are those of what is scored); None
            scores all.
        kl_tokens: measure the Kullback-Leibler divergence from the base model on this many tokens of each general subset
            (two forward passes each); None leaves it out.
        general_tasks: tasks or groups that lm-eval knows (hellaswag, arc_easy, winogrande), scored as general ability
            beside perplexity; they read their data from the Hub.
        task_folder: a folder with task files of your own for `general_tasks`, as for ``lm_eval --include_path``; relative to
            the recipe. The code that they name is run.
        curve_steps: while tuning, measure general perplexity and domain accuracy every so many optimizer steps; None does
            not.
        curve_blocks: blocks of general text, of the recording's block length, in such a measurement.
        curve_items: items of the domain's test in such a measurement.
        scales: score every finished LoRA adapter times each of these numbers, too (WiSE-FT), such as 0.3, 0.5, 0.7; the report
            has them as variants of their method. Nothing is trained for it.

    Raises:
        ALoRAError: a number is not one.
    """

    batch_size: int | str = 16
    max_length: int | None = None
    limit: int | None = None
    bootstrap_iters: int = 1000
    document_tokens: int | None = None
    kl_tokens: int | None = None
    general_tasks: list[str] = field(default_factory=list)
    task_folder: str | None = None
    curve_steps: int | None = None
    curve_blocks: int = 32
    curve_items: int = 100
    scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.batch_size != AUTO:
            check_count(self.batch_size, "evaluation.batch_size")
        check_count(self.max_length, "evaluation.max_length", optional=True, least=2)
        check_count(self.bootstrap_iters, "evaluation.bootstrap_iters", least=0)
        check_count(self.document_tokens, "evaluation.document_tokens", optional=True, least=2)
        for name in ("limit", "kl_tokens", "curve_steps"):
            check_count(getattr(self, name), f"evaluation.{name}", optional=True)
        for name in ("curve_blocks", "curve_items"):
            check_count(getattr(self, name), f"evaluation.{name}")
        if len(set(self.scales)) < len(self.scales) or not all(0 < scale < 1 for scale in self.scales):
            raise ALoRAError(
                f"evaluation.scales={self.scales!r} must be different numbers between 0 (the base model) and 1 (the finished "
                "adapter, which is scored anyway)"
            )
        if not isinstance(self.general_tasks, list) or not all(isinstance(name, str) for name in self.general_tasks):
            raise ALoRAError(
                f"evaluation.general_tasks={self.general_tasks!r} must be a list of lm-eval's tasks, such as hellaswag"
            )
