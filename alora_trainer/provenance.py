"""From a finished recording to an importance map that says where it comes from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from peft import get_peft_model_state_dict

import alora_trainer
from alora_trainer.adapted import AdaptedWeight, adapted_weights
from alora_trainer.importance.fisher import FisherEstimate
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap, Reference
from alora_trainer.importance.recorder import Recorder

_PEFT_PREFIX = "base_model.model."


def describe_recording(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The importance map of a finished training: Omega, theta* and provenance, all in host memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = recorder.weights[0].adapter
    omega = {name: tensor.cpu() for name, tensor in recorder.finish().items()}
    return map_at_present(model, recorder.weights, omega, _info(trainer, recorder, model, adapter))


def describe_fisher(model: Any, estimate: FisherEstimate, *, name: str, seed: int) -> ImportanceMap:
    """The importance map of an estimate of Fisher information, at the weights that `model` has.

    Args:
        model: with the adapter that the estimate was made with.
        estimate: the Fisher information.
        name: of the estimator.
        seed: of the data's order.
    """
    weights = adapted_weights(model)
    info = ImportanceInfo(
        base_model=_base_model(model, weights[0].adapter),
        base_revision=_base_revision(model, weights[0].adapter),
        estimator=name,
        steps=estimate.batches,
        tokens=estimate.tokens,
        seed=seed,
        versions=_versions(),
    )
    return map_at_present(model, weights, estimate.omega, info)


def map_at_present(
    model: Any, weights: Sequence[AdaptedWeight], omega: Mapping[str, torch.Tensor], info: ImportanceInfo
) -> ImportanceMap:
    """An importance map whose theta* is the adapter as it is now."""
    adapter = weights[0].adapter
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
        info=info,
    )


def _info(trainer: Any, recorder: Recorder, model: Any, adapter: str) -> ImportanceInfo:
    args = trainer.args
    return ImportanceInfo(
        base_model=_base_model(model, adapter),
        base_revision=_base_revision(model, adapter),
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
        versions=_versions(),
    )


def _base_model(model: Any, adapter: str) -> str | None:
    return model.peft_config[adapter].base_model_name_or_path or getattr(model.config, "_name_or_path", None) or None


def _base_revision(model: Any, adapter: str) -> str | None:
    return model.peft_config[adapter].revision or getattr(model.config, "_commit_hash", None)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "alora_trainer": alora_trainer.__version__,
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }
