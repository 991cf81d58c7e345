"""The tasks that have a name: lm-eval's four in its own schema and words, and Alpaca's prompt for the user's own files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from alora_trainer.data.choices import LETTERS, answer_index, choices_of, index_of
from alora_trainer.data.records import Record, is_missing, string_field, text_of
from alora_trainer.data.task import Doc, Task, free_task
from alora_trainer.errors import ALoRAError

# Taori et al. 2023, to the letter: with an input, and without.
_ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


def _sciq_convert(record: Record) -> Doc:
    fields = ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support")
    return {key: string_field(record, key) for key in fields}


def _sciq_choices(doc: Doc) -> list[str]:
    return [string_field(doc, name) for name in ("distractor1", "distractor2", "distractor3", "correct_answer")]


def _piqa_convert(record: Record) -> Doc:
    return {key: string_field(record, key) for key in ("goal", "sol1", "sol2")} | {
        "label": index_of(record, "label", 2)
    }


def _medmcqa_convert(record: Record) -> Doc:
    fields = ("question", "opa", "opb", "opc", "opd")
    return {key: string_field(record, key) for key in fields} | {"cop": index_of(record, "cop", 4)}


def _medmcqa_prompt(doc: Doc) -> str:
    options = "".join(f"{letter}. {string_field(doc, f'op{letter.lower()}')}\n" for letter in "ABCD")
    return f"Question: {string_field(doc, 'question')}\nChoices:\n{options}Answer:"


def _openbookqa_convert(record: Record) -> Doc:
    """From the Hub's schema (as it is) or from the flat one of {question, choices: [text, ...], answer: index}."""
    choices = choices_of(record, "choices")
    if "question_stem" in record:
        question, labels = string_field(record, "question_stem"), choices.labels
        if labels is None:
            raise ALoRAError("its field 'choices' has no labels: give {text: [...], label: [...]}")
        key = labels[answer_index(string_field(record, "answerKey"), choices, "its 'answerKey'", "label")]
    else:
        question, labels = string_field(record, "question"), list(LETTERS[: len(choices.texts)])
        key = labels[index_of(record, "answer", len(choices.texts))]
    return {"question_stem": question, "choices": {"text": choices.texts, "label": labels}, "answerKey": key}


def _openbookqa_completion(doc: Doc) -> str:
    choices = choices_of(doc, "choices")
    return " " + choices.texts[answer_index(string_field(doc, "answerKey"), choices, "its 'answerKey'", "label")]


def _alpaca_convert(record: Record) -> Doc:
    """{instruction, input, output}; an input that is blank, null or not there is none."""
    instruction, output = string_field(record, "instruction"), string_field(record, "output")
    given = record.get("input")
    more = "" if is_missing(given) else text_of(given, "its field 'input'")
    if not instruction.strip():
        raise ALoRAError("its field 'instruction' is blank")
    if not output.strip():
        raise ALoRAError("its field 'output' is blank")
    prompt = _ALPACA.format(instruction, more) if more.strip() else _ALPACA_WITHOUT_INPUT.format(instruction)
    return {"prompt": prompt, "completion": f"\n{output}"}


BUILT_IN: Mapping[str, Task] = MappingProxyType(
    {
        "sciq": Task(
            name="sciq",
            lm_eval_task="sciq",
            prompt=lambda doc: (
                f"{string_field(doc, 'support').lstrip()}\nQuestion: {string_field(doc, 'question')}\nAnswer:"
            ),
            completion=lambda doc: f" {string_field(doc, 'correct_answer')}",
            convert=_sciq_convert,
            identity=lambda doc: string_field(doc, "question"),
            choices=_sciq_choices,
            prompt_format="{support}\nQuestion: {question}\nAnswer:",
            hub={"train": {"hub": "allenai/sciq"}, "test": {"hub": "allenai/sciq", "split": "test"}},
            hub_items={"train": 11679, "test": 1000},
            choice_count=4,
        ),
        "piqa": Task(
            name="piqa",
            lm_eval_task="piqa",
            prompt=lambda doc: f"Question: {string_field(doc, 'goal')}\nAnswer:",
            completion=lambda doc: f" {string_field(doc, ('sol1', 'sol2')[index_of(doc, 'label', 2)])}",
            convert=_piqa_convert,
            identity=lambda doc: string_field(doc, "goal"),
            choices=lambda doc: [string_field(doc, name) for name in ("sol1", "sol2")],
            prompt_format="Question: {goal}\nAnswer:",
            hub={"train": {"hub": "baber/piqa"}, "test": {"hub": "baber/piqa", "split": "validation"}},
            hub_items={"train": 16113, "test": 1838},
            choice_count=2,
            test_note="the validation split is scored, because the labels of the test split are not public",
        ),
        "medmcqa": Task(
            name="medmcqa",
            lm_eval_task="medmcqa",
            prompt=_medmcqa_prompt,
            completion=lambda doc: f" {LETTERS[index_of(doc, 'cop', 4)]}",
            convert=_medmcqa_convert,
            identity=lambda doc: string_field(doc, "question"),
            choices=lambda doc: list("ABCD"),
            prompt_format="Question: {question}\nChoices:\nA. {opa}\nB. {opb}\nC. {opc}\nD. {opd}\nAnswer:",
            hub={
                "train": {"hub": "openlifescienceai/medmcqa"},
                "test": {"hub": "openlifescienceai/medmcqa", "split": "validation"},
            },
            hub_items={"train": 182822, "test": 4183},
            choice_count=4,
            test_note="the validation split is scored, because the labels of the test split are not public; lm-eval's medmcqa "
            "declares validation as its test split",
        ),
        "openbookqa": Task(
            name="openbookqa",
            lm_eval_task="openbookqa",
            prompt=lambda doc: string_field(doc, "question_stem"),
            completion=_openbookqa_completion,
            convert=_openbookqa_convert,
            identity=lambda doc: string_field(doc, "question_stem"),
            choices=lambda doc: choices_of(doc, "choices").texts,
            prompt_format="{question_stem}",
            hub={
                "train": {"hub": "allenai/openbookqa", "name": "main"},
                "test": {"hub": "allenai/openbookqa", "name": "main", "split": "test"},
            },
            hub_items={"train": 4957, "test": 500},
            choice_count=4,
        ),
        "alpaca": free_task(
            "alpaca", _alpaca_convert, target_delimiter="\n", prompt_format=_ALPACA.format("{instruction}", "{input}")
        ),
    }
)
