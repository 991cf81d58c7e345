"""From a finished recording, or another estimate, to an importance map that says where it comes from."""

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
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap
from alora_trainer.importance.recorder import Recorder
from alora_trainer.importance.reference import FullReference, Reference
from alora_trainer.weights import TrainedWeight, whole

_PEFT_PREFIX = "base_model.model."


def describe_recording(trainer: Any, recorder: Recorder) -> ImportanceMap:
    """The importance map of a finished training: Omega, theta* and provenance, all in host memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    omega = {name: tensor.cpu() for name, tensor in recorder.finish().items()}
    args = trainer.args
    info = ImportanceInfo(
        **_base(model, _adapter(recorder.weights)),
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
    return map_at_present(model, recorder.weights, omega, info)


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
    """An importance map whose theta* is the model as it is now."""
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
    """The adapter's name, or None where the weights are parameters themselves."""
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


def _base(model: Any, adapter: str | None) -> dict[str, Any]:
    """The base model's name and revision."""
    peft = model.peft_config[adapter] if adapter is not None else None
    name = getattr(peft, "base_model_name_or_path", None) or getattr(model.config, "_name_or_path", None)
    revision = getattr(peft, "revision", None) or getattr(model.config, "_commit_hash", None)
    return {"base_model": name or None, "base_revision": revision}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "alora_trainer": alora_trainer.__version__,
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }
