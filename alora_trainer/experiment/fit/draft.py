"""The recipe of a fit: an ordinary one, with a comment on everything that was decided."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from alora_trainer.data.detection.examine import PLAIN_SPEC
from alora_trainer.data.general import SELF
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.kept_prompts import is_prompt_file, kept_task
from alora_trainer.experiment.fit.files import KEPT
from alora_trainer.experiment.fit.findings import Findings
from alora_trainer.experiment.fit.general_parts import PARTS
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import build_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.recipe.settings import set_override
from alora_trainer.trainer.initialization.settings import DEFAULT

BLOCK = 256  # tokens of a passage of general text, if the model takes as many
# Of the adapter's learning rate, by the number of the model's parameters: smaller models take larger steps.
_RATES = ((2e7, 2e-3), (2e8, 1e-3), (1.5e9, 5e-4))
_LARGE_RATE = 2e-4
_BATCH = 8
_PROBES = 10  # in a training; between two of them lambda follows what the map predicts
# Items that the adapter's first directions are chosen by: an eighth of those that are trained on, within these bounds.
_LEAST_ITEMS, _MOST_ITEMS = 64, 512

_COMMENTS = {
    "methods": "the base model, and LoRA held to it by a map that is measured before the training",
    "general": "text whose loss may rise by alora.budget at most; no two of its parts have a document in common",
    "general.train": "the map is measured on it",
    "general.probe": "lambda is steered by it",
    "general.test": "the promise is made on it, and no part of the training sees it",
    "domain": "what is learned; data/found.json says what was left out, and why",
    "domain.loss_on": "answer: the prompts are not learned; all: they are",
    "domain.max_length": "tokens; almost all items fit, and of a longer one the prompt loses its beginning",
    "domain.unfit": "what another tokenizer cannot use is left out",
    "domain.too_long": "an item whose answer alone is longer than max_length is left out",
    "tune.learning_rate": "by the model's size",
    "tune.per_device_train_batch_size": "with gradient_accumulation_steps, where memory is short",
    "alora.budget": "the largest rise of general cross-entropy, as a share of the base model's",
    "alora.application": "the pull beside the optimizer's step is stable for any strength that the budget asks for",
    "alora.probe_steps": "how often the budget is looked at",
    "alora.init_items": "that choose the directions which the adapter starts in, by their gradient and the map",
    "curvature.tokens": "that the map is measured on",
}


def skeleton(request: FitRequest) -> Recipe:
    """A recipe with the model alone in it that matters: to load the tokenizer, and the model to sample from.

    Raises:
        ALoRAError: there is no such model.
    """
    written = {
        "seed": request.seed,
        "methods": ["base", request.method],
        "model": _model(request),
        "general": {"train": "general.jsonl", "test": "promise.jsonl", "block_length": 2},
        "domain": {"task": dict(PLAIN_SPEC), "train": "train.jsonl", "test": "test.jsonl", "max_length": 2},
    }
    _override(written, {key: value for key, value in request.overrides.items() if key.startswith("model.")})
    recipe = build_recipe(written)
    _ = recipe.model_source
    return recipe


def draft(request: FitRequest, found: Findings, recipe: Recipe, *, context: int) -> dict[str, Any]:
    """The recipe as plain data; its paths start from the result's folder.

    Args:
        request: what is asked for.
        found: what the data are.
        recipe: from `skeleton`.
        context: the longest sequence that the model takes.

    Raises:
        ALoRAError: the model's configuration cannot be read, or an override goes to nothing.
    """
    block = min(BLOCK, context)
    steps = steps_of(request, len(found.train))
    general = found.general or {part: {SELF: []} for part in PARTS}
    length = {"max_steps": request.max_steps} if request.max_steps else {"num_train_epochs": request.epochs}
    written: dict[str, Any] = {
        "name": request.output_dir.name or "fit",
        "seed": request.seed,
        "methods": ["base", request.method],
        "model": dict(recipe.written["model"]),
        "lora": {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"},
        "general": {
            key: {kind: f"data/general/{part}/{kind}.jsonl" for kind in sorted(general[part])}
            for key, part in (("train", "record"), ("probe", "steer"), ("test", "promise"))
        }
        | {"block_length": block, "probe_tokens": max(block, min(8192, request.general_tokens // 8))},
        "domain": {
            "task": found.learned.spec if isinstance(found.learned.spec, str) else dict(found.learned.spec),
            "train": "data/train.jsonl",
            "test": "data/test.jsonl",
            "max_length": found.learned.length,
            "loss_on": found.learned.loss_on,
            "unfit": "drop",
            "too_long": "drop",
        },
        "tune": {
            **length,
            "per_device_train_batch_size": _BATCH,
            "learning_rate": _rate(recipe),
            "lr_scheduler_type": "cosine",
        },
        "alora": {
            "budget": request.max_general_rise,
            "application": "decoupled",
            "probe_steps": max(5, steps // _PROBES),
        }
        | _first_directions(request, steps),
        "curvature": {"tokens": min(100_000, request.general_tokens)},
        "evaluation": {"batch_size": 16} | _kept(request),
    }
    _override(written, request.overrides)
    return written


def _first_directions(request: FitRequest, steps: int) -> dict[str, Any]:
    """How many items choose them, of a method that does: not so many that it takes long beside the training."""
    chosen = get_method(request.method).alora.get("init_adapter", DEFAULT) != DEFAULT
    return {"init_items": max(_LEAST_ITEMS, min(_MOST_ITEMS, steps * _BATCH // 8))} if chosen else {}


def _kept(request: FitRequest) -> dict[str, Any]:
    tasks: dict[str, Any] = {"general_tasks": [kept_task(one) for one in request.keep]} if request.keep else {}
    return tasks | ({"task_folder": f"data/{KEPT}"} if any(map(is_prompt_file, request.keep)) else {})


def steps_of(request: FitRequest, items: int) -> int:
    """Optimizer steps of the training, about."""
    return request.max_steps or max(1, round(request.epochs * items / _BATCH))


def commented(written: Mapping[str, Any], head: str, decided: Collection[str] = ()) -> str:
    """The recipe as YAML with comments: of the whole, of sections and of settings.

    Args:
        written: the recipe as plain data.
        head: the comment at its beginning.
        decided: dotted names of settings that somebody else decided: nothing is said why they are so.
    """
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    path: list[str] = []
    for line in yaml.safe_dump(dict(written), sort_keys=False, allow_unicode=True, width=1000).splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.strip().partition(":")[0]
        path = [*path[:depth], name]
        place = ".".join(path)
        comment = _COMMENTS.get(place) if not line.strip().startswith("-") and place not in decided else None
        if depth == 0 and not line.startswith("-") and name in ("model", "lora", "general", "domain", "tune", "alora"):
            lines.append("")
        lines.append(f"{line} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _model(request: FitRequest) -> dict[str, Any]:
    path = Path(request.model)
    return {"path": str(path.resolve()) if path.is_dir() else request.model, "dtype": _dtype()}


def _dtype() -> str:
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def _override(written: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        set_override(written, key, value)


def _rate(recipe: Recipe) -> float:
    count = parameters(recipe)
    return next((rate for most, rate in _RATES if count <= most), _LARGE_RATE)


def parameters(recipe: Recipe) -> int:
    """How many parameters the model has, by its configuration alone.

    Raises:
        ALoRAError: it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(recipe.model_source, revision=recipe.model.revision)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ALoRAError(f"the configuration of {recipe.model.path} cannot be read: {lines[0]}") from error
    return sum(parameter.numel() for parameter in model.parameters())
