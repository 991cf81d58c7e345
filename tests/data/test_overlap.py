"""Overlap of recording text and test items: against a naive search."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.data.overlap import decoded_documents, find_overlap, word_runs
from tests.tiny_tokenizer import TEXT, make_tokenizer


def test_case_and_punctuation_do_not_count() -> None:
    runs = list(word_runs("The cat, the CAT!\nsat -- on  it", 3))
    assert runs == [
        ("the", "cat", "the"),
        ("cat", "the", "cat"),
        ("the", "cat", "sat"),
        ("cat", "sat", "on"),
        ("sat", "on", "it"),
    ]
    assert list(word_runs("two words", 3)) == []


def test_thirteen_words_and_not_twelve() -> None:
    words = [f"w{i}" for i in range(30)]
    document = " ".join(words)
    items = {
        "twelve": [" ".join(words[:12]) + " other"],
        "thirteen": ["What is " + "; ".join(words[5:18]).upper() + "?"],
        "over two texts": [" ".join(words[:7]), " ".join(words[7:14])],
        "short": ["w1 w2"],
    }
    found = find_overlap(["nothing here", document], items)
    assert {key: found[key] for key in ("run_words", "items", "long_enough", "overlapping", "documents")} == {
        "run_words": 13,
        "items": 4,
        "long_enough": 2,
        "overlapping": 1,
        "documents": 2,
    }
    assert found["examples"] == [{"item": "thirteen", "run": " ".join(words[5:18])}]
    assert find_overlap([], items)["documents"] == 0


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from("ab"), max_size=8), max_size=4),
    st.lists(st.lists(st.sampled_from("ab"), max_size=6), max_size=4),
)
def test_against_a_naive_search(documents: list[list[str]], items: list[list[str]]) -> None:
    def share(one: list[str], other: list[str]) -> bool:
        return any(one[i : i + 3] == other[j : j + 3] for i in range(len(one) - 2) for j in range(len(other) - 2))

    expected = sum(any(share(item, document) for document in documents) for item in items)
    texts = {number: [" ".join(item)] for number, item in enumerate(items)}
    assert find_overlap([" ".join(d) for d in documents], texts, words=3)["overlapping"] == expected


@pytest.mark.parametrize("length", [5, 16])
def test_documents_come_back_from_packed_blocks(length: int) -> None:
    tokenizer: Any = make_tokenizer()
    texts = [line for line in TEXT.splitlines() if line]
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = [stream[start : start + length] for start in range(0, len(stream), length)]
    assert list(decoded_documents(blocks, tokenizer)) == texts
    first = len(tokenizer(texts[0])["input_ids"])
    assert list(decoded_documents(blocks, tokenizer, limit=first)) == texts[:1]
    assert "".join(decoded_documents(blocks, tokenizer, limit=first - 2)) == tokenizer.decode(stream[: first - 2])
