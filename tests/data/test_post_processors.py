"""A tokenizer's post-processor may put tokens before and behind a text: what is trained on and scored are the text's own."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alora_trainer.data import answers
from alora_trainer.data.answers import encode_answers
from alora_trainer.data.domain import tokenize_domain
from alora_trainer.data.encoding import encode_pairs, put_before, text_start
from alora_trainer.data.general import pack_general_text
from alora_trainer.data.self_text import SelfTextConfig, sample_text
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.streaming import stream_general_text
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.scorer import Scorer
from alora_trainer.evaluation.trainer_metrics import choice_rows
from tests.tiny_tokenizer import make_tokenizer

END, PAD, BEGIN = 0, 1, 2
# What stands around a text, and the tokens of it that stand before.
TEMPLATES = {
    "neither": (None, []),
    "begin": ("<|begin|> $A", [BEGIN]),
    "end": ("$A <|end|>", []),
    "both": ("<|begin|> $A <|end|>", [BEGIN]),
    "the same token on both sides": ("<|end|> $A <|end|>", [END]),
    "several": ("<|begin|> <|pad|> $A <|pad|> <|end|>", [BEGIN, PAD]),
}
LETTERS = {"name": "letters", "prompt": "Question: {q}\nAnswer:", "choices": "choices", "answer": "answer"}
ITEMS = [
    {"q": "Which gas is noble?", "choices": ["neon", "salt water", "C"], "answer": 0},
    {"q": "Symbol of carbon?", "choices": ["C", "N"], "answer": 0},
]
DOCUMENTS = ["The people walked to the river.", "oxygen", "water and salt, " * 9]


@pytest.fixture(params=list(TEMPLATES))
def case(request: pytest.FixtureRequest) -> tuple[Any, list[int]]:
    """A tokenizer, and the tokens that it puts before a text."""
    template, before = TEMPLATES[request.param]
    return make_tokenizer(template=template), before


@pytest.fixture(scope="module")
def bare() -> Any:
    """The same tokenizer without a post-processor: a text's own tokens."""
    return make_tokenizer()


@pytest.fixture
def items(tmp_path: Path) -> Path:
    task = get_task(LETTERS)
    write_lines(tmp_path / "letters.jsonl", [task.convert(item) for item in ITEMS])
    return tmp_path / "letters.jsonl"


def scored(tokenizer: Any, model: Any, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Context and continuation as they reach the model's scorer."""
    scorer = Scorer(model, copy.deepcopy(tokenizer), batch_size=4, max_length=None)
    seen: list[Any] = []
    scorer._loglikelihood_tokens = lambda requests, **_: seen.extend(requests)  # type: ignore[method-assign]
    scorer.loglikelihood([SimpleNamespace(args=pair) for pair in texts])
    return [(context, continuation) for _, context, continuation in seen]


def test_labels_are_the_answers_own_tokens_and_those_that_are_scored(
    case: tuple[Any, list[int]], bare: Any, items: Path, model: Any
) -> None:
    (tokenizer, before), task = case, get_task(LETTERS)
    docs = read_lines(items)
    rows = tokenize_domain(task, items, tokenizer, max_length=512)
    pairs = scored(tokenizer, model, [(task.prompt(doc), task.completion(doc)) for doc in docs])
    for row, doc, (context, continuation) in zip(rows, docs, pairs, strict=True):
        prompt = bare.encode(task.prompt(doc))
        answer = bare.encode(task.prompt(doc) + task.completion(doc))[len(prompt) :]
        assert bare.decode(answer) == task.completion(doc)
        assert row["input_ids"] == before + prompt + answer
        assert [label for label in row["labels"] if label != -100] == answer
        assert (context, continuation) == (before + prompt, answer)


def test_the_learning_curve_measures_the_same_tokens(case: tuple[Any, list[int]], bare: Any, items: Path) -> None:
    tokenizer, before = case
    task = get_task(LETTERS)
    rows, _ = choice_rows(task, items, tokenizer, max_length=512)
    expected = [(task.prompt(doc), choice) for doc in read_lines(items) for choice in doc["choices"]]
    for row, (prompt, choice) in zip(rows, expected, strict=True):
        assert row["input_ids"] == before + bare.encode(f"{prompt} {choice}")
        assert bare.decode([label for label in row["labels"] if label != -100]) == f" {choice}"


def test_every_token_of_a_document_is_predicted_once_and_no_other(
    case: tuple[Any, list[int]], bare: Any, model: Any
) -> None:
    tokenizer, before = case
    scorer = Scorer(model, copy.deepcopy(tokenizer), batch_size=4, max_length=7)
    for document in DOCUMENTS:
        own = bare.encode(document)
        windows = scorer.windows(document)
        assert [token for _, continuation in windows for token in continuation] == own == scorer.own_tokens(document)
        assert windows[0][0] == (before or [tokenizer.bos_token_id])
        assert max(len(context) + len(continuation) for context, continuation in windows) <= 8


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_documents_begin_as_texts_do_and_end_with_one_end_of_text(
    case: tuple[Any, list[int]], bare: Any, tmp_path: Path, streaming: bool
) -> None:
    tokenizer, before = case
    write_lines(tmp_path / "one.jsonl", [{"text": DOCUMENTS[2]}, {"text": DOCUMENTS[2]}])
    pack = stream_general_text if streaming else pack_general_text
    blocks = pack({"one": str(tmp_path / "one.jsonl")}, tokenizer, block_length=8)
    tokens = [token for row in blocks for token in row["input_ids"]]
    document = [*before, *bare.encode(DOCUMENTS[2]), END]
    assert len(document) < len(tokens) and tokens == (document * 2)[: len(tokens)]


def test_text_is_sampled_from_where_texts_start(case: tuple[Any, list[int]], model: Any, tmp_path: Path) -> None:
    tokenizer, before = case
    prompts: list[list[int]] = []

    def generate(prompt: torch.Tensor, **_: Any) -> torch.Tensor:
        prompts.extend(prompt.tolist())
        return torch.cat([prompt, torch.tensor([bare_ids, bare_ids])], dim=1)

    bare_ids = make_tokenizer().encode("oxygen")
    model.generate = generate
    path = sample_text(model, tokenizer, SelfTextConfig(tokens=4, batch_size=2), tmp_path / "self.jsonl")
    assert prompts == [before or [tokenizer.bos_token_id]] * 2
    assert read_lines(path) == [{"text": "oxygen"}] * 2


def test_prompts_to_generate_from_do_not_end_with_an_end_of_text(
    case: tuple[Any, list[int]], bare: Any, model: Any
) -> None:
    tokenizer, before = case
    scorer = Scorer(model, copy.deepcopy(tokenizer), batch_size=4, max_length=None)
    ids, mask = scorer.tok_batch_encode(["oxygen", "The river"])
    longest, shorter = sorted((before + bare.encode(text) for text in ("oxygen", "The river")), key=len, reverse=True)
    rows = sorted(row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True))
    assert rows == sorted([longest, shorter]) and ids.shape == (2, len(longest))
    assert mask[:, -1].all()  # padded on the left


