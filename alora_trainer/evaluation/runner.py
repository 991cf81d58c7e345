"""One evaluation of one model: lm-eval scores, we pool the log-likelihoods and keep them for paired statistics."""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.data.general import check_count
from alora_trainer.data.sources import write_lines
from alora_trainer.data.tasks import Task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import general_name, task_manager, task_name, write_task_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass
class EvaluationConfig:
    """The recipe's section on evaluation.

    Attributes:
        batch_size: sequences scored at once.
        max_length: tokens of context, at most; None is the model's own limit.
        limit: score only this many documents of each subset and items of each task; for trying things out.
        bootstrap_iters: resamples for standard errors that have no formula (only a free answer's perplexity has none);
            0 gives no standard errors at all.

    Raises:
        ALoRAError: a number is not one.
    """

    batch_size: int = 16
    max_length: int | None = None
    limit: int | None = None
    bootstrap_iters: int = 1000

    def __post_init__(self) -> None:
        check_count(self.batch_size, "evaluation.batch_size")
        check_count(self.max_length, "evaluation.max_length", optional=True, least=2)
        check_count(self.limit, "evaluation.limit", optional=True)
        check_count(self.bootstrap_iters, "evaluation.bootstrap_iters", least=0)


def evaluate_model(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    general: Mapping[str, Path],
    tasks: Mapping[str, Path],
    task_specs: Sequence[Task],
    config: EvaluationConfig | None = None,
    seed: int = 0,
    samples_path: Path | None = None,
) -> dict[str, Any]:
    """Score a model on general text and on domain tasks through lm-eval, in this process.

    Args:
        model: a `PreTrainedModel` or a `PeftModel`; each of its modules is put back into the mode it was in.
        tokenizer: the model's; it is not changed.
        general: subset -> JSON lines file with ``{"text": ...}``.
        tasks: task name -> JSON lines file in the task's schema.
        task_specs: the tasks that ``tasks`` names.
        config: see `EvaluationConfig`.
        seed: given to lm-eval for its sampling of examples, of which our tasks use none.
        samples_path: where to keep one JSON line a document: its log-likelihoods and counts, and for a task the right
            answer and whether it was chosen. ``doc_hash`` is the same for the same document under every model.

    Returns:
        ``{"general": {...}, "tasks": {...}}``. ``general`` has ``token_cross_entropy`` (nats), ``token_perplexity``
        (e to it), ``token_perplexity_base2`` (2 to it, which some papers print), ``word_perplexity``,
        ``byte_perplexity``, ``bits_per_byte``, ``tokens``, ``words`` and ``bytes``, pooled over the documents of all
        subsets, and the same keys for each of ``subsets``. Every task has ``items``, ``acc``, ``acc_stderr``, and
        ``acc_norm``, ``acc_norm_stderr`` if it has choices, else ``perplexity``, ``perplexity_stderr``.

    Raises:
        ALoRAError: there is nothing to evaluate on, a file is missing, or a task in ``tasks`` is not in ``task_specs``.
    """
    config = config or EvaluationConfig()
    specs = {task.name: task for task in task_specs}
    if missing := [name for name in tasks if name not in specs]:
        raise ALoRAError(f"the task {missing[0]} has no definition: the defined ones are {', '.join(specs) or 'none'}")
    if not general and not tasks:
        raise ALoRAError("there is nothing to evaluate on: give general text or a task")
    chosen = [(specs[name], Path(path)) for name, path in tasks.items()]
    with tempfile.TemporaryDirectory(prefix="alora-eval-") as folder:
        write_task_files(Path(folder), [Path(path) for path in general.values()], chosen)
        with _quiet(), _evaluation_mode(model):
            raw = _run(model, tokenizer, Path(folder), len(general), len(chosen), config, seed)
    samples: list[dict[str, Any]] = []
    subsets = {}
    for index, name in enumerate(general):
        rows = [_general_row(name, sample) for sample in raw["samples"][general_name(index)]]
        subsets[name] = _with_lm_eval(pooled(rows), raw["results"][general_name(index)])
        samples += rows
    results = {}
    for index, name in enumerate(tasks):
        results[name] = _task_result(raw, task_name(index))
        samples += [_task_row(name, sample) for sample in raw["samples"][task_name(index)]]
    if samples_path is not None:
        write_lines(Path(samples_path), samples)
    overall = pooled([row for row in samples if "subset" in row]) | {"subsets": subsets} if general else {}
    return {"general": overall, "tasks": results}


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The general metrics over documents: sums of ``log_likelihood`` over sums of ``tokens``, ``words``, ``bytes``."""
    total = math.fsum(row["log_likelihood"] for row in rows)
    counts = {unit: sum(row[unit] for row in rows) for unit in ("tokens", "words", "bytes")}
    cross_entropy = -total / counts["tokens"]
    return {
        "token_cross_entropy": cross_entropy,
        "token_perplexity": _power(math.e, cross_entropy),
        "token_perplexity_base2": _power(2.0, cross_entropy),
        "word_perplexity": _power(math.e, -total / counts["words"]),
        "byte_perplexity": _power(math.e, -total / counts["bytes"]),
        "bits_per_byte": -total / counts["bytes"] / math.log(2),
        **counts,
    }


def _power(base: float, exponent: float) -> float:
    """Infinite instead of an OverflowError: a model that was ruined still gets its line in the table."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _run(
    model: Any, tokenizer: Any, folder: Path, general: int, tasks: int, config: EvaluationConfig, seed: int
) -> Mapping[str, Any]:
    from lm_eval import evaluator

    from alora_trainer.evaluation.scorer import Scorer

    # A copy, because lm-eval gives a tokenizer without a pad token one.
    scorer = Scorer(model, copy.deepcopy(tokenizer), batch_size=config.batch_size, max_length=config.max_length)
    names = [general_name(index) for index in range(general)] + [task_name(index) for index in range(tasks)]
    loaded = task_manager(folder).load(names)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    # evaluate() and not simple_evaluate(): that seeds all generators anew and spends seconds describing the machine.
    result = evaluator.evaluate(scorer, loaded, limit=config.limit, bootstrap_iters=config.bootstrap_iters)
    if result is None:
        raise RuntimeError("lm-eval returned no result: it takes this process for one of several")
    for index in range(general):
        for sample in result["samples"][general_name(index)]:
            sample["tokens"] = len(scorer.tok_encode(sample["doc"]["text"]))  # it predicts all of them
    return result


