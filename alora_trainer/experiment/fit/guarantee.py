"""The last step of a fit: the trained adapter scaled until its promise can be made, and saved with what shows it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from alora_trainer.artefact.cards.adapter_card import write_adapter_card
from alora_trainer.artefact.cards.tuning import PROMISES, TUNING_FILE, read_tuning, with_prompt
from alora_trainer.artefact.files import CARD_FILE
from alora_trainer.basics.files import write_text
from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.data.encoding import encode, encode_pairs
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.fit.files import UNSEEN, passages_of
from alora_trainer.experiment.fit.validation import VALIDATION, validation_probe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, place, release_memory, with_saved_adapter
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.trainer.retention.scale_to_promise import Promise, scale_to_promise

_ANSWERS, _ANSWER_TOKENS = 5, 40
_WORST, _SHOWN = 10, 300


def keep_promise(
    recipe: Recipe,
    trained: Path,
    data: Path,
    folder: Path,
    tokenizer: Any,
    *,
    budget: float,
    merged: bool,
    prompt_format: str | None = None,
) -> dict[str, Any]:
    """Scale the adapter in `trained`, and write it into ``folder/adapter``, a plain adapter of PEFT's.

    Args:
        recipe: of the training.
        trained: the adapter as it was trained.
        data: the folder that `write_files` wrote.
        folder: of the result.
        tokenizer: the base model's.
        budget: the largest rise.
        merged: write ``folder/merged`` too, the base model with the adapter in its weights.
        prompt_format: how the prompts in `data` were made, for the card.

    Returns:
        promise: `Promise.to_json`, and its ``sentence``; unseen: the rise by kind of text that the promise is not about;
        worst: the passages whose loss rose most; answers: what the base model and the tuned one say to test items.
    """
    model: Any = with_saved_adapter(load_base(recipe), trained, trainable=True)
    place(model, recipe.training_arguments("tune", folder).device)
    accelerator, size = Accelerator(), int(recipe.curvature.batch_size)
    texts = {part: passages_of(data, part) for part in ("choose", "promise", UNSEEN)}
    rows = {
        part: encoded_passages(kinds, tokenizer, length=recipe.general.block_length, seed=recipe.seed)
        for part, kinds in texts.items()
    }
    promise = scale_to_promise(
        model,
        accelerator,
        choose=Probe([row for _, row in rows["choose"]], size),
        promise=Probe([row for _, row in rows["promise"]], size),
        budget=budget,
        kinds=[kind for kind, _ in rows["promise"]],
        validation=validation_probe(recipe, data / VALIDATION, tokenizer),
    )
    unseen = _unseen(model, accelerator, rows[UNSEEN], size)
    task = get_task(recipe.domain.task, tokenizer)
    items = [task.convert(record) for record in read_lines(data / "test.jsonl")[:_ANSWERS]]
    answers = _answers(model, tokenizer, [(task.prompt(item), task.completion(item)) for item in items])
    _save(model, trained, folder / "adapter", promise, prompt_format)
    if merged:
        model.merge_and_unload().save_pretrained(str(folder / "merged"))
        tokenizer.save_pretrained(str(folder / "merged"))
    del model
    release_memory()
    return {
        "promise": promise.to_json() | {"sentence": promise.sentence()},
        "unseen": unseen,
        "worst": _worst(promise, rows["promise"], tokenizer),
        "answers": answers,
    }


def encoded_passages(
    texts: Mapping[str, Sequence[str]], tokenizer: Any, *, length: int, seed: int
) -> list[tuple[str, dict[str, list[int]]]]:
    """One sequence a document, with its kind: at most `length` tokens from a random place, so that each is an observation."""
    found = []
    for kind, documents in texts.items():
        chance = random.Random(f"{seed}:{kind}")
        for ids in encode(tokenizer, list(documents)):
            start = chance.randrange(max(len(ids) - length, 0) + 1)
            if len(own := ids[start : start + length]) > 1:
                found.append((kind, {"input_ids": own}))
    return found


def _unseen(model: Any, accelerator: Any, rows: Sequence[tuple[str, Any]], size: int) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in dict.fromkeys(kind for kind, _ in rows):
        probe = Probe([row for own, row in rows if own == kind], size)
        with model.disable_adapter():
            before = probe.evaluate(model, accelerator)
        bound = probe.bound(before, probe.evaluate(model, accelerator))
        found[kind] = {"rise": bound.rise, "upper": bound.upper, "sequences": bound.sequences, "tokens": probe.tokens}
    return found


def _worst(promise: Promise, rows: Sequence[tuple[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    lengths = [len(row["input_ids"]) - 1 for _, row in rows]
    rises = [(now - then) / count for then, now, count in zip(promise.before, promise.after, lengths, strict=True)]
    places = sorted(range(len(rows)), key=lambda place: -rises[place])[:_WORST]
    return [
        {
            "kind": rows[place][0],
            "rise": rises[place],
            "text": tokenizer.decode(rows[place][1]["input_ids"], skip_special_tokens=True)[:_SHOWN],
        }
        for place in places
    ]


def _answers(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """What is asked, what is right, and the likeliest answer of the base model and of the tuned one."""
    found, room = [], max(tokenizer.model_max_length - _ANSWER_TOKENS, 1)
    for (prompt, right), encoded in zip(pairs, encode_pairs(tokenizer, pairs), strict=True):
        with model.disable_adapter():
            before = _say(model, tokenizer, encoded.context[-room:])
        after = _say(model, tokenizer, encoded.context[-room:])
        found.append({"prompt": prompt, "right": right.strip(), "before": before, "after": after})
    return found


def _say(model: Any, tokenizer: Any, context: list[int]) -> str:
    ids = torch.tensor([context], device=model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with evaluation_mode(model), torch.no_grad():
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_ANSWER_TOKENS,
            pad_token_id=pad,
        )
    return str(tokenizer.decode(said[0, len(context) :], skip_special_tokens=True)).strip()


def _save(model: Any, trained: Path, folder: Path, promise: Promise, prompt_format: str | None) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(str(folder))
    tuning = read_tuning(trained)
    if prompt_format is not None:  # the recipe has prompts as they are in the files that a fit wrote
        tuning = replace(tuning, data=with_prompt(tuning.data, prompt_format))
    said = (
        f"{promise.sentence()}. Measured as the {promise.to_json()['measure']}. The adapter is what was trained times "
        f"{promise.scale:.4g}."
    )
    tuning = replace(tuning, training={**tuning.training, PROMISES: said})
    write_text(folder / TUNING_FILE, tuning.to_json())
    write_adapter_card(tuning, folder / CARD_FILE)