def test_a_beginning_that_the_text_has_itself_is_not_doubled(bare: Any) -> None:
    tokenizer = make_tokenizer(template="<|begin|> $A <|end|>")
    (pair,) = encode_pairs(tokenizer, [("<|begin|>The river", " water")])
    assert pair.context == [BEGIN, *bare.encode("The river")] and pair.continuation == bare.encode(" water")


def test_an_empty_prompt_is_the_start_of_a_text(case: tuple[Any, list[int]], bare: Any) -> None:
    tokenizer, before = case
    pairs = encode_pairs(tokenizer, [("", "water"), (" \n", "water")])
    assert [pair.context for pair in pairs] == [text_start(tokenizer)] * 2
    assert [pair.continuation for pair in pairs] == [bare.encode("water"), bare.encode(" \nwater")]


def test_a_post_processor_that_cannot_be_looked_through_is_refused() -> None:
    with pytest.raises(ALoRAError, match="which tokens of a text are its own"):
        put_before(make_tokenizer(template="$A <|begin|> $A"))


# Where the end of a prompt and the beginning of an answer are one token.


@pytest.fixture(scope="module")
def merging() -> Any:
    """Learned without parting words: "(A" is one token, as in Llama 3, and so is a colon before a line break."""
    return make_tokenizer(text="Answer: (A\nAnswer:\nB\n" * 4 + "Answer: (A) no (A (A :\nC :\nD :\nE :\n")


def with_answers(path: Path, prompt: str, choices: list[str], delimiter: str) -> Any:
    task = get_task({**LETTERS, "prompt": prompt, "target_delimiter": delimiter})
    items = [{"q": "x", "choices": ["y", "z"], "answer": 1}, {"q": "x", "choices": choices, "answer": 0}]
    write_lines(path, [task.convert(item) for item in items])
    return task


def test_an_answer_in_one_token_with_its_prompt_is_refused_with_advice(
    merging: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_AT_ONCE", 1)
    assert "(A" in merging.get_vocab()
    path = tmp_path / "t.jsonl"
    task = with_answers(path, "{q} (", ["A)", "B)"], "")
    message = r"the answer 'A\)' of item 2 of .*t.jsonl merges with the end of its prompt, '\(', .*target_delimiter"
    for choices in (False, True):
        with pytest.raises(ALoRAError, match=message):
            encode_answers(task, path, merging, choices=choices)
    with pytest.raises(ALoRAError, match=message):
        tokenize_domain(task, path, merging, max_length=64)
    task = with_answers(path, "{q} (", ["A)", "B)"], " ")  # the advice, taken
    (_, ((_, continuation, _), _)) = encode_answers(task, path, merging, choices=True)
    assert merging.decode(continuation) == " A)"


def test_white_space_in_one_token_with_the_prompt_is_context(merging: Any, tmp_path: Path) -> None:
    assert ":Ċ" in merging.get_vocab()
    path = tmp_path / "t.jsonl"
    for prompt, delimiter in (("{q} :\n", ""), ("{q} :", "\n")):
        task = with_answers(path, prompt, ["w", "v"], delimiter)
        row = tokenize_domain(task, path, merging, max_length=64)[1]
        assert merging.decode(row["input_ids"]) == "x :\nw"
        assert merging.decode([label for label in row["labels"] if label != -100]) == "w"
