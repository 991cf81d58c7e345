"""Fetch the data of recipes/boards/peft.yaml from the Hub, once, as PEFT's method comparison takes it.

    python recipes/boards/peft/prepare.py [--output_dir recipes/boards/peft/data]

MetaMathQA without its items of more than 1,300 characters, the first 20,000 (as many as PEFT's 5,000 steps of 4 read); GSM8K's
test items, and for validation 500 of its training items, PEFT's own 50 among them; of FineWiki the first 100 documents for
the test, as PEFT has them, the next 100 for validation and 3,000 more to record on or to replay.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

CHARACTERS, TRAIN_ITEMS, VALIDATION_ITEMS = 1300, 20_000, 500
TEST_DOCUMENTS, VALIDATION_DOCUMENTS, TRAIN_DOCUMENTS = 100, 100, 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent / "data")
    folder = parser.parse_args().output_dir
    from datasets import load_dataset

    metamath = load_dataset("meta-math/MetaMathQA", split="train")
    short = ({key: row[key] for key in ("query", "response")} for row in metamath if is_short(row))
    write(folder / "metamathqa-train.jsonl", itertools.islice(short, TRAIN_ITEMS))
    gsm8k = load_dataset("openai/gsm8k", "main")
    write(folder / "gsm8k-test.jsonl", map(renamed, gsm8k["test"]))
    train = gsm8k["train"]
    write(folder / "gsm8k-validation.jsonl", (renamed(train[place]) for place in validation_places(len(train))))
    wiki = iter(load_dataset("HuggingFaceFW/finewiki", split="train", streaming=True))
    for name, count in (("test", TEST_DOCUMENTS), ("validation", VALIDATION_DOCUMENTS), ("train", TRAIN_DOCUMENTS)):
        write(folder / f"finewiki-{name}.jsonl", ({"text": row["text"]} for row in itertools.islice(wiki, count)))


def is_short(row: dict[str, Any]) -> bool:
    """Whether PEFT's comparison keeps an item of MetaMathQA."""
    return len(f"{row['query']} {row['response']}") <= CHARACTERS


def renamed(row: dict[str, Any]) -> dict[str, str]:
    """An item of GSM8K by MetaMathQA's names."""
    return {"query": row["question"], "response": row["answer"]}


def validation_places(items: int) -> list[int]:
    """Which training items of GSM8K are for validation; the first 50 are PEFT's."""
    generator = np.random.RandomState(0)
    places = np.arange(items)
    generator.shuffle(places)
    return [int(place) for place in places[:VALIDATION_ITEMS]]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
