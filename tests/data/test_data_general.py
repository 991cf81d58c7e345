"""Packing general text into blocks, and the held-out documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.general import GeneralConfig, pack_general_text, write_held_out
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.errors import ALoRAError
from tests.tiny_tokenizer import make_tokenizer

EOS, BEGIN = 0, 2


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subsets that can be told apart by their letters: 40 documents of a and b, 10 longer ones of x and y."""
    folder = tmp_path_factory.mktemp("general")
    write_lines(folder / "ab.jsonl", [{"text": "ab" * (i + 3)} for i in range(40)])
    write_lines(folder / "xy.jsonl", [{"text": "xyz" * (10 * i + 20)} for i in range(10)])
    write_lines(folder / "few.jsonl", [{"text": "qqq"}])
    return folder


def flat(dataset: Any) -> list[int]:
    return [token for row in dataset["input_ids"] for token in row]


def documents(tokens: list[int]) -> list[list[int]]:
    """The tokens between EOS marks; what follows the last is left out."""
    found: list[list[int]] = [[]]
    for token in tokens:
        if token == EOS:
            found.append([])
        else:
            found[-1].append(token)
    return found[:-1]


class TestPacking:
    def test_blocks_are_whole_documents_ending_with_eos(self, base: Path, tokenizer: Any) -> None:
        dataset = pack_general_text({"ab": "ab.jsonl", "xy": "xy.jsonl"}, tokenizer, block_length=16, base=base)
        assert set(dataset.column_names) == {"input_ids", "labels"}
        assert all(len(row["input_ids"]) == 16 and row["labels"] == row["input_ids"] for row in dataset)
        texts = [record["text"] for name in ("ab", "xy") for record in read_lines(base / f"{name}.jsonl")]
        total = sum(len(tokenizer.encode(text)) + 1 for text in texts)
        assert len(dataset) == total // 16
        packed = [tokenizer.decode(document) for document in documents(flat(dataset))]
        assert len(texts) - 1 <= len(packed) <= len(texts)
        assert set(packed) <= set(texts) and len(set(packed)) == len(packed)

    def test_seed_decides_alone(self, base: Path, tokenizer: Any) -> None:
        def pack(seed: int) -> list[int]:
            return flat(pack_general_text({"ab": "ab.jsonl"}, tokenizer, block_length=8, seed=seed, base=base))

        assert pack(1) == pack(1) != pack(2)

    def test_limit_is_met_in_equal_shares(self, base: Path, tokenizer: Any) -> None:
        sources = {"ab": "ab.jsonl", "xy": "xy.jsonl"}
        dataset = pack_general_text(sources, tokenizer, block_length=10, max_tokens=400, base=base)
        assert len(dataset) == 40
        tokens = [token for token in flat(dataset) if token != EOS]
        of_xyz = sum(set(tokenizer.decode([token])) <= set("xyz") for token in tokens)
        assert of_xyz == pytest.approx(200, abs=3)

    def test_a_small_subset_gives_all_and_others_more(self, base: Path, tokenizer: Any) -> None:
        sources = {"few": "few.jsonl", "ab": "ab.jsonl", "xy": "xy.jsonl"}
        dataset = pack_general_text(sources, tokenizer, block_length=10, max_tokens=300, base=base)
        assert len(dataset) == 30
        assert tokenizer.decode(flat(dataset)).count("qqq") == 1

    def test_limit_beyond_the_text_takes_all(self, base: Path, tokenizer: Any) -> None:
        def pack(limit: int | None) -> list[int]:
            sources = {"ab": "ab.jsonl", "xy": "xy.jsonl"}
            return flat(pack_general_text(sources, tokenizer, block_length=8, max_tokens=limit, base=base))

        assert pack(10**6) == pack(None)

    def test_subsets_are_used_up_at_the_same_rate(self, base: Path, tokenizer: Any) -> None:
        sources = {"ab": "ab.jsonl", "xy": "xy.jsonl"}
        tokens = flat(pack_general_text(sources, tokenizer, block_length=8, base=base))
        half = tokenizer.decode(tokens[: len(tokens) // 2])
        whole = tokenizer.decode(tokens)
        for letter in "ax":
            assert half.count(letter) / whole.count(letter) == pytest.approx(0.5, abs=0.15)

    def test_the_tokenizers_own_beginning_is_kept(self, base: Path) -> None:
        tokenizer = make_tokenizer(begin=True)
        tokens = flat(pack_general_text({"ab": "ab.jsonl"}, tokenizer, block_length=8, base=base))
        assert tokens[0] == BEGIN
        assert all(document[0] == BEGIN and BEGIN not in document[1:] for document in documents(tokens))

    def test_too_little_text(self, base: Path, tokenizer: Any) -> None:
        with pytest.raises(ALoRAError, match="less than one block of 64"):
            pack_general_text({"few": "few.jsonl"}, tokenizer, block_length=64, base=base)


class TestHeldOut:
    def test_all_documents_in_their_order(self, base: Path, tmp_path: Path) -> None:
        paths = write_held_out({"ab": "ab.jsonl", "xy": "xy.jsonl"}, tmp_path / "out", base=base)
        assert list(paths) == ["ab", "xy"] and paths["ab"] == tmp_path / "out" / "ab.jsonl"
        assert read_lines(paths["xy"]) == read_lines(base / "xy.jsonl")

    def test_limit_takes_a_hashed_sample_and_cuts_the_last(self, base: Path, tmp_path: Path) -> None:
        source = {"ab": "ab.jsonl"}
        taken = [row["text"] for row in read_lines(write_held_out(source, tmp_path, max_bytes=300, base=base)["ab"])]
        texts = [row["text"] for row in read_lines(base / "ab.jsonl")]
        assert sum(map(len, taken)) == 300
        assert all(text in texts for text in taken[:-1]) and any(t.startswith(taken[-1]) for t in texts)
        assert taken != texts[: len(taken)]
        again = read_lines(write_held_out(source, tmp_path / "b", max_bytes=300, base=base)["ab"])
        assert [row["text"] for row in again] == taken

    @pytest.mark.parametrize(
        ("text", "limit", "expected"),
        [
            ("one two three\n\nfour five six", 24, "one two three"),
            ("one two three four five", 16, "one two three"),
            ("äöüäöü", 5, "äö"),
        ],
    )
    def test_cut(self, tmp_path: Path, text: str, limit: int, expected: str) -> None:
        write_lines(tmp_path / "a.jsonl", [{"text": text}])
        path = write_held_out({"a": "a.jsonl"}, tmp_path / "out", max_bytes=limit, base=tmp_path)["a"]
        assert read_lines(path) == [{"text": expected}]


class TestConfig:
    def test_sources_become_mappings(self) -> None:
        config = GeneralConfig(train="a/books/train.txt", test=["b.txt", "c.txt"])
        assert config.train == {"books": "a/books/train.txt"} and list(config.test) == ["b", "c"]

    @pytest.mark.parametrize(
        "settings",
        [
            {"train": []},
            {"block_length": 1},
            {"block_length": "8"},
            {"train_tokens": 100},
            {"test_bytes": 0},
            {"test_bytes": True},
        ],
    )
    def test_wrong(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ALoRAError):
            GeneralConfig(**({"train": "a.txt", "test": "b.txt"} | settings))
