"""The domain: a training and a test file in the schema that lm-eval reads, and the training file as tokens."""

from __future__ import annotations

import copy
import hashlib
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from alora_trainer.data.answers import each_answer
from alora_trainer.data.general import check_count
from alora_trainer.data.items import convert_records, fitting_records, split_records
from alora_trainer.data.records import Row
from alora_trainer.data.sources import Source, check_keys, hub_settings, load_source, write_lines
from alora_trainer.data.tasks import Task, get_task
from alora_trainer.errors import ALoRAError

logger = logging.getLogger(__name__)

LOSSES = ("answer", "all")
ERROR_OR_DROP = ("error", "drop")
IGNORED_LABEL = -100


@dataclass
class DomainConfig:
    """The recipe's section on the domain.

    Attributes:
        task: the name of a built-in task or a mapping with templates; see `get_task`.
        train: the source of the training items; the Hub's if a built-in task has neither ``train`` nor ``source``.
        test: the source of the test items.
        source: instead of both, one source that is split as ``holdout`` says.
        holdout: ``{by: FIELD, items: N}``: the N items whose FIELD has the smallest SHA-1 are the test.
        train_items: train on this many items, drawn by the seed; None trains on all.
        test_items: test on this many items, those whose question has the smallest SHA-1; None tests on all.
        max_length: tokens of prompt and answer together; longer prompts lose their beginning.
        loss_on: ``answer`` trains on the answer alone, ``all`` on the prompt, too.
        too_long: what becomes of a training item whose answer alone has more than max_length tokens: ``error`` refuses it,
            ``drop`` leaves it out and says how many there were.
        unfit: what becomes of an item that the task cannot use (a null where text is wanted, a blank answer, a conversation
            that ends with the user): ``error`` refuses it, ``drop`` leaves it out of training and test, says how many there
            were, and what is wrong with the first.

    Raises:
        ALoRAError: a setting is wrong, or the sources do not go together.
    """

    task: str | Mapping[str, Any]
    train: Source | None = None
    test: Source | None = None
    source: Source | None = None
    holdout: Mapping[str, Any] | None = None
    train_items: int | None = None
    test_items: int | None = None
    max_length: int = 512
    loss_on: str = "answer"
    too_long: str = "error"
    unfit: str = "error"

    def __post_init__(self) -> None:
        task = get_task(self.task)
        for name in ("train_items", "test_items"):
            check_count(getattr(self, name), f"domain.{name}", optional=True)
        check_count(self.max_length, "domain.max_length", least=2)
        for name, allowed in (("loss_on", LOSSES), ("too_long", ERROR_OR_DROP), ("unfit", ERROR_OR_DROP)):
            if getattr(self, name) not in allowed:
                raise ALoRAError(f"domain.{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.source is not None:
            if self.train is not None or self.test is not None:
                raise ALoRAError("domain.source excludes domain.train and domain.test: leave out one or the others")
            self._check_holdout()
            return
        if self.holdout is not None:
            raise ALoRAError("domain.holdout splits domain.source, which is missing: give it instead of train and test")
        if self.train is None and self.test is None and task.hub:
            self.train, self.test = task.hub["train"], task.hub["test"]
        if self.train is None or self.test is None:
            raise ALoRAError("domain needs both 'train' and 'test', or 'source' and 'holdout'")

    def read(self, split: str) -> Source:
        """The source that the ``train`` or ``test`` items are read from; it may be the same, for `source` is split."""
        source = self.source if self.source is not None else {"train": self.train, "test": self.test}[split]
        assert source is not None  # the check above
        return source

    def reads_hub_of(self, task: Task, split: str) -> bool:
        """Whether the items of a split are those on the Hub that lm-eval's task of the name reads, all of them."""
        return (
            self.source is None and bool(task.hub) and hub_settings(self.read(split)) == hub_settings(task.hub[split])
        )

    def _check_holdout(self) -> None:
        if not isinstance(self.holdout, Mapping):
            raise ALoRAError("domain.source needs domain.holdout, such as {by: id, items: 1000}")
        check_keys(self.holdout, ("by", "items"), "domain.holdout")
        if not isinstance(self.holdout.get("by"), str):
            raise ALoRAError("domain.holdout needs 'by', the field whose hash chooses the test items")
        check_count(self.holdout.get("items"), "domain.holdout.items")


@dataclass(frozen=True)
class DomainFiles:
    """What `prepare_domain` wrote; ``report`` has the counts that belong beside any result."""

    train: Path
    test: Path
    report: dict[str, Any]


def _records(domain: DomainConfig, task: Task, base: Path | str) -> tuple[list[Row], list[Row], int]:
    """The records of training and test, and how many were left out because they do not fit the task."""
    sources = [domain.source] if domain.source is not None else [domain.read("train"), domain.read("test")]
    read = [load_source(source, base=base) for source in sources]
    kept = [fitting_records(records, task) for records in read] if domain.unfit == "drop" else read
    unfit = sum(map(len, read)) - sum(map(len, kept))
    if domain.source is None:
        return kept[0], kept[1], unfit
    assert domain.holdout is not None  # DomainConfig checked
    train, test = split_records(kept[0], by=domain.holdout["by"], items=domain.holdout["items"])
    return train, test, unfit


def prepare_domain(
    domain: DomainConfig,
    *,
    base: Path | str,
    folder: Path | str,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> DomainFiles:
    """Write ``folder/train.jsonl`` and ``folder/test.jsonl`` in the schema that lm-eval's task reads.

    Training items whose question is also in the test set are dropped (compared without regard to case and white space).

    Args:
        domain: what to read and how to split it.
        base: the folder that relative paths start from.
        folder: where the files go; they appear whole or not at all.
        seed: draws the training items if there are more than ``train_items``.
        tokenizer: the model's, for conversations.

    Returns:
        The two files, and a report: ``train_items``, ``test_items``, ``dropped_in_test`` (training items whose question
        the test set has) and ``dropped_questions`` (their distinct questions); with ``unfit: drop``, ``unfit_items``.

    Raises:
        ALoRAError: a source cannot be read, or an item cannot be scored; the message has its place and what is wrong.
    """
    task = get_task(domain.task, tokenizer)
    train_records, test_records, unfit = _records(domain, task, base)
    train, test = convert_records(train_records, task), convert_records(test_records, task)
    if domain.test_items is not None and domain.test_items < len(test):
        test = sorted(test, key=lambda doc: hashlib.sha1(task.identity(doc).encode("utf-8")).hexdigest())
        test = test[: domain.test_items]
    asked = {_normal(task.identity(doc)) for doc in test}
    kept = [doc for doc in train if _normal(task.identity(doc)) not in asked]
    dropped = [_normal(task.identity(doc)) for doc in train if _normal(task.identity(doc)) in asked]
    if not kept:
        raise ALoRAError("every training item's question is also in the test set: give other training items")
    if domain.train_items is not None and domain.train_items < len(kept):
        chosen = random.Random(f"{seed}:train_items").sample(range(len(kept)), domain.train_items)
        kept = [kept[index] for index in sorted(chosen)]
    files = DomainFiles(
        train=Path(folder) / "train.jsonl",
        test=Path(folder) / "test.jsonl",
        report={
            "train_items": len(kept),
            "test_items": len(test),
            "dropped_in_test": len(dropped),
            "dropped_questions": len(set(dropped)),
            **({"unfit_items": unfit} if domain.unfit == "drop" else {}),
        },
    )
    write_lines(files.train, kept)
    write_lines(files.test, test)
    return files


def tokenize_domain(
    task: Task,
    path: Path | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    loss_on: str = "answer",
    too_long: str = "error",
) -> Dataset:
    """Tokenise the items of a file that `prepare_domain` wrote.

    Prompt and completion are parted as they are for scoring (`data.encoding`), so that training sees the tokens that are
    scored. No EOS stands at the end, also where the tokenizer would append one, since none is scored.

    Args:
        task: makes prompt and completion of an item.
        path: a JSON lines file in the task's schema.
        tokenizer: of the model.
        max_length: longer items lose the beginning of the prompt; the completion stays whole.
        loss_on: ``answer`` or ``all``.
        too_long: ``error`` or ``drop``, for an item whose completion alone does not fit.

    Returns:
        A data set with ``input_ids`` and ``labels``; with ``answer``, the labels of the prompt are -100.

    Raises:
        ALoRAError: the file has no items, or one that `each_answer` refuses, or whose completion does not fit; none fits.
    """
    if loss_on not in LOSSES:
        raise ALoRAError(f"loss_on must be one of {', '.join(LOSSES)}, not {loss_on!r}")
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    number = 0
    for number, (pair,) in enumerate(each_answer(task, path, tokenizer, choices=False), start=1):
        context, continuation, _ = pair
        answer = len(continuation)
        if answer >= max_length:
            if too_long == "drop":
                continue
            raise ALoRAError(
                f"the answer of item {number} of {path} has {answer} tokens, and max_length is {max_length}: raise "
                "domain.max_length, or set domain.too_long to drop"
            )
        ids = (context + continuation)[-max_length:]
        labels = [IGNORED_LABEL] * (len(ids) - answer) + continuation if loss_on == "answer" else ids
        rows["input_ids"].append(ids)
        rows["labels"].append(labels)
    if dropped := number - len(rows["input_ids"]):
        logger.warning(
            f"{dropped} of {number} training items are left out: their answers have {max_length} tokens or more"
        )
    if not rows["input_ids"]:
        raise ALoRAError(f"no item of {path} fits in max_length={max_length}: raise domain.max_length")
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_dict(rows, features=features)


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Pads ``input_ids`` (and labels with -100) to the longest item of a batch and adds the attention mask."""
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)  # padding is masked, so any token will do; the caller's stays as it is
        tokenizer.pad_token = tokenizer.eos_token
    return DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED_LABEL)


def _normal(question: str) -> str:
    return " ".join(question.casefold().split())