def _general_row(subset: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subset": subset,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "log_likelihood": sample["filtered_resps"][0],
        "tokens": sample["tokens"],
        "words": sample["word_perplexity"][1],
        "bytes": sample["byte_perplexity"][1],
    }


def _with_lm_eval(ours: dict[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A subset's metrics, taken from lm-eval where it reports them."""
    return ours | {name: result[f"{name},none"] for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}


def _task_row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {name: sample[name] for name in ("acc", "acc_norm") if name in sample}
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "log_likelihoods": [response[0] for response in sample["filtered_resps"]],
        "target": sample["target"],
        **metrics,
    }


def _task_result(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    result = raw["results"][name]
    metrics: dict[str, Any] = {"items": len(raw["samples"][name])}
    for metric in ("acc", "acc_norm", "perplexity"):
        if f"{metric},none" in result:
            error = result.get(f"{metric}_stderr,none")
            metrics[metric] = float(result[f"{metric},none"])
            metrics[f"{metric}_stderr"] = float(error) if isinstance(error, float) else None  # "N/A" for one item
    return metrics


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode, without a key-value cache that nothing would read; then everything as it was."""
    modes = {module: module.training for module in model.modules()}
    cache = getattr(model.config, "use_cache", None)
    model.eval()
    if cache:
        model.config.use_cache = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        if cache:
            model.config.use_cache = cache


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's log at errors, its bars off the screen, and its bootstrap in this process instead of one a core."""
    import lm_eval.api.task as lm_eval_task

    logger = logging.getLogger("lm_eval")
    bar = lm_eval_task.tqdm
    lm_eval_task.tqdm = lambda items, **_: items  # it has no setting for the bar it shows while building requests
    level, before = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        lm_eval_task.tqdm = bar
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
