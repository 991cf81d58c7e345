"""A LoRA adapter whose A is not trained: B alone is (LoRA-FA, Zhang et al. 2023, arXiv 2308.03303)."""

from __future__ import annotations

from collections.abc import Sequence

from alora_trainer.weights.adapted import AdaptedWeight


def freeze_a(weights: Sequence[AdaptedWeight]) -> bool:
    """Let B alone be trained from now on.

    PEFT makes every factor of an adapter trainable when it is loaded, switched to, or on again after it was off (as it is where
    a trainer asks the base model), but for those that a layer names as frozen.

    Returns:
        Whether it stays so in all these cases, as it does from PEFT 0.21 on; before, A is frozen until then.
    """
    stays = True
    for weight in weights:
        frozen = getattr(weight.layer, "frozen_peft_weight_names", None)
        if frozen is None:
            stays = False
        else:
            weight.layer.frozen_peft_weight_names = dict(frozen) | {weight.adapter: ("lora_A",)}
        weight.parameter_a.requires_grad_(False)
    return stays
