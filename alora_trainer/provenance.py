"""From a finished recording, or an estimate of Fisher information, to an importance map that says where it comes from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from peft import get_peft_model_state_dict

import alora_trainer
from alora_trainer.adapted import AdaptedWeight
from alora_trainer.importance.fisher import FisherEstimate
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap
from alora_trainer.importance.recorder import Recorder
from alora_trainer.importance.reference import FullReference, Reference
from alora_trainer.weights import TrainedWeight, whole

_PEFT_PREFIX = "base_model.model."


def describe_recording(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The importance map of a finished training: Omega, theta* and provenance, all in host memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = recorder.weights
    omega = {name: tensor.cpu() for name, tensor in recorder.finish().items()}
    return map_at_present(model, weights, omega, _info(trainer, recorder, model, _adapter(weights)))


def describe_fisher(
    model: Any, weights: Sequence[TrainedWeight], estimate: FisherEstimate, *, name: str, seed: int
) -> ImportanceMap:
    """The importance map of an estimate of Fisher information, at the weights that `model` has.

    Args:
        model: that the estimate was made with.
        weights: those that it is about.
        estimate: the Fisher information.
        name: of the estimator.
        seed: of the data's order.
    """
    info = ImportanceInfo(
        **_base(model, _adapter(weights)),
        estimator=name,
        steps=estimate.batches,
        tokens=estimate.tokens,
        seed=seed,
        versions=_versions(),
    )
    return map_at_present(model, weights, estimate.omega, info)


def map_at_present(
    model: Any, weights: Sequence[TrainedWeight], omega: Mapping[str, torch.Tensor], info: ImportanceInfo
) -> ImportanceMap:
    """An importance map whose theta* is what the weights are now."""
    adapter = _adapter(weights)
    return ImportanceMap(
        omega,
        {weight.name: _reference(weight) for weight in weights},
        adapter_state=_adapter_state(model, adapter) if adapter is not None else {},
        adapter_config=model.peft_config[adapter] if adapter is not None else None,
        base_samples={weight.name: weight.base_sample() for weight in weights},
        info=info,
    )


def _adapter(weights: Sequence[TrainedWeight]) -> str | None:
    return weights[0].adapter if isinstance(weights[0], AdaptedWeight) else None


def _reference(weight: TrainedWeight) -> Reference | FullReference:
    matrices = [matrix.cpu().clone() for matrix in weight.matrices]
    if isinstance(weight, AdaptedWeight):
        return Reference(matrices[0], matrices[1], weight.scaling)
    return FullReference(matrices[0])


def _adapter_state(model: Any, adapter: str) -> dict[str, Any]:
    """theta* as PEFT saves it."""
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {
        key if key.startswith(_PEFT_PREFIX) else _PEFT_PREFIX + key: whole(tensor.detach()).cpu().clone()
        for key, tensor in state.items()
    }


def _info(trainer: Any, recorder: Recorder, model: Any, adapter: str | None) -> ImportanceInfo:
    args = trainer.args
    return ImportanceInfo(
        **_base(model, adapter),
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


def _base(model: Any, adapter: str | None) -> dict[str, Any]:
    """Which base model this is, as its adapter or its configuration says."""
    peft = model.peft_config[adapter] if adapter is not None else None
    config = getattr(model, "config", None)  # a model of the user's own may have none
    return {
        "base_model": getattr(peft, "base_model_name_or_path", None) or getattr(config, "_name_or_path", None) or None,
        "base_revision": getattr(peft, "revision", None) or getattr(config, "_commit_hash", None),
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "alora_trainer": alora_trainer.__version__,
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }
