"""From a finished recording to an importance map that says where it comes from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import get_peft_model_state_dict

import alora_trainer
from alora_trainer.importance.base_model import base_revision, commit_of
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap, Reference
from alora_trainer.importance.recorder import Recorder

if TYPE_CHECKING:
    import torch

    from alora_trainer.recipe import Recipe

_PEFT_PREFIX = "base_model.model."


def describe_recording(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The importance map of a finished training: Omega, theta* and provenance, all in host memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = recorder.weights
    adapter = weights[0].adapter
    omega = {name: tensor.cpu() for name, tensor in recorder.finish().items()}
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    adapter_state = {
        key if key.startswith(_PEFT_PREFIX) else _PEFT_PREFIX + key: tensor.detach().cpu().clone()
        for key, tensor in state.items()
    }
    return ImportanceMap(
        omega,
        {w.name: Reference(w.a.cpu().clone(), w.b.cpu().clone(), w.scaling) for w in weights},
        adapter_state=adapter_state,
        adapter_config=model.peft_config[adapter],
        base_samples={weight.name: weight.base_sample() for weight in weights},
        info=_info(trainer, recorder, model, adapter),
    )


def _info(trainer: Any, recorder: Recorder, model: Any, adapter: str) -> ImportanceInfo:
    config = model.peft_config[adapter]
    args = trainer.args
    return ImportanceInfo(
        base_model=config.base_model_name_or_path or getattr(model.config, "_name_or_path", None) or None,
        base_revision=_base_revision(model, config),
        estimator=recorder.estimator,
        xi=recorder.xi,
        steps=recorder.steps,
        tokens=recorder.tokens,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        learning_rate=args.learning_rate,
        seed=args.seed,
        data={"fingerprint": fingerprint}
        if (fingerprint := getattr(trainer.train_dataset, "_fingerprint", None))
        else {},
        versions={
            "python": platform.python_version(),
            "alora_trainer": alora_trainer.__version__,
            **{package: version(package) for package in ("torch", "transformers", "peft")},
        },
    )


def _base_revision(model: Any, config: Any) -> str | None:
    """The base model's commit or, if only that is known, the branch or tag that PEFT was told."""
    if config.revision is None:
        return base_revision(model)
    return commit_of(config.base_model_name_or_path, config.revision) or config.revision


def recording_facts(recipe: Recipe, cost: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a recipe and its run add to a recorded map's `info`: the texts, and what the recording cost.

    Args:
        cost: seconds and peak_bytes.
        device: that it was recorded on.
    """
    from alora_trainer.data.general import SELF

    general = recipe.general
    sampled = "text sampled from the base model itself"
    sources = [sampled] if general.train == SELF else [_public_source(s) for s in general.train.values()]
    return {
        "data": {"sources": sources, "block_length": general.block_length},
        "cost": {key: cost[key] for key in ("seconds", "peak_bytes")} | {"device": _device_name(device)},
    }


def domain_facts(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's domain is, for the card of an adapter that was tuned on it."""
    task = recipe.domain.task
    name = task if isinstance(task, str) else str(task.get("name"))
    train = recipe.domain.train
    sources = train if isinstance(train, list) else [train] if train is not None else _built_in(name)
    return {"task": name, "sources": [_public_source(source) for source in sources]}


def _built_in(task: str) -> list[Any]:
    from alora_trainer.data.tasks import BUILT_IN

    return [BUILT_IN[task].hub["train"]]


def _public_source(source: Any) -> Any:
    """A source of text as others may know it: a Hub data set in full, of a file its name alone."""
    from alora_trainer.data.sources import HUB_PREFIX

    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        source = {"hub": source.removeprefix(HUB_PREFIX)}
    if isinstance(source, Mapping):
        if "hub" in source:
            revision = source.get("revision")
            source = {**source, "revision": commit_of(source["hub"], revision or "main", "dataset") or revision}
        public = {key: value for key, value in source.items() if key in ("hub", "name", "split", "revision")}
        return public | ({"path": Path(str(source["path"])).name} if "path" in source else {})
    return {"path": Path(str(source)).name}


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"one {platform.machine()} {device.type}"
