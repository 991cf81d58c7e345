"""The files of a fit: items of training and test, and general text in its parts, as an ordinary recipe reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import write_json
from alora_trainer.data.general import SELF
from alora_trainer.data.self_text import SelfTextConfig, sample_text
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.evaluation.kept_prompts import write_kept
from alora_trainer.experiment.fit.findings import Findings
from alora_trainer.experiment.fit.general_parts import PARTS, in_parts, sample_of
from alora_trainer.experiment.fit.look import general_texts
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.fit.validation import VALIDATION
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, place, release_memory

FOUND = "found.json"
UNSEEN = "unseen"
KEPT = "keep"  # with the tasks of files of prompts


def write_files(request: FitRequest, found: Findings, recipe: Recipe, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Write all of it into `folder`; what is sampled from the model goes on where it was stopped.

    Args:
        request: what is asked for.
        found: what the data are.
        recipe: of the fit, to load the model by, should general text be sampled.
        tokenizer: the base model's.
        folder: of the data.

    Returns:
        The counts of `Findings.facts`, and documents and bytes of every part of the general text.
    """
    parts = found.general
    if not parts:
        parts = in_parts({SELF: _sampled(request, recipe, tokenizer, folder)}, request.general_tokens)
    write_general(parts, folder)
    if request.unseen:
        apart = general_texts(request.unseen)
        tokens = int(request.general_tokens * PARTS["promise"] / len(apart))
        for kind, texts in apart.items():
            chosen = sample_of(texts, tokens)
            write_lines(folder / "general" / UNSEEN / f"{kind}.jsonl", ({"text": text} for text in chosen))
    write_items(found, folder)
    write_kept(list(request.keep), folder / KEPT, tokenizer)
    facts = found.facts() | {
        "general_parts": {
            part: {kind: {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
                   for kind, texts in kinds.items()} for part, kinds in parts.items()
        }
    }  # fmt: skip
    write_json(folder / FOUND, facts)
    return facts


def write_general(parts: Mapping[str, Mapping[str, Sequence[str]]], folder: Path) -> None:
    """Write the documents of general text by part and kind."""
    for part, kinds in parts.items():
        for kind, texts in kinds.items():
            write_lines(folder / "general" / part / f"{kind}.jsonl", ({"text": text} for text in texts))


def write_items(found: Findings, folder: Path) -> None:
    """Write the items to learn, to compare by (if there are any) and to test."""
    write_lines(folder / "train.jsonl", found.train)
    if found.validation:
        write_lines(folder / VALIDATION, found.validation)
    write_lines(folder / "test.jsonl", found.test)


def passages_of(folder: Path, part: str) -> dict[str, list[str]]:
    """The documents of a part of the general text, by kind; none where there is no such part."""
    return {
        path.stem: [row["text"] for row in read_lines(path)]
        for path in sorted((folder / "general" / part).glob("*.jsonl"))
    }


def _sampled(request: FitRequest, recipe: Recipe, tokenizer: Any, folder: Path) -> list[str]:
    base = load_base(recipe)
    place(base, recipe.training_arguments("tune", folder).device)
    length = min(recipe.general.block_length, tokenizer.model_max_length - 1)  # and one to begin with
    settings = SelfTextConfig(tokens=request.general_tokens, length=length, top_p=1.0, seed=request.seed)
    path = sample_text(base, tokenizer, settings, folder / "self_text.jsonl")
    del base
    release_memory()
    return [row["text"] for row in read_lines(path)]
