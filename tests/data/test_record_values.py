"""What a record says is what is trained on: no value becomes a word that it is not, and no record gets another's fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from alora_trainer.data.domain import DomainConfig, prepare_domain
from alora_trainer.data.items import convert_records, split_records
from alora_trainer.data.records import Row, Unreadable, check_characters, shown, text_of
from alora_trainer.data.sources import load_source, load_texts, read_lines, stream_records, write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import load_documents
from tests.tiny_tokenizer import make_tokenizer

CASES = Path(__file__).parent.parent / "cases" / "data"
WRITE = {"name": "write", "prompt": "{instruction}\n{input}\nAnswer:", "completion": "{output}"}
CHOOSE = {"name": "choose", "prompt": "{question}", "choices": "choices", "answer": "answer"}
TOOLS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def convert(name: str, spec: Any, base: Path = CASES, tokenizer: Any = None) -> list[dict[str, Any]]:
    return convert_records(load_source(name, base=base), get_task(spec, tokenizer))


class TestText:
    @pytest.mark.parametrize(
        ("value", "text"),
        [("", ""), (" a ", " a "), (3, "3"), (-0.5, "-0.5"), (2.0, "2.0"), (1e22, "1e+22"), (10**400, "1" + "0" * 400)],
    )
    def test_strings_and_numbers(self, value: Any, text: str) -> None:
        assert text_of(value, "it") == text

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (None, "null"),
            (True, "true"),
            (float("nan"), "NaN"),
            (float("-inf"), "infinite"),
            (["a"], r"\['a'\] \(type list\)"),
            ({"a": 1}, r"\{'a': 1\} \(type dict\)"),
            (b"a", r"b'a' \(type bytes\)"),
            (Unreadable("year 10000"), "a value that cannot be read"),
        ],
    )
    def test_everything_else_is_refused(self, value: Any, said: str) -> None:
        with pytest.raises(ALoRAError, match=f"it is {said}.*, not text"):
            text_of(value, "it")

    def test_messages_are_short_and_have_no_control_characters(self) -> None:
        for value in ("x\x1b[2J" * 1000, ["\x1b" * 1000] * 1000, {str(i): "\ud800" for i in range(1000)}):
            assert len(shown(value)) < 700 and shown(value).isprintable()
        with pytest.raises(ALoRAError, match=r"no field 'a' \(its fields are \\x1b0, .* and 5 more\)"):
            get_task({"name": "t", "prompt": "{a}", "completion": "{a}"}).convert({f"\x1b{i}": 1 for i in range(25)})

    def test_half_a_character(self) -> None:
        with pytest.raises(ALoRAError, match=r"half of a surrogate pair, \\ud83d \(line 2, character 3 of it\)"):
            check_characters("one\nab\ud83d", "it")


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("null_input", "its field 'input' is null: fill it in, or write `missing: blank`"),
            ("absent_input", r"it has no field 'input' \(its fields are instruction, output\)"),
            ("nan_input", "its field 'input' is NaN: fill it in"),
            ("null_output", "its field 'output' is null"),
            ("list_input", r"its field 'input' is \['a', 'b'\] \(type list\), not text"),
            ("object_input", "its field 'input' is {'a': 1}"),
            ("true_input", "its field 'input' is true, not text"),
        ],
    )
    @pytest.mark.parametrize("turned", [False, True])
    def test_by_file_item_and_field_in_any_order(self, name: str, said: str, turned: bool, tmp_path: Path) -> None:
        written = (CASES / f"{name}.jsonl").read_text().splitlines()
        (tmp_path / f"{name}.jsonl").write_text("\n".join(reversed(written) if turned else written))
        number = 1 if turned else 2
        with pytest.raises(ALoRAError, match=rf"^line {number} of .*{name}\.jsonl does not fit the task write: {said}"):
            convert(f"{name}.jsonl", WRITE, tmp_path)

    def test_among_choices(self) -> None:
        said = r"^line 2 of .*null_choice\.jsonl does not fit the task choose: choice 2 of its field 'choices' is null"
        with pytest.raises(ALoRAError, match=said):
            convert("null_choice.jsonl", CHOOSE)
        with pytest.raises(ALoRAError, match="its field 'b' is null, not text"):
            get_task(CHOOSE | {"choices": ["a", "b"]}).convert({"question": "q", "a": "x", "b": None, "answer": 0})

    def test_in_an_openbookqa_of_ones_own(self) -> None:
        record = {"question": "Rain is", "choices": ["wet", None], "answer": 0}
        with pytest.raises(ALoRAError, match="choice 2 of its field 'choices' is null"):
            get_task("openbookqa").convert(record)

    @pytest.mark.parametrize("value", [True, ["a"], {"a": 1}])
    def test_as_what_is_held_out_by(self, value: Any) -> None:
        records = [{"id": 1}, {"id": value}]
        with pytest.raises(ALoRAError, match="item 2 cannot be held out by 'id': its field 'id' is"):
            split_records(records, by="id", items=1)
        with pytest.raises(ALoRAError, match="line 7 of x has no 'id' to be held out by"):
            split_records([Row({"id": float("nan")}, "line 7 of x")], by="id", items=1)

    @pytest.mark.parametrize(
        ("spec", "doc"),
        [
            ("sciq", {"support": None, "question": None, "distractor1": None, "correct_answer": None}),
            ("piqa", {"goal": None, "sol1": None, "sol2": None, "label": 0}),
            ("medmcqa", {"question": "q", "opa": None, "opb": "b", "opc": "c", "opd": "d", "cop": -1}),
            (
                "openbookqa",
                {"question_stem": None, "choices": {"text": ["a", None], "label": ["A", "B"]}, "answerKey": "A"},
            ),
            (WRITE, {"prompt": None, "completion": None}),
            (CHOOSE, {"prompt": None, "choices": ["a", None], "answer": 1}),
        ],
    )
    def test_in_files_that_nothing_converted(self, spec: Any, doc: dict[str, Any]) -> None:
        """Training and evaluation can be given a file in a task's own schema."""
        task = get_task(spec)
        for read in (task.prompt, task.completion, *([task.choices] if task.choices and spec != "medmcqa" else [])):
            with pytest.raises(ALoRAError, match="null|is -1"):
                read(doc)

    def test_as_a_document(self, tmp_path: Path) -> None:
        for number, value in enumerate((None, float("nan"), ["x"], True)):
            write_lines(tmp_path / f"{number}.jsonl", [{"text": "x"}, {"text": value}])
            with pytest.raises(ALoRAError, match=rf"line 2 of .*{number}\.jsonl is no document: its field 'text' is"):
                load_texts(f"{number}.jsonl", base=tmp_path)


