"""What of an adapter a trainer cannot record or hold as what it is, or start from, checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.anchor import check_anchor
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.adapter_settings import not_loaded_as_trained
from alora_trainer.weights.model_weights import adapter_of
from alora_trainer.weights.trained_weight import TrainedWeight


def check_adapter(
    model: Any, weights: Sequence[TrainedWeight], config: ALoRAConfig, importance: ImportanceMap | None
) -> None:
    """Refuse an adapter whose recorded map would not be it, or whose base weights the penalty would take for the base model's.

    Args:
        model: with `weights` in it.
        weights: those that train.
        config: how they are recorded and held.
        importance: the map that holds them, if any.

    Raises:
        ALoRAError: naming the setting of `peft.LoraConfig`.
    """
    name = adapter_of(weights)
    trained = getattr(model, "peft_config", {}).get(name) if name is not None else None
    if trained is None:
        return
    reason = not_loaded_as_trained(trained) if config.record is not None else None
    if reason is not None:
        raise ALoRAError(
            f"{reason}, so that the adapter of the recorded map, on the base model, would not be the trained one: record "
            "without this setting"
        )
    if importance is not None:
        check_anchor(config.start_from, config.anchor, recorded=importance.adapter_config, trained=trained)


def check_recorded_start(weights: Sequence[TrainedWeight], importance: ImportanceMap) -> None:
    """Refuse a fresh adapter where the training is to go on with the one that the map was recorded with.

    TRL's trainers make a fresh one of `peft_config`. Trained, it would be pulled from the base model to theta* by the penalty,
    and never have been there.

    Args:
        weights: those that train, whole.
        importance: the map that holds them.

    Raises:
        ALoRAError: every B is zero, and those of the map are not.
    """
    held = [weight for weight in weights if isinstance(weight, AdaptedWeight) and weight.name in importance]
    learned = any(bool(importance.reference[weight.name].b.any()) for weight in held if not importance.at_base)
    if learned and not any(bool(weight.b.any()) for weight in held):
        raise ALoRAError(
            "the importance map goes on from the adapter that it was recorded with, and the model has a fresh one (as "
            "peft_config and get_peft_model make it): give the trainer PeftModel.from_pretrained(base, MAP, is_trainable=True) "
            "and no peft_config, or say ALoRAConfig(start='bare') to train the fresh one, held to the base model"
        )
