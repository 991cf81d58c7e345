"""What the code blocks of the documentation find in their folder: a tiny model, and data under the names that the pages use."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_recipe import SETTINGS, WORDS, write_all

CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_world(folder: Path) -> None:
    """Write everything into `folder`."""
    write_all(folder)
    (folder / "model").rename(folder / "base-model")
    template = folder / "base-model" / "tokenizer_config.json"
    template.write_text(json.dumps(json.loads(template.read_text()) | {"chat_template": CHAT}))
    chance = random.Random(0)
    sums = [(f"{a} and {b}", str(a + b)) for a in range(7) for b in range(8)]
    _write(folder / "items.jsonl", [{"question": question, "answer": answer} for question, answer in sums])
    for name, count in (("general", 420), ("unseen", 60)):
        _write(folder / f"{name}.jsonl", [{"text": _said(chance)} for _ in range(count)])
    _write(folder / "chats.jsonl", [{"messages": _chat(*pair)} for pair in sums])
    _write(
        folder / "preferences.jsonl",
        [{"prompt": f"{asked} is", "chosen": f" {answer}", "rejected": " not"} for asked, answer in sums],
    )
    settings = SETTINGS | {"model": {"path": "base-model"}, "methods": ["base", "lora", "alora"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _said(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=40))


def _chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
