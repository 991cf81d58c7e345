"""The answers of a task's items as tokens: the right ones, which are trained on, and all those that are scored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alora_trainer.data.encoding import Pair, encode_pairs
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import Task
from alora_trainer.errors import ALoRAError

_AT_ONCE = 1000  # items; a large data set is encoded again and again, and never held whole


def each_answer(
    task: Task, path: Path | str, tokenizer: Any, *, choices: bool, items: int | None = None
) -> Iterator[list[Pair]]:
    """Every item's prompt with its right answer, or with each of its choices, an item at a time.

    Args:
        task: makes prompt and answers of an item.
        path: a JSON lines file in the task's schema.
        tokenizer: of the model.
        choices: all choices, if the task has any, in their order; else the right answer alone.
        items: only the first so many.

    Raises:
        ALoRAError: the file has no items; an item's prompt is blank, or an answer of it is no token of its own.
    """
    docs = read_lines(Path(path))[:items]
    if not docs:
        raise ALoRAError(f"{path} has no items: give a file with at least one")
    for start in range(0, len(docs), _AT_ONCE):
        texts = []
        for number, doc in enumerate(docs[start : start + _AT_ONCE], start=start + 1):
            prompt = task.prompt(doc)
            if not prompt.strip():
                raise ALoRAError(f"the prompt of item {number} of {path} is blank: give the task a prompt with text")
            answers = [task.completion(doc)]
            if choices and task.choices is not None:
                answers = [task.target_delimiter + choice for choice in task.choices(doc)]
            texts.append([(prompt, answer) for answer in answers])
        flat = iter(encode_pairs(tokenizer, [pair for item in texts for pair in item]))
        for number, item in enumerate(texts, start=start + 1):
            pairs = [next(flat) for _ in item]
            for (prompt, answer), pair in zip(item, pairs, strict=True):
                _check(pair, f"item {number} of {path}", prompt, answer)
            yield pairs


def encode_answers(
    task: Task, path: Path | str, tokenizer: Any, *, choices: bool, items: int | None = None
) -> list[list[Pair]]:
    """What `each_answer` gives, of all items."""
    return list(each_answer(task, path, tokenizer, choices=choices, items=items))


def check_answers(task: Task, path: Path | str, tokenizer: Any, *, choices: bool) -> None:
    """Raise what `each_answer` raises."""
    for _ in each_answer(task, path, tokenizer, choices=choices):
        pass


def _check(pair: Pair, item: str, prompt: str, answer: str) -> None:
    if pair.merged:
        end = prompt.rstrip().split()[-1]
        raise ALoRAError(
            f"the answer {answer.strip()[:40]!r} of {item} merges with the end of its prompt, {end[-20:]!r}, into one token, "
            "so that it cannot be learned or scored on its own: begin the answer with a space or a line break "
            "(task.target_delimiter), or end the prompt otherwise"
        )
    if not pair.continuation:
        raise ALoRAError(f"the answer {answer!r} of {item} is no token to the tokenizer: leave the item out")