class TestBlank:
    BLANK = WRITE | {"missing": "blank"}

    @pytest.mark.parametrize("name", ["null_input", "absent_input", "nan_input"])
    def test_what_is_not_there(self, name: str) -> None:
        assert convert(f"{name}.jsonl", self.BLANK)[1] == {"prompt": "B\n\nAnswer:", "completion": " z"}

    @pytest.mark.parametrize("name", ["list_input", "object_input", "true_input"])
    def test_nothing_else(self, name: str) -> None:
        with pytest.raises(ALoRAError, match="line 2 of .* its field 'input' is"):
            convert(f"{name}.jsonl", self.BLANK)

    def test_a_blank_answer_is_still_none(self) -> None:
        with pytest.raises(ALoRAError, match=r"line 2 of .*null_output\.jsonl .* its completion is blank"):
            convert("null_output.jsonl", self.BLANK)
        with pytest.raises(ALoRAError, match="missing of the task 'write' must be one of error, blank, not 'empty'"):
            get_task(WRITE | {"missing": "empty"})


class TestOneTable:
    def test_numbers_keep_their_spelling(self) -> None:
        docs = convert("numbers.jsonl", WRITE)
        assert docs == [
            {"prompt": "A\n2\nAnswer:", "completion": " 0.5"},
            {"prompt": "B\n1e+22\nAnswer:", "completion": " -3"},
        ]
        assert [doc["choices"] for doc in convert("mixed_choices.jsonl", CHOOSE)] == [["1", "2"], ["2", "0.5"]]

    def test_an_unused_column_may_be_anything(self, tmp_path: Path) -> None:
        docs = convert("mixed_unused.jsonl", CHOOSE)
        assert [doc["id"] for doc in docs] == ["1", "b"]
        # lm-eval does want a table: of the documents, which have one form.
        write_lines(tmp_path / "docs.jsonl", docs)
        assert load_documents(path=str(tmp_path / "docs.jsonl"))["test"].to_list() == docs

    def test_each_conversation_has_its_own_arguments(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = TOOLS
        spec = {"name": "chat", "messages": "messages"}
        right = ['<assistant>{"city": "Rome"}<|end|>', '<assistant>{"a": 1, "b": 2}<|end|>']
        records = read_lines(CASES / "tools.jsonl")
        # A table gives every record the keys of all; those that are null go away again, unless the column is JSON.
        Dataset.from_list(records).to_parquet(str(tmp_path / "table.parquet"))
        features = Dataset.from_list(records, on_mixed_types="use_json").features
        assert "Json" in str(features)
        Dataset.from_list(records, features=features).to_parquet(str(tmp_path / "json.parquet"))
        for path in (CASES / "tools.jsonl", tmp_path / "table.parquet", tmp_path / "json.parquet"):
            prompts = [doc["prompt"] for doc in convert(str(path), spec, tokenizer=tokenizer)]
            assert [prompt[prompt.index("<assistant>") :].removesuffix("<assistant>") for prompt in prompts] == right

    def test_from_the_hub_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from alora_trainer.data import sources

        records = read_lines(CASES / "tools.jsonl")
        explicit = [{"call": {"unit": None, "n": 1}}, {"call": {"unit": [1, "a"]}}]
        tables = {
            "a/b": Dataset.from_list(records),
            "c/d": Dataset.from_list(explicit, on_mixed_types="use_json"),
        }
        monkeypatch.setattr(sources, "load_dataset", lambda name, *_, **__: tables[name])
        calls = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in load_source("hub:a/b")]
        assert calls == [{"city": "Rome"}, {"a": 1, "b": 2}]
        assert load_source("hub:c/d") == explicit
        with pytest.raises(ALoRAError, match=r"item 1 of hub:a/b does not fit the task choose: it has no field"):
            convert("hub:a/b", CHOOSE)

    def test_the_order_of_records_decides_nothing(self, tmp_path: Path) -> None:
        records = [
            {"question": "A", "choices": [1, 2], "answer": 0, "extra": {"a": 1}},
            {"question": "B", "choices": ["x", 0.5], "answer": "x", "extra": "b"},
            {"question": "C", "choices": ["x", "y"], "answer": "B"},
        ]
        write_lines(tmp_path / "a.jsonl", records)
        write_lines(tmp_path / "b.jsonl", records[::-1])
        assert convert("a.jsonl", CHOOSE, tmp_path) == convert("b.jsonl", CHOOSE, tmp_path)[::-1]
        assert [set(row) for row in stream_records("b.jsonl", base=tmp_path)] == [set(one) for one in records[::-1]]

    def test_files_of_a_domain_say_what_the_records_said(self, tmp_path: Path) -> None:
        domain = DomainConfig(WRITE, source="numbers.jsonl", holdout={"by": "instruction", "items": 1})
        files = prepare_domain(domain, base=CASES, folder=tmp_path)
        written = [json.loads(path.read_text())["completion"] for path in (files.train, files.test)]
        assert sorted(written) == [" -3", " 0.5"]
