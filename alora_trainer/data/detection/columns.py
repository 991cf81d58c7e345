"""What people call their columns: the names by which a column is known for a prompt, an answer, choices, a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alora_trainer.data.records import is_missing

# Prompt and completion as pairs of names, the more telling pairs first; what they are written as is `kinds.PAIRS`' own.
MESSAGES = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
QUESTIONS = (
    "question",
    "question_stem",
    "query",
    "problem",
    "stem",
    "goal",
    "sentence",
    "prompt",
    "input",
    "instruction",
)
ANSWERS = ("answer", "answers", "response", "completion", "output", "solution", "target", "label", "reply", "summary")
CONTEXTS = ("context", "passage", "support", "background", "article")
TEXTS = ("text", "content", "document", "body", "article", "page_content")
CHOICES = ("choices", "options", "candidates", "answers", "endings", "alternatives", "mc_answers")
RIGHT = (
    *("answer", "answerkey", "answer_key", "label", "correct", "correct_answer", "correct_option", "gold", "target"),
    *("answer_idx", "answer_index", "correct_index", "cop", "solution", "right"),
)
# Columns with one choice each, in their order; the second of a set must be there for it to be one.
CHOICE_SETS: tuple[tuple[str, ...], ...] = (
    ("a", "b", "c", "d", "e"),
    ("opa", "opb", "opc", "opd", "ope"),
    ("option_a", "option_b", "option_c", "option_d", "option_e"),
    ("optiona", "optionb", "optionc", "optiond", "optione"),
    ("answera", "answerb", "answerc", "answerd"),
    ("option1", "option2", "option3", "option4", "option5"),
    ("option_1", "option_2", "option_3", "option_4", "option_5"),
    ("choice1", "choice2", "choice3", "choice4", "choice5"),
    ("ending0", "ending1", "ending2", "ending3"),
    ("sol1", "sol2"),
)


def by_lower_case(record: Mapping[str, Any]) -> dict[str, str]:
    """The record's columns by their names in lower case, with underscores for white space and hyphens."""
    return {"_".join(str(name).strip().lower().replace("-", " ").split()): name for name in reversed(list(record))}


def first_of(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The record's own name of the first of `names` that it has a value for; None if it has none."""
    own = by_lower_case(record)
    return next((own[name] for name in names if name in own and not is_missing(record[own[name]])), None)


def choice_columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The record's columns with a choice each; none if it has none.

    A choice that is null or blank at the end of a set is not there: questions may have fewer choices than others.
    """
    own = by_lower_case(record)
    for names in CHOICE_SETS:
        found = [own[name] for name in names if name in own]
        while found and (is_missing(record[found[-1]]) or not str(record[found[-1]]).strip()):
            found.pop()
        if len(found) > 1 and names[0] in own and names[1] in own:
            return tuple(found)
    return ()
