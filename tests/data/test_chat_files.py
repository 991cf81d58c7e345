"""What people have: ShareGPT, content in parts, Alpaca, choices with labels, answers in digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.chat import render_chat
from alora_trainer.data.domain import DomainConfig, prepare_domain
from alora_trainer.data.items import convert_records
from alora_trainer.data.sources import load_source, read_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from tests.data.test_data_chat import with_template
from tests.data.test_data_tasks import check_identical

CASES = Path(__file__).parent.parent / "cases" / "data"


def convert(name: str, spec: Any) -> list[dict[str, Any]]:
    tokenizer = with_template()
    return convert_records(load_source(name, base=CASES), get_task(spec, tokenizer))


def chat(column: str) -> dict[str, str]:
    return {"name": "chat", "messages": column}


class TestConversations:
    def test_sharegpt_is_the_same_conversation(self) -> None:
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is salt?"},
            {"role": "assistant", "content": "A substance."},
        ]
        prompt, completion = render_chat(talk, with_template())
        assert convert("sharegpt.json", chat("conversations")) == [
            {"prompt": prompt, "completion": completion, "id": "a"}
        ]
        assert prompt == "<system>Be brief.<|end|><user>What is salt?<|end|><assistant>"

    def test_parts_of_text_are_put_one_after_the_other(self) -> None:
        assert convert("parts.jsonl", chat("messages")) == [
            {"prompt": "<user>What is salt?<|end|><assistant>", "completion": "A substance.<|end|>"}
        ]

    @pytest.mark.parametrize(
        ("name", "column", "said"),
        [
            ("sharegpt_null", "conversations", "its message 1 has no text: its content is null"),
            (
                "sharegpt_observation",
                "conversations",
                "its message 2 is from 'observation': those known are human, user, gpt",
            ),
            ("image_part", "messages", "its message 1 has a part of type 'image_url': only text can be learned"),
            ("null_content", "messages", "its message 1 has no text: its content is null"),
        ],
    )
    def test_what_is_no_text_is_refused(self, name: str, column: str, said: str) -> None:
        with pytest.raises(ALoRAError, match=rf"^line 1 of .*{name}\.jsonl does not fit the task chat: {said}"):
            convert(f"{name}.jsonl", chat(column))

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            ("hello", "its message 1 is 'hello', not an object with role and content"),
            ({"role": "usr", "content": "hello"}, "its message 1 has the role 'usr': did you mean user?"),
            ({"content": "x"}, "its message 1 has the role null"),
            ({"role": "user", "content": 5}, "its message 1 has no text: its content is 5"),
            ({"role": "user", "content": ["x"]}, "its message 1 has a part 'x'"),
            ({"role": "user", "content": [{"type": "text", "text": None}]}, "its message 1 has a part of type 'text'"),
            ({"role": "user", "content": "half \ud83d"}, "its message 1 has half of a surrogate pair"),
            ({"role": "user", "content": "x", "name": "\udce9"}, "its conversation has the byte 0xE9"),
        ],
    )
    def test_turns_that_are_none(self, message: Any, said: str) -> None:
        named = "{% for m in messages %}{{ m.name }}{% endfor %}"
        tokenizer = with_template()
        tokenizer.chat_template = named + tokenizer.chat_template if "name" in message else tokenizer.chat_template
        with pytest.raises(ALoRAError, match=said):
            render_chat([message, {"role": "assistant", "content": "y"}], tokenizer)

    def test_a_call_without_words_has_no_word_of_its_own(self) -> None:
        call = {"role": "assistant", "content": None, "name": None, "tool_calls": [{"function": {"name": "look"}}]}
        talk = [{"role": "user", "content": "Salt?"}, call, {"role": "assistant", "content": "Yes."}]
        seen = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for key in m %}{% if m[key] is none %}!{% endif %}"
            "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        prompt, _ = render_chat(talk, with_template(template=seen))
        assert prompt == "<user>Salt?<|end|><assistant><|end|><assistant>"


class TestAlpaca:
    WITH = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nSalz\n\n### Response:"
    )
    WITHOUT = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a {}.\n\n### Response:"
    )

    def test_prompts_with_an_input_and_without(self, tmp_path: Path) -> None:
        docs = convert("alpaca.json", "alpaca")
        assert docs == [
            {"prompt": self.WITHOUT.format("gas"), "completion": "\nNeon"},
            {"prompt": self.WITH, "completion": "\nsalt"},
            {"prompt": self.WITHOUT.format("metal"), "completion": "\nIron"},
            {"prompt": self.WITHOUT.format("salt"), "completion": "\nHalite"},
        ]
        check_identical(get_task("alpaca"), docs, tmp_path)

    @pytest.mark.parametrize(
        ("record", "said"),
        [
            ({"instruction": "x", "output": None}, "its field 'output' is null"),
            ({"instruction": "x", "output": " "}, "its field 'output' is blank"),
            ({"instruction": "", "output": "x"}, "its field 'instruction' is blank"),
            ({"instruction": "x", "input": ["y"], "output": "z"}, "its field 'input' is"),
        ],
    )
    def test_refused(self, record: Any, said: str) -> None:
        with pytest.raises(ALoRAError, match=said):
            get_task("alpaca").convert(record)

    def test_from_the_users_own_files(self, tmp_path: Path) -> None:
        with pytest.raises(ALoRAError, match="domain needs both 'train' and 'test', or 'source' and 'holdout'"):
            DomainConfig("alpaca")
        domain = DomainConfig("alpaca", source="alpaca.json", holdout={"by": "instruction", "items": 1})
        files = prepare_domain(domain, base=CASES, folder=tmp_path)
        assert files.report["train_items"] == 3
        assert len({doc["prompt"] for doc in read_lines(files.train) + read_lines(files.test)}) == 4


class TestAnswers:
    SPEC = {"name": "t", "prompt": "{q}", "choices": "choices", "answer": "answer"}

    def test_choices_with_labels(self, tmp_path: Path) -> None:
        spec = {"name": "arc", "prompt": "{question}", "choices": "choices", "answer": "answerKey"}
        docs = convert("labelled.jsonl", spec)
        right = [get_task(spec).completion(doc) for doc in docs]
        assert right == [" wet", " cold", " 3", " hot", " blue"]
        check_identical(get_task(spec), docs, tmp_path)

    def test_answers_in_all_their_forms(self) -> None:
        docs = convert("answers.jsonl", self.SPEC)
        assert [doc["answer"] for doc in docs] == [1, 1, 1, 1, 1, 1, 1]

    def test_what_could_be_two_choices_is_refused_until_the_task_says(self) -> None:
        records = read_lines(CASES / "ambiguous.jsonl")
        said = [
            "'1', which names more than one choice (as text '1', as index '2'): say in the task how answers are meant, "
            "answer_is: text or index",
            "'A', which names more than one choice (as text 'A', as letter 'B'): say in the task how answers are meant, "
            "answer_is: text or letter",
            "'x', which names more than one choice (as text 'x', as text 'x'): make its choices differ",
            "2 (type int), which names more than one choice (as text '2', as index '0'): say in the task how answers are "
            "meant, answer_is: text or index",
            "1 (type int), which names more than one choice (as label 'x', as index 'y'): say in the task how answers are "
            "meant, answer_is: label or index",
        ]
        for record, message in zip(records, said, strict=True):
            with pytest.raises(ALoRAError) as caught:
                get_task(self.SPEC).convert(record)
            assert str(caught.value) == f"its answer, the field 'answer', is {message}"

        def index(number: int, reading: str) -> int:
            return get_task(self.SPEC | {"answer_is": reading}).convert(records[number])["answer"]

        assert (index(0, "text"), index(0, "index")) == (0, 1)
        assert (index(1, "text"), index(1, "letter")) == (1, 0)
        assert (index(3, "text"), index(3, "index")) == (0, 2)
        assert (index(4, "label"), index(4, "index")) == (0, 1)
        with pytest.raises(ALoRAError, match="is '1', no letter of its 3 choices"):
            index(0, "letter")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"answer": None}, "its answer, the field 'answer', is null, not text"),
            ({"answer": True}, "its answer, the field 'answer', is true, not text"),
            ({"answer": [1]}, r"its answer, the field 'answer', is \[1\]"),
            ({"answer": 1.0}, r"its answer, the field 'answer', is 1\.0 \(type float\), no label"),
            ({"answer": "-1"}, "is '-1', no label"),
            ({"choices": {"text": ["x", "y"], "label": ["A"]}}, "as many labels as texts"),
            ({"choices": {"text": ["x", "y"], "label": ["A", "A"]}}, "have the labels A, A: each must be there once"),
            ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "0"}, "is '0', no label"),
            ({"choices": {"text": ["x", "y"]}}, "no field 'label'"),
            ({"choices": [{"text": "x"}, {"text": "y"}]}, "no field 'label'"),
            ({"choices": [{"text": "x", "label": "A"}, "y"]}, "choice 1 of its field 'choices' is {"),
        ],
    )
    def test_answers_that_name_none(self, change: dict[str, Any], said: str) -> None:
        with pytest.raises(ALoRAError, match=said):
            get_task(self.SPEC).convert({"q": "?", "choices": ["x", "y"], "answer": 0} | change)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ({"answer_is": "number"}, "answer_is of the task 't' must be one of label, text, letter, index"),
            (
                {"choices": None, "answer": None, "completion": "{a}", "answer_is": "text"},
                "is for 'choices' and 'answer'",
            ),
        ],
    )
    def test_wrong_specs(self, spec: dict[str, Any], said: str) -> None:
        whole = {key: value for key, value in (self.SPEC | spec).items() if value is not None}
        with pytest.raises(ALoRAError, match=said):
            get_task(whole)

    def test_digits_in_the_built_in_tasks(self) -> None:
        piqa = {"goal": "g", "sol1": "a", "sol2": "b"}
        assert get_task("piqa").convert(piqa | {"label": "1"})["label"] == 1
        for label in ("2", "A", "-1", "", None, 1.0):
            with pytest.raises(ALoRAError, match="its 'label' is .* not a choice from 0 to 1"):
                get_task("piqa").convert(piqa | {"label": label})
        flat = {"question": "q", "choices": ["a", "b"], "answer": "1"}
        assert get_task("openbookqa").convert(flat)["answerKey"] == "B"
        hub = {
            "question_stem": "q",
            "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}],
            "answerKey": "B ",
        }
        assert get_task("openbookqa").convert(hub)["choices"] == {"text": ["a", "b"], "label": ["A", "B"]}

    def test_labels_survive_the_file(self, tmp_path: Path) -> None:
        """What is written for lm-eval has the texts alone, however the choices came."""
        spec = {"name": "arc", "prompt": "{question}", "choices": "choices", "answer": "answerKey"}
        domain = DomainConfig(spec, source="labelled.jsonl", holdout={"by": "id", "items": 1})
        files = prepare_domain(domain, base=CASES, folder=tmp_path)
        (doc,) = (json.loads(line) for line in files.test.read_text().splitlines())
        assert all(isinstance(choice, str) for choice in doc["choices"]) and isinstance(doc["answer"], int)
