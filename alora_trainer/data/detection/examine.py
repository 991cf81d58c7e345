"""Records looked at before anything is trained on them: their form, what can be learned of them, what is left out and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alora_trainer.data.detection.kinds import RecordForm, Spec, by_templates, kind_of
from alora_trainer.data.detection.pieces import pieces
from alora_trainer.data.encoding import encode_pairs
from alora_trainer.data.records import Row, listed
from alora_trainer.data.task import Doc, Task
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError

# Sequences are no longer than this, if nobody says otherwise: what most of the items need, and a pass can hold.
LONGEST = 1024
_PIECE = 512  # tokens of a piece of plain text
_ALMOST_ALL = 0.99
_EXAMPLES = 3
# Less than this share of a file's records can be used: it is not what it was taken for.
_LEAST_USED = 0.5
_AT_ONCE = 1000
# Prompts and completions as they are: what files of different forms have in common.
PLAIN_SPEC: Mapping[str, Any] = {
    "name": "items",
    "prompt": "{prompt}",
    "completion": "{completion}",
    "target_delimiter": "",
}


@dataclass(frozen=True)
class FileFound:
    """One file: what it is, how many records it has, and how many of them are left out (``first``: the first, and why)."""

    name: str
    kind: str
    columns: tuple[str, ...]
    records: int
    left_out: int = 0
    first: str = ""


@dataclass(frozen=True)
class Examined:
    """What data hold.

    Attributes:
        spec: the recipe's task.
        loss_on: ``answer`` or ``all``.
        records: what is kept, each with ``item``, by which the very same question is known.
        lengths: tokens of each, prompt and completion together.
        files: what each file is.
        duplicates: how many were left out for being there before, question and answer.
        examples: (prompt, completion) of three, as the model sees them.
        length: what `max_length` should be.
        prompt_format: how all prompts are made, columns in braces (a context before them left out); None where files have
            different forms, or there is nothing to tell.
    """

    spec: Spec
    loss_on: str
    records: list[dict[str, Any]]
    lengths: list[int]
    files: tuple[FileFound, ...]
    duplicates: int
    examples: tuple[tuple[str, str], ...]
    length: int = field(default=LONGEST)
    prompt_format: str | None = None


@dataclass(frozen=True)
class _Item:
    record: dict[str, Any]
    prompt: str
    completion: str
    length: int
    asked: str


def examine(
    files: Mapping[str, Sequence[Row]],
    tokenizer: Any,
    *,
    longest: int = LONGEST,
    templates: tuple[str, str] | None = None,
) -> Examined:
    """Look at all records of all files.

    Args:
        files: the records by the file's name.
        tokenizer: the model's.
        longest: the most tokens of an item, for the model's sake; longer prompts lose their beginning.
        templates: of prompt and completion, where they are not to be found out.

    Raises:
        ALoRAError: the form of a file cannot be told; half of its records or more cannot be used; nothing is left.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    kinds: dict[str, RecordForm] = {}
    items: dict[str, list[_Item]] = {}
    found = []
    for name, rows in files.items():
        kind = by_templates(*templates) if templates is not None else _kind(name, rows, has_template)
        kinds[name] = kind
        items[name], said = _items(name, kind, rows, tokenizer, longest)
        found.append(said)
    specs = [kind.spec for kind in kinds.values()]
    common = specs[0] if all(spec == specs[0] for spec in specs) else PLAIN_SPEC
    whole = [item if common is not PLAIN_SPEC else _plainly(item) for own in items.values() for item in own]
    forms = {kind.prompt_format or get_task(kind.spec, tokenizer).prompt_format for kind in kinds.values()}
    kept: dict[tuple[str, str], _Item] = {}
    for item in whole:
        kept.setdefault((_normal(item.asked), _normal(item.completion)), item)
    every = list(kept.values())
    places = sorted({len(every) * place // _EXAMPLES for place in range(_EXAMPLES)})
    return Examined(
        spec=common,
        loss_on="all" if all(kind.loss_on == "all" for kind in kinds.values()) else "answer",
        records=[{**item.record, "item": _digest(item.asked)} for item in every],
        lengths=[item.length for item in every],
        files=tuple(found),
        duplicates=len(whole) - len(every),
        examples=tuple((every[place].prompt, every[place].completion) for place in places),
        length=_length([item.length for item in every], longest),
        prompt_format=forms.pop() if len(forms) == 1 else None,
    )


def _kind(name: str, rows: Sequence[Row], has_template: bool) -> RecordForm:
    found = kind_of(rows, has_chat_template=has_template)
    if found is None:
        columns = _columns(rows)
        prompt, completion = (
            columns if len(columns) == 2 else ("question", "answer")
        )  # of two it can hardly be otherwise
        raise ALoRAError(
            f"{name} has the columns {listed(columns)}, no prompt with its answer, no conversation and no text: "
            f"name those that are, such as --prompt '{{{prompt}}}' --completion ' {{{completion}}}'"
        )
    return found[0]


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _items(
    name: str, kind: RecordForm, rows: Sequence[Row], tokenizer: Any, longest: int
) -> tuple[list[_Item], FileFound]:
    """The items of a file, and what it is."""
    task = get_task(kind.spec, tokenizer)
    wrong: dict[str, str] = {}  # where -> why
    docs: list[tuple[Row, dict[str, Any], Doc]] = []
    for row in rows:
        try:
            for record in _records(kind, row, tokenizer, min(longest, _PIECE)):
                doc = task.convert(record)
                if not task.prompt(doc).strip():
                    raise ALoRAError("its prompt is blank")
                docs.append((row, record, doc))
        except ALoRAError as error:
            wrong[row.where] = str(error)
    items: list[_Item] = []
    for start in range(0, len(docs), _AT_ONCE):
        items += _encoded(docs[start : start + _AT_ONCE], task, tokenizer, longest, wrong)
    first = next((f"{where}: {why}" for where, why in wrong.items()), "")
    if len(wrong) > (1 - _LEAST_USED) * len(rows) or not items:
        raise ALoRAError(
            f"{len(wrong)} of the {len(rows)} records of {name} cannot be used as {kind.title}; the first is {first or name}: "
            "correct them, or name the columns with --prompt and --completion"
        )
    return items, FileFound(name, kind.title, tuple(_columns(rows)), len(rows), len(wrong), first)


def _records(kind: RecordForm, row: Row, tokenizer: Any, length: int) -> Iterator[dict[str, Any]]:
    record = kind.convert(row)
    if not kind.is_text:
        yield record
        return
    found = list(pieces(record["text"], tokenizer, length))
    if not found:
        raise ALoRAError("its text is too short to learn from")
    yield from found


def _encoded(
    docs: Sequence[tuple[Row, dict[str, Any], Doc]], task: Task, tokenizer: Any, longest: int, wrong: dict[str, str]
) -> Iterator[_Item]:
    """The items whose answers are tokens of their own and fit; why others are not goes to `wrong`."""
    pairs = []
    for _, _, doc in docs:
        answers = [task.completion(doc)]
        if task.choices is not None:
            answers += [task.target_delimiter + choice for choice in task.choices(doc)]
        pairs.append([(task.prompt(doc), answer) for answer in answers])
    encoded = iter(encode_pairs(tokenizer, [pair for own in pairs for pair in own]))
    for (row, record, doc), own in zip(docs, pairs, strict=True):
        tokens = [next(encoded) for _ in own]
        if any(pair.merged or not pair.continuation for pair in tokens):
            wrong[row.where] = "an answer of it is no token of its own after the prompt: begin it with a space"
        elif any(len(pair.continuation) >= longest for pair in tokens):
            wrong[row.where] = f"its answer has more than {longest} tokens"
        else:
            prompt, completion = own[0]
            length = len(tokens[0].context) + len(tokens[0].continuation)
            yield _Item(record, prompt, completion, length, task.identity(doc))


def _plainly(item: _Item) -> _Item:
    record = {"prompt": item.prompt, "completion": item.completion}
    return _Item(record, item.prompt, item.completion, item.length, item.prompt)


def _length(lengths: Sequence[int], longest: int) -> int:
    """What almost all items fit in, as a multiple of 32."""
    enough = sorted(lengths)[int(_ALMOST_ALL * (len(lengths) - 1))]
    return min(-(-(enough + 1) // 32) * 32, longest)


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(question: str) -> str:
    return hashlib.sha1(_normal(question).encode("utf-8")).hexdigest()[:16]
