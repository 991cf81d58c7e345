"""A whole recipe in miniature: a model of a few thousand parameters, a page of text, two dozen sums to learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

# What texts are made of, and the tokenizer is trained on.
WORDS = [
    "the",
    "sum",
    "of",
    "one",
    "and",
    "two",
    "is",
    "three",
    "not",
    "four",
    "in",
    "all",
    "books",
    "we",
    "have",
    "read",
]
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "methods": ["base", "lora", "lora_ab", "alora"],
    "model": {"path": "model"},
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "general": {"train": "words_train.jsonl", "test": {"words": "words_test.jsonl"}, "block_length": 16},
    "domain": {
        "task": {"name": "sums", "prompt": "Sum {question} is", "choices": "choices", "answer": "answer"},
        "train": "sums_train.jsonl",
        "test": "sums_test.jsonl",
        "max_length": 32,
    },
    "record": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.01},
    "tune": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 0.01},
    "alora": {"lam": 0.5},
    "evaluation": {"batch_size": 4, "bootstrap_iters": 10},
}
for _section in ("record", "tune"):
    SETTINGS[_section] |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


def make_collecting_cheap() -> None:
    """Every stage ends with a garbage collection, which takes a second where lm-eval and all that it brings is imported:
    let it look at what comes after alone."""
    import gc

    import lm_eval.models.huggingface  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    gc.collect()
    gc.freeze()


def write_all(folder: Path) -> Path:
    """Write model, data and recipe into `folder`; the recipe's path."""
    texts = _texts()
    _write_model(folder / "model", texts)
    half = len(texts) // 2
    for name, part in (("train", texts[:half]), ("test", texts[half:])):
        _write_lines(folder / f"words_{name}.jsonl", [{"text": text} for text in part])
    sums = [
        {"question": f"{a} and {b}", "choices": [str(a + b), str(a + b + 1)], "answer": 0}
        for a in range(6)
        for b in range(4)
    ]
    _write_lines(folder / "sums_train.jsonl", sums[:16])
    _write_lines(folder / "sums_test.jsonl", sums[16:])
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return recipe


def _texts() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=30)) for _ in range(24)]


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _write_model(folder: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", model_max_length=64)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
