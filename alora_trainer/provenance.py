"""From a finished recording to an importance map that says where it comes from."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from peft import get_peft_model_state_dict

import alora_trainer
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap, Reference
from alora_trainer.importance.recorder import Recorder

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
    base = getattr(model, "config", None)  # a model of the user's own may have none
    return ImportanceInfo(
        base_model=config.base_model_name_or_path or getattr(base, "_name_or_path", None) or None,
        base_revision=config.revision or getattr(base, "_commit_hash", None),
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
