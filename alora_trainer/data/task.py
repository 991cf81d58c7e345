"""What a task is: how a record becomes a prompt and a completion, identical to what lm-eval scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from alora_trainer.data.records import Record, string_field

Doc: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One kind of question.

    ``convert`` turns a record of a source into the document that lm-eval reads and raises ALoRAError for one that
    cannot be scored; all other functions take such a document.

    Attributes:
        name: what results are filed under.
        lm_eval_task: lm-eval's built-in task of the same prompts, or None for a task that lm-eval has not.
        prompt: the text before the answer.
        completion: the right answer with the delimiter that lm-eval puts before it.
        convert: record -> document.
        identity: the question's text, by which an item of the training set is recognised in the test set.
        choices: the answers to choose from as lm-eval scores them, without delimiter; None for a free answer.
        target_delimiter: what stands between prompt and answer.
        hub: split ("train", "test") -> the source on the Hub that lm-eval's task reads; empty where the user gives the files.
        hub_items: split -> how many items it has there.
        choice_count: how many answers an item has to choose from, where that is the same for all and known beforehand.
        prompt_format: the prompt with the columns' names in braces, for a card; None where it is no template.
        test_note: what has to be known of the Hub's split that is scored; travels with the results.
    """

    name: str
    lm_eval_task: str | None
    prompt: Callable[[Doc], str]
    completion: Callable[[Doc], str]
    convert: Callable[[Record], Doc]
    identity: Callable[[Doc], str]
    choices: Callable[[Doc], list[str]] | None
    target_delimiter: str = " "
    hub: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hub_items: Mapping[str, int] = field(default_factory=dict)
    choice_count: int | None = None
    prompt_format: str | None = None
    test_note: str | None = None


def free_task(
    name: str, convert: Callable[[Record], Doc], target_delimiter: str, prompt_format: str | None = None
) -> Task:
    """A task of free answers, whose documents are ``prompt`` and ``completion`` (with the delimiter)."""
    return Task(
        name=name,
        lm_eval_task=None,
        prompt=lambda doc: string_field(doc, "prompt"),
        completion=lambda doc: string_field(doc, "completion"),
        convert=convert,
        identity=lambda doc: string_field(doc, "prompt"),
        choices=None,
        target_delimiter=target_delimiter,
        prompt_format=prompt_format,
    )
