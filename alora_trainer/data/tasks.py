"""Tasks with one right answer, by name, from templates, or of conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alora_trainer.data.built_in import BUILT_IN
from alora_trainer.data.chat import check_chat_spec, is_chat, render_chat
from alora_trainer.data.records import Record, field_of
from alora_trainer.data.task import Doc, Task, free_task
from alora_trainer.data.templates import template_task
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BUILT_IN", "Doc", "Record", "Task", "get_task"]


def get_task(spec: str | Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
    """A task by name, from templates, or of conversations.

    Args:
        spec: ``sciq``, ``piqa``, ``medmcqa`` or ``openbookqa``; ``alpaca`` (instruction, input, output) for files of one's own;
            or a mapping with ``name``, ``prompt`` (a template such as ``"Question: {question}\\nAnswer:"``) and either
            ``completion`` (a template for a free answer) or ``choices`` (the column with the list of answers, or with
            ``{text, label}``; or a list of columns with one answer each) and ``answer`` (the column with the right one: its
            label, its index from 0, its letter or its text; or that one of several columns in ``choices`` which always has
            the right one). What an answer names must be one choice; where it could be several, ``answer_is`` (label, index,
            letter or text) says how it is meant. ``target_delimiter``, one space if left out, stands between prompt and
            answer. Fields that the templates name must be text or numbers; with ``missing: blank``, those that are null, NaN
            or not there are blank.
            Conversations are ``{name: ..., messages: COLUMN}``, a column with lists of ``{role, content}`` or of
            ``{from, value}``: see `data.chat`.
        tokenizer: the model's, whose chat template writes conversations; only `Task.convert` needs it, and only for these.

    Raises:
        ALoRAError: the name, a key or a template is wrong.
    """
    if isinstance(spec, str):
        if spec not in BUILT_IN:
            raise ALoRAError(f"there is no task {spec!r}: use {', '.join(BUILT_IN)}, or give a mapping with templates")
        return BUILT_IN[spec]
    if not isinstance(spec, Mapping):
        raise ALoRAError(f"a task must be a name or a mapping with templates, not {spec!r}")
    return _chat_task(spec, tokenizer) if is_chat(spec) else template_task(spec)


def _chat_task(spec: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Task:
    name, column = check_chat_spec(spec)

    def convert(record: Record) -> Doc:
        prompt, completion = render_chat(field_of(record, column), tokenizer)
        return {"prompt": prompt, "completion": completion}

    return free_task(name, convert, target_delimiter="")
