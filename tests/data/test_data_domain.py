"""Splitting a domain into training and test without leaks, and its tokens."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.data.domain import DomainConfig, collator, prepare_domain, tokenize_domain
from alora_trainer.data.items import split_records
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from tests.tiny_tokenizer import make_tokenizer

ELEMENTS = {"name": "elements", "prompt": "Question: {question}\nAnswer:", "choices": "choices", "answer": "answer"}


def item(number: int, **changes: Any) -> dict[str, Any]:
    record = {"id": f"q{number}", "question": f"Number {number}?", "choices": ["salt", "water"], "answer": number % 2}
    return record | changes


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_lines(tmp_path / "all.jsonl", [item(i) for i in range(20)])
    write_lines(tmp_path / "train.jsonl", [item(i) for i in range(12)] + [item(30, question="number  10?")])
    write_lines(tmp_path / "test.jsonl", [item(i) for i in range(10, 16)])
    return tmp_path


class TestPrepare:
    def test_items_of_the_test_are_dropped_from_training(self, base: Path) -> None:
        domain = DomainConfig(ELEMENTS, train="train.jsonl", test="test.jsonl")
        files = prepare_domain(domain, base=base, folder=base / "out")
        assert files.report == {"train_items": 10, "test_items": 6, "dropped_in_test": 3, "dropped_questions": 2}
        assert [doc["id"] for doc in read_lines(files.train)] == [f"q{i}" for i in range(10)]
        first = read_lines(files.test)[0]
        prompt = "Question: Number 10?\nAnswer:"
        assert first == {"prompt": prompt, "choices": ["salt", "water"], "answer": 0, "id": "q10"}

    def test_holdout_takes_the_smallest_hashes(self, base: Path) -> None:
        domain = DomainConfig(ELEMENTS, source="all.jsonl", holdout={"by": "id", "items": 7})
        files = prepare_domain(domain, base=base, folder=base / "out")
        test = {doc["id"] for doc in read_lines(files.test)}
        ids = sorted((f"q{i}" for i in range(20)), key=lambda name: hashlib.sha1(name.encode()).hexdigest())
        assert test == set(ids[:7])
        assert {doc["id"] for doc in read_lines(files.train)} == set(ids[7:])

    def test_holdout_does_not_depend_on_the_order(self) -> None:
        records = [item(i) for i in range(20)]
        one = split_records(records, by="id", items=5)[1]
        other = split_records(records[::-1], by="id", items=5)[1]
        assert one == other[::-1] and len(one) == 5

    def test_fewer_items(self, base: Path) -> None:
        def ids(seed: int) -> tuple[list[str], list[str]]:
            domain = DomainConfig(ELEMENTS, train="train.jsonl", test="test.jsonl", train_items=4, test_items=3)
            files = prepare_domain(domain, base=base, folder=base / "out", seed=seed)
            return [d["id"] for d in read_lines(files.train)], [d["id"] for d in read_lines(files.test)]

        assert ids(0) == ids(0)
        assert ids(0)[1] == ids(1)[1] and ids(0)[0] != ids(1)[0]
        assert tuple(map(len, ids(0))) == (4, 3)

    def test_training_items_of_all_of_the_test_are_dropped_before_counting(self, base: Path) -> None:
        domain = DomainConfig(ELEMENTS, train="train.jsonl", test="test.jsonl", train_items=10)
        assert prepare_domain(domain, base=base, folder=base / "out").report["train_items"] == 10

    def test_wrong_item_is_named(self, base: Path) -> None:
        write_lines(base / "bad.jsonl", [item(1), item(2, answer=5)])
        domain = DomainConfig(ELEMENTS, train="bad.jsonl", test="test.jsonl")
        with pytest.raises(
            ALoRAError,
            match=r"line 2 of .*bad.jsonl does not fit the task elements: its answer, the field 'answer', is 5",
        ):
            prepare_domain(domain, base=base, folder=base / "out")
        assert not (base / "out").exists()

    def test_items_that_do_not_fit_can_be_left_out(self, base: Path, caplog: pytest.LogCaptureFixture) -> None:
        bad = [item(40 + i, answer=answer) for i, answer in enumerate((None, 5))]
        write_lines(base / "some.jsonl", [bad[0], *(item(i) for i in range(8)), bad[1]])
        domain = DomainConfig(ELEMENTS, source="some.jsonl", holdout={"by": "id", "items": 3}, unfit="drop")
        files = prepare_domain(domain, base=base, folder=base / "out")
        counts = {"train_items": 5, "test_items": 3, "dropped_in_test": 0, "dropped_questions": 0, "unfit_items": 2}
        assert files.report == counts
        assert "2 of 10 items do not fit the task elements and are left out; the first is line 1 of" in caplog.text
        assert "some.jsonl: its answer, the field 'answer', is null" in caplog.text
        write_lines(base / "bad.jsonl", bad)
        with pytest.raises(
            ALoRAError, match=r"none of the 2 items fits the task elements: line 1 of .*bad\.jsonl: its answer"
        ):
            prepare_domain(
                DomainConfig(ELEMENTS, train="some.jsonl", test="bad.jsonl", unfit="drop"),
                base=base,
                folder=base / "out",
            )

    def test_nothing_left_to_train_on(self, base: Path) -> None:
        domain = DomainConfig(ELEMENTS, train="test.jsonl", test="test.jsonl")
        with pytest.raises(ALoRAError, match="every training item's question is also in the test set"):
            prepare_domain(domain, base=base, folder=base / "out")

    def test_holdout_errors(self) -> None:
        records = [item(i) for i in range(3)]
        with pytest.raises(ALoRAError, match="leaves none to train on"):
            split_records(records, by="id", items=3)
        with pytest.raises(ALoRAError, match="item 1 has no 'key'"):
            split_records(records, by="key", items=1)

    def test_real_medmcqa_split(self, shared: Path, tmp_path: Path) -> None:
        source = str(shared / "data/tasks/medmcqa/validation.jsonl.gz")
        domain = DomainConfig("medmcqa", source=source, holdout={"by": "id", "items": 1000})
        report = prepare_domain(domain, base=tmp_path, folder=tmp_path).report
        assert report["test_items"] == 1000
        assert report["train_items"] + report["dropped_in_test"] == 3183


class TestConfig:
    def test_the_hub_is_the_default_of_a_built_in_task(self) -> None:
        domain = DomainConfig("piqa")
        assert domain.train == {"hub": "baber/piqa"} and domain.test == {"hub": "baber/piqa", "split": "validation"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "needs both 'train' and 'test'"),
            ({"train": "a.jsonl"}, "needs both"),
            ({"train": "a", "test": "b", "holdout": {"by": "id", "items": 1}}, "which is missing"),
            ({"source": "a", "test": "b", "holdout": {"by": "id", "items": 1}}, "excludes"),
            ({"source": "a"}, "needs domain.holdout"),
            ({"source": "a", "holdout": {"by": "id", "item": 1}}, "did you mean 'items'"),
            ({"source": "a", "holdout": {"by": "id", "items": 0}}, "domain.holdout.items must be"),
            ({"source": "a", "holdout": {"items": 1}}, "needs 'by'"),
            ({"train": "a", "test": "b", "max_length": 1}, "domain.max_length"),
            ({"train": "a", "test": "b", "train_items": 0}, "domain.train_items"),
            ({"train": "a", "test": "b", "loss_on": "prompt"}, "one of answer, all"),
        ],
    )
    def test_wrong(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ALoRAError, match=message):
            DomainConfig(ELEMENTS, **settings)


class TestTokens:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        task = get_task(ELEMENTS)
        write_lines(tmp_path / "t.jsonl", [task.convert(item(i, question="Which? " * (i + 1))) for i in range(4)])
        return tmp_path / "t.jsonl"

    @pytest.mark.parametrize("begin", [False, True])
    def test_tokens_are_those_that_lm_eval_scores(self, path: Path, begin: bool) -> None:
        from lm_eval.models.huggingface import HFLM

        task, tokenizer = get_task(ELEMENTS), make_tokenizer(begin=begin)
        scorer = HFLM.__new__(HFLM)  # its encoding needs no model
        scorer.tokenizer, scorer.backend, scorer.add_bos_token, scorer.custom_prefix_token_id = (
            tokenizer,
            "causal",
            None,
            None,
        )
        dataset = tokenize_domain(task, path, tokenizer, max_length=512)
        assert dataset.column_names == ["input_ids", "labels"]
        for row, doc in zip(dataset, read_lines(path), strict=True):
            context, answer = scorer._encode_pair(task.prompt(doc), task.completion(doc))
            assert row["input_ids"] == context + answer
            assert row["labels"] == [-100] * len(context) + answer

    def test_white_space_at_the_end_of_a_prompt_goes_to_the_answer(self, tmp_path: Path) -> None:
        task = get_task({"name": "t", "prompt": "{q} \n", "completion": "{a}", "target_delimiter": ""})
        write_lines(tmp_path / "t.jsonl", [task.convert({"q": "Which?", "a": "water"})])
        tokenizer = make_tokenizer()
        row = tokenize_domain(task, tmp_path / "t.jsonl", tokenizer, max_length=64)[0]
        assert tokenizer.decode([label for label in row["labels"] if label != -100]) == " \nwater"

    def test_loss_on_all(self, path: Path) -> None:
        dataset = tokenize_domain(get_task(ELEMENTS), path, make_tokenizer(), max_length=512, loss_on="all")
        assert all(row["labels"] == row["input_ids"] for row in dataset)

    def test_long_prompts_lose_their_beginning(self, path: Path) -> None:
        task, tokenizer = get_task(ELEMENTS), make_tokenizer()
        whole = tokenize_domain(task, path, tokenizer, max_length=512)
        short = tokenize_domain(task, path, tokenizer, max_length=12)
        for long_row, row in zip(whole, short, strict=True):
            assert row["input_ids"] == long_row["input_ids"][-12:] and row["labels"] == long_row["labels"][-12:]
        assert max(map(len, whole["input_ids"])) > 12

    def test_an_answer_that_does_not_fit(self, path: Path) -> None:
        with pytest.raises(ALoRAError, match="the answer of item 1 of .* tokens, and max_length is 2: raise"):
            tokenize_domain(get_task(ELEMENTS), path, make_tokenizer(), max_length=2)
        with pytest.raises(ALoRAError, match="domain.too_long must be one of error, drop"):
            DomainConfig(task=ELEMENTS, train="a", test="b", too_long="skip")
        with pytest.raises(ALoRAError, match="domain.unfit must be one of error, drop, not 'skip'"):
            DomainConfig(task=ELEMENTS, train="a", test="b", unfit="skip")

    def test_an_answer_that_does_not_fit_can_be_dropped(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        task, tokenizer = get_task({"name": "t", "prompt": "{q}", "completion": "{a}"}), make_tokenizer()
        docs = [task.convert({"q": "Which?", "a": answer}) for answer in ("water", "water " * 40, "salt")]
        write_lines(tmp_path / "t.jsonl", docs)
        kept = tokenize_domain(task, tmp_path / "t.jsonl", tokenizer, max_length=24, too_long="drop")
        assert "1 of 3 training items are left out" in caplog.text
        assert [tokenizer.decode([t for t in row["labels"] if t != -100]).strip() for row in kept] == ["water", "salt"]
        write_lines(tmp_path / "t.jsonl", docs[1:2])
        with pytest.raises(ALoRAError, match="no item of .* fits in max_length=24"):
            tokenize_domain(task, tmp_path / "t.jsonl", tokenizer, max_length=24, too_long="drop")

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "t.jsonl").touch()
        with pytest.raises(ALoRAError, match="has no items"):
            tokenize_domain(get_task(ELEMENTS), tmp_path / "t.jsonl", make_tokenizer(), max_length=8)

    @pytest.mark.parametrize("pad_token", ["<|pad|>", None])
    def test_collator_pads(self, path: Path, pad_token: str | None) -> None:
        tokenizer = make_tokenizer(pad_token=pad_token)
        dataset = tokenize_domain(get_task(ELEMENTS), path, tokenizer, max_length=512)
        batch = collator(tokenizer)([dataset[0], dataset[3]])
        first = len(dataset[0]["input_ids"])
        assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
        assert batch["attention_mask"].sum(1).tolist() == [first, len(dataset[3]["input_ids"])]
        assert (batch["labels"][0, first:] == -100).all() and (batch["labels"][0] != -100).any()
        assert tokenizer.pad_token == pad_token


def test_the_domains_of_the_docs_are_domains() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    written = [yaml.safe_load(block)["domain"] for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
    assert [get_task(DomainConfig(**domain).task).name for domain in written] == ["summaries", "arc", "alpaca", "chat"]
