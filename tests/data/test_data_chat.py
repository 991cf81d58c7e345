"""Conversations as the chat template writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.chat import render_chat
from alora_trainer.data.domain import DomainConfig, prepare_domain, tokenize_domain
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from tests.tiny_tokenizer import make_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "What is salt?"},
    {"role": "assistant", "content": "A substance."},
    {"role": "user", "content": "And gold?"},
    {"role": "assistant", "content": "An element."},
]


def with_template(begin: bool = True, template: str | None = TEMPLATE) -> Any:
    tokenizer = make_tokenizer(begin=begin)
    tokenizer.chat_template = template
    return tokenizer


def test_the_last_answer_is_the_completion() -> None:
    prompt, answer = render_chat(TALK, with_template())
    assert prompt == "<user>What is salt?<|end|><assistant>A substance.<|end|><user>And gold?<|end|><assistant>"
    assert answer == "An element.<|end|>"
    # A tokenizer that puts no beginning there itself keeps the template's.
    assert render_chat(TALK, with_template(begin=False))[0].startswith("<|end|><user>")


def test_training_sees_what_the_template_writes_and_learns_the_answer(tmp_path: Path) -> None:
    tokenizer = with_template()
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK[: 2 * n], "id": n}) + "\n" for n in (1, 2)))
    spec = {"name": "chat", "messages": "messages"}
    domain = DomainConfig(task=spec, source=str(path), holdout={"by": "id", "items": 1})
    files = prepare_domain(domain, base=tmp_path, folder=tmp_path / "out", tokenizer=tokenizer)
    train = [json.loads(line) for line in files.train.read_text().splitlines()]
    assert len(train) == 1 and set(train[0]) == {"prompt", "completion", "id"}
    (row,) = tokenize_domain(get_task(spec), files.train, tokenizer, max_length=512)
    whole = tokenizer.apply_chat_template(TALK[: 2 * int(train[0]["id"])], tokenize=False)
    assert row["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == train[0]["completion"] and learned[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (TALK[:3], "its last message is by 'user', not by the assistant"),
        (TALK[:1], "no list of at least two turns"),
        ([{"role": "x", "content": ""}, TALK[1]], "does not fit the chat template: no x here"),
        ("hello", "no list of at least two turns"),
        ([TALK[0], {"role": "assistant"}], "its message 2 has no text: its content is null"),
    ],
)
def test_what_does_not_fit_is_said(messages: Any, message: str) -> None:
    with pytest.raises(ALoRAError, match=message):
        refusal = "{% if messages[0]['role'] == 'x' %}{{ raise_exception('no x here') }}{% endif %}"
        render_chat(messages, with_template(template=refusal + TEMPLATE))


def test_without_a_template() -> None:
    with pytest.raises(ALoRAError, match="needs a tokenizer with a chat template"):
        render_chat(TALK, with_template(template=None))
    with pytest.raises(ALoRAError, match="needs a tokenizer with a chat template"):
        get_task({"name": "chat", "messages": "messages"}).convert({"messages": TALK})
    with pytest.raises(ALoRAError, match="the task has an unknown key 'prompt'"):
        get_task({"name": "chat", "messages": "messages", "prompt": "x"})
