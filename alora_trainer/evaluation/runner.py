"""One evaluation of one model: lm-eval scores, we pool the log-likelihoods and keep them for paired statistics."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm  # type: ignore[import-untyped]

from alora_trainer.basics.causal_model import check_causal
from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.basics.processes import is_main
from alora_trainer.basics.scores import GeneralScore, KLToBase, Score, TaskScore
from alora_trainer.data.answers import each_answer
from alora_trainer.data.sources import write_lines
from alora_trainer.data.tasks import Task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.calibration import expected_calibration_error
from alora_trainer.evaluation.choices import choice_figures
from alora_trainer.evaluation.config import EvaluationConfig
from alora_trainer.evaluation.items import digest_items, pack_correct
from alora_trainer.evaluation.kl_to_base import check_has_base, kl_to_base
from alora_trainer.evaluation.lm_tasks import (
    ROLLING_METRICS,
    general_name,
    lm_eval_tasks,
    task_manager,
    task_name,
    write_task_files,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def evaluate_model(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    general: Mapping[str, Path],
    tasks: Mapping[str, Path],
    task_specs: Sequence[Task],
    sources: Mapping[str, Mapping[str, str] | None] | None = None,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    samples_path: Path | None = None,
    base: Any | None = None,
) -> Score:
    """Score a model on general text and on domain tasks through lm-eval, in one process or several (see `processes`).

    Args:
        model: a `PreTrainedModel` or a `PeftModel`; each of its modules is put back into the mode it was in.
        tokenizer: the model's; it is not changed.
        general: subset -> JSON lines file with ``{"text": ...}``.
        tasks: task name -> JSON lines file in the task's schema.
        task_specs: the tasks that ``tasks`` names.
        sources: task name -> the data set of the Hub that its items were read from (hub, name, split), for the results.
        config: see `EvaluationConfig`.
        seed: given to lm-eval for its sampling of examples, of which our tasks use none.
        samples_path: where to keep one JSON line a document: its log-likelihoods and counts, and for a task the right
            answer and whether it was chosen. ``doc_hash`` is the same for the same document under every model.
        base: the base model, for ``config.kl_tokens``; None takes a `PeftModel` with its adapter switched off, where that is
            the base model (see `weights.adapter_settings`).

    Returns:
        The score. Its general ability is pooled over the documents of all subsets, with each subset's own beside it;
        ``kl_to_base`` and ``tasks`` (of ``config.general_tasks``) are there if they were asked for. A task with choices has
        ``acc``, ``acc_norm``, ``ece`` and ``choice_cross_entropy``, one with free answers ``answer_loss``,
        ``answer_perplexity`` and, by whole answers, ``acc`` and ``perplexity``.

    Raises:
        ALoRAError: there is nothing to evaluate on, a file is missing, or a task in ``tasks`` is not in ``task_specs``; the
            model is no causal language model (`check_causal`); there is no base model to compare with; an answer cannot be told
            from its prompt, or does not fit.
    """
    config = config or EvaluationConfig()
    specs = {task.name: task for task in task_specs}
    if missing := [name for name in tasks if name not in specs]:
        raise ALoRAError(f"the task {missing[0]} has no definition: the defined ones are {', '.join(specs) or 'none'}")
    if not general and not tasks:
        raise ALoRAError("there is nothing to evaluate on: give general text or a task")
    if config.kl_tokens and base is None:
        check_has_base(model)
    chosen = [(specs[name], Path(path)) for name, path in tasks.items()]
    with (
        tempfile.TemporaryDirectory(prefix="alora-eval-") as folder,
        _quiet(),
        evaluation_mode(model),
        _without_cache(model),
    ):
        write_task_files(Path(folder), [Path(path) for path in general.values()], chosen)
        scorer = _scorer(model, tokenizer, config)
        _check_answers(chosen, tokenizer, scorer.max_length, config)
        raw = _run(scorer, Path(folder), len(general), len(chosen), config, seed)
        divergence = _divergence(scorer, model, base, raw, list(general), config) if config.kl_tokens else None
        ability = _general_tasks(scorer, config, seed) if config.general_tasks else None
    overall, rows = _general_score(raw, list(general), whole=config.document_tokens is None)
    results = {}
    for index, name in enumerate(tasks):
        own = _task_rows(raw["samples"][task_name(index)], specs[name], tasks[name], tokenizer, config)
        results[name] = _task_score(raw["results"][task_name(index)], own, (sources or {}).get(name))
        rows += own
    if samples_path is not None and is_main():
        write_lines(Path(samples_path), rows)
    return Score(replace(overall, kl_to_base=divergence, tasks=ability), results, tokenizer_facts(tokenizer))


def _general_score(
    raw: Mapping[str, Any], subsets: Sequence[str], *, whole: bool
) -> tuple[GeneralScore, list[dict[str, Any]]]:
    """The score over all subsets with each one's own beside it, and a row a document; nothing without subsets.

    Args:
        raw: what lm-eval returned.
        subsets: of the general text.
        whole: whether documents are scored to their ends, so that lm-eval's own metrics are of what was scored.
    """
    rows: list[dict[str, Any]] = []
    scores = {}
    for index, name in enumerate(subsets):
        own = [_general_row(name, sample) for sample in raw["samples"][general_name(index)]]
        scores[name] = _with_lm_eval(pooled(own), raw["results"][general_name(index)]) if whole else pooled(own)
        rows += own
    return (replace(pooled(rows), subsets=scores) if scores else GeneralScore()), rows


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What a perplexity by token depends on: the tokenizer's class, its size, and a digest of its whole vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    return {"class": type(tokenizer).__name__, "vocab_size": len(vocabulary), "vocab_sha256": digest}


def pooled(rows: Sequence[Mapping[str, Any]]) -> GeneralScore:
    """General ability over documents: sums of ``log_likelihood`` (nats) over sums of ``tokens``, ``words``, ``bytes``."""
    total = math.fsum(row["log_likelihood"] for row in rows)
    tokens, words, size = (sum(row[unit] for row in rows) for unit in ("tokens", "words", "bytes"))
    cross_entropy = -total / tokens
    return GeneralScore(
        token_cross_entropy=cross_entropy,
        token_perplexity=_power(math.e, cross_entropy),
        token_perplexity_base2=_power(2.0, cross_entropy),
        word_perplexity=_power(math.e, -total / words),
        byte_perplexity=_power(math.e, -total / size),
        bits_per_byte=-total / size / math.log(2),
        tokens=tokens,
        words=words,
        bytes=size,
    )


def _power(base: float, exponent: float) -> float:
    """Infinite instead of an OverflowError: a model that was ruined still gets its line in the table."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf


def _scorer(model: Any, tokenizer: Any, config: EvaluationConfig) -> Any:
    from alora_trainer.evaluation.scorer import Scorer

    check_causal(model, "the model", training=False)
    # A copy, because lm-eval gives a tokenizer without a pad token one.
    return Scorer(
        model,
        copy.deepcopy(tokenizer),
        batch_size=config.batch_size,
        max_length=config.max_length,
        document_tokens=config.document_tokens,
    )


def _check_answers(tasks: Sequence[tuple[Task, Path]], tokenizer: Any, longest: int, config: EvaluationConfig) -> None:
    for task, path in tasks:
        encoded = each_answer(task, path, tokenizer, choices=True, items=config.limit)
        for number, pairs in enumerate(encoded, start=1):
            if (tokens := max(len(pair.continuation) for pair in pairs)) > longest:
                raise ALoRAError(
                    f"an answer of {tokens} tokens, of item {number} of {path}, does not fit evaluation.max_length={longest}: "
                    "raise it, up to the model's own limit, or leave the item out"
                )


def _run(scorer: Any, folder: Path, general: int, tasks: int, config: EvaluationConfig, seed: int) -> Mapping[str, Any]:
    names = [general_name(index) for index in range(general)] + [task_name(index) for index in range(tasks)]
    result = _evaluate(scorer, task_manager(folder).load(names), config, seed)
    for index in range(general):
        for sample in result["samples"][general_name(index)]:
            sample["tokens"] = len(scorer.own_tokens(sample["doc"]["text"]))  # it predicts all of them
            sample["scored"] = scorer.scored_text(sample["doc"]["text"])
    return result


def _evaluate(scorer: Any, loaded: Any, config: EvaluationConfig, seed: int) -> Any:
    from lm_eval import evaluator

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    # evaluate() and not simple_evaluate(): that seeds all generators anew and spends seconds describing the machine.
    result = evaluator.evaluate(scorer, loaded, limit=config.limit, bootstrap_iters=config.bootstrap_iters)
    if result is None:
        raise RuntimeError("lm-eval returned no result: it takes this process for one of several")
    return result


