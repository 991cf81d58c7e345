"""What a map or an adapter says of the run that made it: the texts, the domain, and what it cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alora_trainer.artefact.cards.tuning import with_prompt
from alora_trainer.basics.disclosure import FromEnvironment, disclosed
from alora_trainer.basics.hub_ids import HUB_PREFIX
from alora_trainer.data.chat import is_chat
from alora_trainer.data.general import SELF
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.importance.base_model import commit_of


def recording_facts(recipe: Recipe, cost: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a recipe and its run add to a recorded map's `info`: the texts, and what the recording cost.

    Args:
        cost: seconds and peak_bytes.
        device: that it was recorded on.
    """
    general = recipe.general
    sampled = "text sampled from the base model itself"
    sources = [sampled] if general.train == SELF else [_public_source(s) for s in general.train.values()]
    return {
        "data": {"sources": sources, "block_length": general.block_length},
        "cost": cost_facts(cost, device),
    }


def cost_facts(cost: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a recording cost (`seconds` and `peak_bytes` of `cost`), and on which device, for a map's `info`."""
    return {key: cost[key] for key in ("seconds", "peak_bytes")} | {"device": _device_name(device)}


def domain_facts(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's domain is, for a card."""
    task = recipe.domain.task
    name = task if isinstance(task, str) else str(task.get("name"))
    return {"task": name, "sources": [_public_source(recipe.domain.read("train"))]}


def tuned_on(recipe: Recipe) -> dict[str, Any]:
    """The same for an adapter, with how the prompts are made."""
    task, data = recipe.domain.task, domain_facts(recipe)
    if is_chat(task):
        return data | {"chat_template": True}
    return with_prompt(data, disclosed(task["prompt"]) if isinstance(task, Mapping) else get_task(task).prompt_format)


def _public_source(source: Any) -> Any:
    """A source of text as others may know it: a Hub data set in full, of a file its name alone."""
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        source = {"hub": _same_source(source, source.removeprefix(HUB_PREFIX))}
    if isinstance(source, Mapping):
        if "hub" in source:
            revision = source.get("revision")
            source = {**source, "revision": commit_of(source["hub"], revision or "main", "dataset") or revision}
        public = {key: disclosed(source[key]) for key in source if key in ("hub", "name", "split", "revision")}
        return public | ({"path": _file_name(source["path"])} if "path" in source else {})
    return {"path": _file_name(source)}


def _same_source(before: str, text: str) -> str:
    """A part of a text, from the environment if the whole is."""
    if not isinstance(before, FromEnvironment):
        return text
    return before.with_value(text, before.written.removeprefix(HUB_PREFIX))


def _file_name(path: Any) -> str:
    return Path(disclosed(path) if isinstance(path, str) else str(path)).name


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"one {platform.machine()} {device.type}"
