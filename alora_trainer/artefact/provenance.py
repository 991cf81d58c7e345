"""From a finished recording, or what was measured without one, to an importance map that says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics.versions import software_versions
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import base_revision, commit_of
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.model_weights import adapter_of, present_theta
from alora_trainer.weights.theta import BaseTheta
from alora_trainer.weights.trained_weight import TrainedWeight


def describe_recording(
    trainer: Any, recorder: Recorder, *, basis: str | None = None, so_far: bool = False
) -> ImportanceMap:
    """The importance map of a training: Omega, theta* and provenance, all in host memory.

    All processes must call it together.

    Args:
        basis: in words, the directions that it was recorded along; None for the weights' own rows and columns.
        so_far: of the steps until now, and the recording goes on untouched; else it ends here.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = recorder.weights
    omega = recorder.so_far() if so_far else recorder.finish()
    return map_at_present(model, weights, omega, _info(trainer, recorder, model, adapter_of(weights), basis))


def describe_measured(
    model: Any,
    weights: Sequence[TrainedWeight],
    omega: Mapping[str, torch.Tensor | Importance],
    *,
    name: str,
    **facts: Any,
) -> ImportanceMap:
    """The importance map of what was measured at the weights that `model` has, without a training.

    Importance in a basis is measured at the base weights, and no adapter belongs to its map.

    Args:
        model: that it was measured with.
        weights: those that it is about.
        omega: their importance by name.
        name: of the estimator (see `importance.recording.measured`).
        facts: further ones of `ImportanceInfo`, such as steps (batches), tokens and seed.

    Raises:
        ALoRAError: as `map_at_base`.
    """
    info = ImportanceInfo(
        **base_facts(model, adapter_of(weights)), estimator=name, versions=software_versions(), **facts
    )
    if omega and all(isinstance(each, InBasis) for each in omega.values()):
        return map_at_base(weights, omega, info)
    return map_at_present(model, weights, omega, info)


def map_at_base(
    weights: Sequence[TrainedWeight], omega: Mapping[str, torch.Tensor | Importance], info: ImportanceInfo
) -> ImportanceMap:
    """An importance map whose theta* is the base weights: no adapter belongs to it.

    Args:
        weights: those that the map is about, with an adapter that was there to find them by and is zero.
        omega: their importance by name, measured with that adapter.
        info: where it comes from.

    Raises:
        ALoRAError: the adapter is not zero, so that importance was measured somewhere else.
    """
    moved = next(
        (w.name for w in weights if isinstance(w, AdaptedWeight) and bool(w.a.any()) and bool(w.b.any())), None
    )
    if moved is not None:
        raise ALoRAError(
            f"importance was not measured at the base weights: the adapter of {moved} is not zero. Measure it with a fresh "
            "adapter, of the usual initialization"
        )
    samples = {weight.name: weight.base_sample() for weight in weights}
    theta = BaseTheta({weight.name: weight.shape for weight in weights})
    return ImportanceMap(omega, theta, base_samples=samples, info=info)


def map_at_present(
    model: Any,
    weights: Sequence[TrainedWeight],
    omega: Mapping[str, torch.Tensor | Importance],
    info: ImportanceInfo,
) -> ImportanceMap:
    """An importance map whose theta* is what the weights are now. All processes must call it together.

    Args:
        model: with `weights` in it, as `present_theta` takes it.
        weights: those that the map is about.
        omega: their importance by name.
        info: where it comes from.
    """
    samples = {weight.name: weight.base_sample() for weight in weights}
    return ImportanceMap(omega, present_theta(model, weights), base_samples=samples, info=info)


def _info(trainer: Any, recorder: Recorder, model: Any, adapter: str | None, basis: str | None) -> ImportanceInfo:
    args = trainer.args
    return ImportanceInfo(
        **base_facts(model, adapter),
        estimator=recorder.estimator,
        xi=recorder.damping.value,
        xi_share=recorder.damping.share,
        basis=basis,
        steps=recorder.steps,
        tokens=recorder.tokens,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        learning_rate=args.learning_rate,
        seed=args.seed,
        data={"fingerprint": fingerprint}
        if (fingerprint := getattr(trainer.train_dataset, "_fingerprint", None))
        else {},
        versions=software_versions(),
    )


def base_facts(model: Any, adapter: str | None) -> dict[str, Any]:
    """`base_model` and `base_revision`, as the adapter or the model's own configuration says.

    The revision is a commit or, if only that is known, the branch or tag that PEFT was told.
    """
    peft = model.peft_config[adapter] if adapter is not None else None
    config = getattr(model, "config", None)  # a model of the user's own may have none
    name = getattr(peft, "base_model_name_or_path", None) or getattr(config, "_name_or_path", None) or None
    told = getattr(peft, "revision", None)
    return {
        "base_model": name,
        "base_revision": base_revision(model) if told is None else commit_of(name, told) or told,
    }
