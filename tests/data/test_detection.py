"""A person's files: every usual form is recognised, and what cannot be used is told in one line with file, row and remedy."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from alora_trainer.data.detection.examine import examine
from alora_trainer.data.detection.finding import find_data, hub_source
from alora_trainer.data.detection.reading import read_named, texts_of
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from tests.tiny_tokenizer import make_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def look(path: Path, tokenizer: Any, **settings: Any) -> Any:
    return examine(read_named(find_data([path])[0]), tokenizer, **settings)


PAIRS = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(12)]
CHAT = [
    {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": f"good day {n}"}]}
    for n in range(12)
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"hello {n}"}, {"from": "gpt", "value": f"good day {n}"}]}
    for n in range(12)
]
ALPACA = [{"instruction": f"Count to {n}.", "input": None, "output": f"one to {n}"} for n in range(12)]
CHOICES = [{"question": f"Which {n}?", "choices": ["red", "blue", "green"], "answer": n % 3} for n in range(12)]
TEXTS = [{"text": f"In the year {n} " + "there was a town by the sea and " * 6} for n in range(12)]


def in_gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


def in_zstandard(path: Path, text: str) -> None:
    with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(path), "wb"), "zstd") as file:
        file.write(text.encode())


def in_parquet(path: Path, text: str) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in text.splitlines()]), path)


def as_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


GOOD: list[tuple[str, Callable[[Path, str], None], str, str, tuple[str, str]]] = [
    ("pairs.jsonl", as_text, lines(PAIRS), "prompt and completion", ("What is 1?", " It is 1.")),
    ("pairs.json", as_text, json.dumps(PAIRS), "prompt and completion", ("What is 1?", " It is 1.")),
    ("pairs.jsonl.gz", in_gzip, lines(PAIRS), "prompt and completion", ("What is 1?", " It is 1.")),
    ("pairs.jsonl.zst", in_zstandard, lines(PAIRS), "prompt and completion", ("What is 1?", " It is 1.")),
    ("pairs.parquet", in_parquet, lines(PAIRS), "prompt and completion", ("What is 1?", " It is 1.")),
    (
        "faq.csv",
        as_text,
        "Question,Answer\n" + "".join(f'"What, is {n}?",It is {n}.\n' for n in range(12)),
        "question and answer",
        ("Question: What, is 1?\nAnswer:", " It is 1."),
    ),
    (
        "faq.tsv",
        as_text,
        "question\tanswer\n" + "".join(f"What, is {n}?\tIt is {n}.\n" for n in range(12)),
        "question and answer",
        ("Question: What, is 1?\nAnswer:", " It is 1."),
    ),
    (
        "squad.jsonl",
        as_text,
        lines(
            [{"context": f"Bob is {n}.", "question": f"Who is {n}?", "answers": {"text": ["Bob"]}} for n in range(12)]
        ),
        "question and answer",
        ("Bob is 1.\n\nQuestion: Who is 1?\nAnswer:", " Bob"),
    ),
    ("chat.jsonl", as_text, lines(CHAT), "conversations, written", ("User: hello 1\n\nAssistant:", " good day 1")),
    ("sharegpt.json", as_text, json.dumps(SHAREGPT), "conversations", ("User: hello 1\n\nAssistant:", " good day 1")),
    ("alpaca.json", as_text, json.dumps(ALPACA), "alpaca", ("Count to 1.\n\n### Response:", "\none to 1")),
    (
        "no_input.jsonl",
        as_text,
        lines([{"instruction": one["instruction"], "output": one["output"]} for one in ALPACA]),
        "instruction and response",
        ("Count to 1.\n\nResponse:", " one to 1"),
    ),
    ("choices.jsonl", as_text, lines(CHOICES), "with choices", ("Question: Which 1?\nAnswer:", " blue")),
    (
        "from_one.jsonl",
        as_text,
        lines([one | {"answer": one["answer"] + 1} for one in CHOICES]),
        "with choices",
        ("Question: Which 1?\nAnswer:", " blue"),
    ),
    (
        "letters.csv",
        as_text,
        "question,A,B,C,D,answer\n" + "".join(f"Which {n}?,red,blue,green,,{'ABC'[n % 3]}\n" for n in range(12)),
        "with choices",
        ("Question: Which 1?\nAnswer:", " blue"),
    ),
    (
        "labels.jsonl",
        as_text,
        lines(
            [
                {
                    "question": f"Which {n}?",
                    "choices": {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]},
                    "answerKey": str(n % 3 + 1),
                }
                for n in range(12)
            ]
        ),
        "with choices",
        ("Question: Which 1?\nAnswer:", " blue"),
    ),
    (
        "text.jsonl",
        as_text,
        lines(TEXTS),
        "plain text",
        ("In the year 1 there was a town", " by the sea and there was"),
    ),
    (
        "one_column.csv",
        as_text,
        "remark\n" + "".join(f"In the year {n} there was a town by the sea and no more\n" for n in range(12)),
        "plain text",
        ("In the year 1 there was a town", " by the sea and no more"),
    ),
]


@pytest.mark.parametrize(("name", "write", "content", "kind", "second"), GOOD, ids=[one[0] for one in GOOD])
def test_every_usual_form_is_recognised(
    name: str,
    write: Callable[[Path, str], None],
    content: str,
    kind: str,
    second: tuple[str, str],
    tmp_path: Path,
    tokenizer: Any,
) -> None:
    write(tmp_path / name, content)
    found = look(tmp_path / name, tokenizer)
    assert kind in found.files[0].kind and found.files[0].left_out == found.duplicates == 0
    task = get_task(found.spec, tokenizer)
    doc = task.convert(found.records[1])
    assert (task.prompt(doc)[-len(second[0]) :], task.completion(doc)[: len(second[1])]) == second
    assert len(found.records) == len(found.lengths) >= 12
    assert found.loss_on == ("all" if kind == "plain text" else "answer")
    assert len({record["item"] for record in found.records}) == len(found.records)


BAD: list[tuple[str, bytes, list[str]]] = [
    ("latin.csv", "question,answer\nWhat?,Stra\xdfe\n".encode("latin-1"), ["line 2 of", "0xDF", "iconv"]),
    ("half.jsonl", b'{"prompt": "a\\ud83d", "completion": "b"}\n', ["line 1 of", "surrogate", "write the whole"]),
    (
        "broken.jsonl",
        b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", \n',
        ["line 2 of", "not JSON", "one object a line"],
    ),
    ("cells.csv", b"question,answer\nWhat, now?,this\n", ["line 2 of", "3 values", "quote values"]),
    ("twice.csv", b"answer,answer\na,b\n", ["line 1 of", "twice", "rename"]),
    ("empty.jsonl", b"", ["empty.jsonl is empty", "leave it out"]),
    ("packed.jsonl.gz", b"no gzip at all", ["packed.jsonl.gz", "not gzipped", "rename it"]),
    (
        "cut.jsonl.gz",
        gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:-20],
        ["damaged or cut off", "again"],
    ),
    ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
    (
        "odd.jsonl",
        lines([{"height": 1, "width": 2}] * 5).encode(),
        ["columns height, width", "--prompt", "--completion"],
    ),
    (
        "nulls.jsonl",
        lines([{"prompt": "a", "completion": None}] * 7 + PAIRS[:5]).encode(),
        ["7 of the 12 records", "line 1 of", "correct them"],
    ),
    ("words.jsonl", b'"just a word"\n', ["line 1 of", "not a JSON object"]),
    ("table.xlsx", b"PK", ["format that is not known", "use one of .jsonl"]),
    (
        "user_last.jsonl",
        lines([{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}] * 5).encode(),
        ["line 1 of", "not by the assistant", "correct them"],
    ),
    (
        "no_such_choice.jsonl",
        lines([{"question": "Which?", "choices": ["a", "b"], "answer": "z"}] * 5).encode(),
        ["line 1 of", "its answer, the field 'answer',", "correct them"],
    ),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=[one[0] for one in BAD])
def test_what_cannot_be_used_is_one_line_with_file_row_and_remedy(
    name: str, content: bytes, words: list[str], tmp_path: Path, tokenizer: Any
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ALoRAError) as raised:
        look(tmp_path / name, tokenizer)
    message = str(raised.value)
    assert "\n" not in message.strip() and name in message
    assert [word for word in words if word not in message] == []


def test_what_is_left_out_is_counted_with_the_first_of_it(tmp_path: Path, tokenizer: Any) -> None:
    mixed = [*PAIRS, {"prompt": "x", "completion": "  "}, {"prompt": None, "completion": "y"}, PAIRS[0], CHAT[0]]
    (tmp_path / "mixed.jsonl").write_text(lines(mixed))
    found = look(tmp_path / "mixed.jsonl", tokenizer)
    (file,) = found.files
    assert (len(found.records), file.left_out, found.duplicates) == (12, 3, 1)
    assert file.first.startswith(f"line 13 of {tmp_path / 'mixed.jsonl'}: ")


def test_the_same_question_with_another_answer_is_no_duplicate_but_goes_with_it(tmp_path: Path, tokenizer: Any) -> None:
    again = [one | {"prompt": one["prompt"].upper(), "completion": "No."} for one in PAIRS]
    (tmp_path / "a.jsonl").write_text(lines(PAIRS + again))
    found = look(tmp_path / "a.jsonl", tokenizer)
    assert len(found.records) == 24 and found.duplicates == 0
    assert [one["item"] for one in found.records[:12]] == [one["item"] for one in found.records[12:]]


def test_files_of_two_forms_become_prompts_and_completions(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "pairs.jsonl").write_text(lines(PAIRS))
    (tmp_path / "choices.jsonl").write_text(lines(CHOICES))
    found = look(tmp_path, tokenizer)
    assert [file.kind for file in found.files] == ["a question with choices", "prompt and completion"]
    assert found.records[1] == found.records[1] | {"prompt": "Question: Which 1?\nAnswer:", "completion": " blue"}
    assert found.records[13] == found.records[13] | PAIRS[1] | {"completion": " It is 1."}


def test_a_chat_template_writes_conversations_itself(tmp_path: Path, tokenizer: Any) -> None:
    with_template = make_tokenizer()
    with_template.chat_template = TEMPLATE
    (tmp_path / "chat.jsonl").write_text(lines(CHAT))
    found = look(tmp_path / "chat.jsonl", with_template)
    assert found.spec == {"name": "chat", "messages": "messages"}
    assert found.examples[0] == ("<user>hello 0\n<assistant>", "good day 0\n")


def test_named_columns_go_before_what_would_be_found(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "odd.jsonl").write_text(lines([{"height": n, "width": 2 * n} for n in range(12)]))
    found = look(tmp_path / "odd.jsonl", tokenizer, templates=("{height} is", " {width}"))
    assert found.examples[0] == ("0 is", " 0")


def test_answers_longer_than_a_sequence_are_left_out_and_sequences_fit_the_rest(tmp_path: Path, tokenizer: Any) -> None:
    long = {"prompt": "a", "completion": "word " * 200}
    (tmp_path / "a.jsonl").write_text(lines([*PAIRS, long]))
    found = look(tmp_path / "a.jsonl", tokenizer, longest=64)
    assert found.files[0].left_out == 1 and "more than 64 tokens" in found.files[0].first
    assert max(found.lengths) < found.length <= 64


def test_pieces_of_text_are_the_text(tmp_path: Path, tokenizer: Any) -> None:
    text = " ".join(f"word{n}" for n in range(500))
    (tmp_path / "book.txt").write_text(text)
    found = look(tmp_path / "book.txt", tokenizer, longest=128)
    assert len(found.records) > 5 and max(found.lengths) <= 160
    assert " ".join(one["prompt"] + one["completion"] for one in found.records) == text


def test_a_folder_has_its_test_and_leaves_its_validation(tmp_path: Path) -> None:
    for name in ("train-00.jsonl", "train-01.jsonl", "test.jsonl", "validation.jsonl", "notes.md"):
        (tmp_path / name).write_text(lines(PAIRS))
    train, test = find_data([tmp_path])
    assert [Path(one).name for one in train] == ["train-00.jsonl", "train-01.jsonl"]
    assert [Path(one).name for one in test] == ["test.jsonl"]
    assert find_data(["allenai/sciq:train", "hub:a/b"]) == (["hub:allenai/sciq:train", "hub:a/b"], [])
    with pytest.raises(ALoRAError, match="no file nowhere.jsonl"):
        find_data(["nowhere.jsonl"], tmp_path)


def test_a_folder_stands_for_the_files_below_it_too(tmp_path: Path, tokenizer: Any) -> None:
    below = (
        "a.jsonl",
        "more/b.jsonl",
        "more/devices.jsonl",
        "tests/c.jsonl",
        "more/val_1.jsonl",
        "only/dev/d.jsonl",
        ".cache/e.jsonl",
    )
    for name in below:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(lines(PAIRS))
    train, test = find_data([tmp_path])
    assert [str(Path(one).relative_to(tmp_path)) for one in train] == list(below[:3])
    assert [str(Path(one).relative_to(tmp_path)) for one in test] == ["tests/c.jsonl"]
    assert len(look(tmp_path / "more", tokenizer).records) == 12  # of two files alike
    with pytest.raises(ALoRAError, match="no training data, only what is called a test or a validation"):
        find_data([tmp_path / "only"])
    (tmp_path / "more" / "notes.txt").write_text("some words")
    with pytest.raises(ALoRAError, match="files of several kinds"):
        find_data([tmp_path])


def test_a_data_set_of_the_hub_may_have_a_configuration() -> None:
    for name, source in (
        ("allenai/ai2_arc", {}),
        ("allenai/ai2_arc:test", {"split": "test"}),
        ("hub:allenai/ai2_arc:ARC-Easy:train", {"name": "ARC-Easy", "split": "train"}),
    ):
        assert hub_source(name) == {"hub": "allenai/ai2_arc", **source}
    for wrong in ("allenai/ai2_arc:a:b:c", "hub:allenai/ai2_arc:", "hub:"):
        with pytest.raises(ALoRAError, match="organisation/name:configuration:split"):
            find_data([wrong])


def test_general_text_needs_a_column_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(PAIRS))
    with pytest.raises(ALoRAError, match=r"line 1 of .*a\.jsonl has no text .*give general text"):
        texts_of(read_named([str(tmp_path / "a.jsonl")])[str(tmp_path / "a.jsonl")])
