"""A small scoring model, its tokenizer, general text and a multiple-choice task: what the tests of evaluation share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.data.sources import write_lines
from alora_trainer.data.tasks import Task, get_task
from alora_trainer.evaluation import evaluate_model
from tests.tiny_tokenizer import make_tokenizer

ELEMENTS = {"name": "elements", "prompt": "Question: {question}\nAnswer:", "choices": "choices", "answer": "answer"}
CONTEXT = 48
TEXTS = {
    "river": ["The people walked to the river.", "water\n\n  and salt, " * 12],
    "lists": ["[1, 2]", "oxygen"],
}


def evaluate_as_json(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """What `evaluate_model` finds, as results.json has it."""
    return evaluate_model(*arguments, **settings).to_json()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def _model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,  # far from uniform, so that answers differ
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def model(_model: Any) -> Any:
    return copy.deepcopy(_model)


@pytest.fixture
def general(tmp_path: Path) -> dict[str, Path]:
    for name, texts in TEXTS.items():
        write_lines(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
    return {name: tmp_path / f"{name}.jsonl" for name in TEXTS}


@pytest.fixture
def elements(tmp_path: Path) -> tuple[Task, Path]:
    task = get_task(ELEMENTS)
    records = [
        {"question": "Which gas is noble?", "choices": ["neon", "salt water", "C"], "answer": 0},
        {"question": "Symbol of carbon?", "choices": ["C", "N", "O"], "answer": 0},
        {"question": "In which group is it? " * 6, "choices": ["18", "the first group"], "answer": 1},
        {"question": "And now?", "choices": ["in the morning", "river", "oxygen", "water"], "answer": "D"},
        {"question": "And then, of all the other gases?", "choices": ["x", "yes yes"], "answer": 1},
    ]
    path = tmp_path / "elements.jsonl"
    write_lines(path, [task.convert(record) for record in records])
    return task, path