def _general_tasks(scorer: Any, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """lm-eval's own numbers of its own tasks, for general ability."""
    result = _evaluate(scorer, lm_eval_tasks(config.general_tasks, config.task_folder), config, seed)
    reported = result["results"] | result.get("groups", {})
    return {
        name: {
            metric.removesuffix(",none"): value for metric, value in scores.items() if isinstance(value, (int, float))
        }
        | ({"items": len(result["samples"][name])} if name in result["samples"] else {})
        for name, scores in reported.items()
    }


def _divergence(
    scorer: Any, model: Any, base: Any | None, raw: Mapping[str, Any], names: list[str], config: EvaluationConfig
) -> KLToBase:
    """KL to the base model on the first documents of every subset, until `kl_tokens` are reached."""
    assert config.kl_tokens is not None
    windows: dict[str, list[Any]] = {}
    for index, name in enumerate(names):
        windows[name], tokens = [], 0
        for sample in raw["samples"][general_name(index)]:
            for window in scorer.windows(sample["doc"]["text"]):
                if tokens < config.kl_tokens:
                    windows[name].append(window)
                    tokens += len(window[1])
    return kl_to_base(model, base, windows, batch_size=int(scorer.batch_size))


def _general_row(subset: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    # lm-eval keeps what each document adds to a metric as (log-likelihood, weight).
    words, size = (sample[metric][1] for metric in ROLLING_METRICS[:2])
    if sample["scored"] is not None:
        words, size = (
            len(re.split(r"\s+", sample["scored"])),
            len(sample["scored"].encode("utf-8")),
        )  # as lm-eval counts
    return {
        "subset": subset,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "log_likelihood": sample["filtered_resps"][0],
        "tokens": sample["tokens"],
        "words": words,
        "bytes": size,
    }


def _with_lm_eval(ours: GeneralScore, result: Mapping[str, Any]) -> GeneralScore:
    """A subset's metrics, taken from lm-eval where it reports them."""
    return replace(ours, **{name: result[f"{name},none"] for name in ROLLING_METRICS})


def _task_rows(
    samples: Sequence[Mapping[str, Any]], task: Task, path: Path, tokenizer: Any, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """A row an item; of a free answer it has the number of tokens, too."""
    lengths: list[int] = []
    if task.choices is None:
        answers = each_answer(task, path, tokenizer, choices=False, items=config.limit)
        lengths = [len(pair.continuation) for (pair,) in answers]
    return [_task_row(task.name, sample, lengths) for sample in samples]


def _task_row(task: str, sample: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    metrics = {name: sample[name] for name in ("acc", "acc_norm") if name in sample}
    if lengths:
        metrics["tokens"] = lengths[sample["doc_id"]]
    return {
        "task": task,
        "doc_id": sample["doc_id"],
        "doc_hash": sample["doc_hash"],
        "log_likelihoods": [response[0] for response in sample["filtered_resps"]],
        "target": sample["target"],
        **metrics,
    }


def _task_score(
    result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], source: Mapping[str, str] | None
) -> TaskScore:
    metrics: dict[str, Any] = {}
    for metric in ("acc", "acc_norm", "perplexity"):
        if f"{metric},none" in result:
            error = result.get(f"{metric}_stderr,none")
            metrics[metric] = float(result[f"{metric},none"])
            metrics[f"{metric}_stderr"] = float(error) if isinstance(error, float) else math.nan  # "N/A" for one item
    if "acc_norm" in metrics:
        scores = [row["log_likelihoods"] for row in rows]
        targets = [row["target"] for row in rows]
        metrics["ece"] = expected_calibration_error(scores, targets)
        metrics |= choice_figures(scores, targets)
    if rows and "tokens" in rows[0]:
        metrics |= answer_losses(rows)
    return TaskScore(
        items=len(rows),
        **metrics,
        correct=pack_correct([row["acc"] for row in rows]),
        items_digest=digest_items(row["doc_hash"] for row in rows),
        source=source,
    )


def answer_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Loss and perplexity a token of free answers, over all of their tokens."""
    tokens = sum(row["tokens"] for row in rows)
    loss = -math.fsum(row["log_likelihoods"][0] for row in rows) / tokens
    return dict(answer_loss=loss, answer_perplexity=_power(math.e, loss), answer_tokens=tokens)


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """No key-value cache, which nothing would read; then the model's setting as it was."""
    cache = getattr(model.config, "use_cache", None)
    if cache:
        model.config.use_cache = False
    try:
        yield
    finally:
        if cache:
            model.config.use_cache = cache


class _NoBar(tqdm.tqdm):  # type: ignore[misc]
    """A bar that is never drawn."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"disable": True})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's log at errors, its bars off the screen, and its bootstrap in this process instead of one a core."""
    import lm_eval.api.task as lm_eval_task

    logger = logging.getLogger("lm_eval")
    # It has no setting for the bars that it draws, into logs, too, while it builds requests and while it resamples (where
    # it imports what draws them anew each time).
    bar, everybodys = lm_eval_task.tqdm, tqdm.tqdm
    lm_eval_task.tqdm = tqdm.tqdm = _NoBar
    level, before = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        lm_eval_task.tqdm, tqdm.tqdm = bar, everybodys
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
