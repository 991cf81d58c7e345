"""What the penalty pulls every weight towards, said relative to the base weight that the model has.

With `W` the model's own base weight and `s B A` its adapter, the penalty is on ``s B A - anchor``:

    start       anchor: reference      anchor: base
    recorded    s* B* A* (theta*)      0
    merged      0 (theta* is in W)     -s* B* A*
    bare        0                      0
"""

from __future__ import annotations

from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.weights.adapter_settings import base_weights_changed
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import FullReference, Reference, no_movement
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import TrainedWeight


def anchor_of(
    weight: TrainedWeight,
    importance: ImportanceValues,
    *,
    start: StartFrom = StartFrom.RECORDED,
    anchor: str = "reference",
) -> Reference | FullReference:
    """The anchor of one weight as factors: a (k, n), b (m, k); k is 0 where the anchor is the model's own base weight.

    Args:
        weight: a trained weight; a full one (tuned itself) is anchored at theta* alone, and where that is the base weights,
            at what it is now.
        importance: has theta* of it, unless the weight was not recorded (its anchor is then its base weight).
        start: where the training starts.
        anchor: "reference" or "base", as in `ALoRAConfig`.
    """
    if importance.at_base and weight.parameterization is Parameterization.FULL:
        return weight.reference()
    recorded = importance.reference.get(weight.name)
    if recorded is not None:
        if start is StartFrom.RECORDED and anchor == "reference":
            return recorded
        if start is StartFrom.MERGED and anchor == "base":
            return Reference(recorded.a, recorded.b, -recorded.scaling)
    return no_movement(weight.shape)


def check_anchor(start: StartFrom, anchor: str | None, *, recorded: Any, trained: Any) -> None:
    """Refuse an anchor that means the base model's own weights, where an adapter has others beside its factors (PiSSA).

    Args:
        start, anchor: as `anchor_of` takes them; None is "reference".
        recorded: PEFT's configuration of the adapter that was recorded; None where it is not known.
        trained: likewise, of the one that is trained.

    Raises:
        ALoRAError: naming the setting.
    """
    if start is StartFrom.RECORDED and anchor in (None, "reference"):
        return  # theta* and the weights are said relative to the same ones, whatever these are
    for config, what in ((recorded, "recorded"), (trained, "new")):
        reason = None if config is None else base_weights_changed(config)
        if reason is not None:
            raise ALoRAError(
                f"start={start.value!r} with anchor={anchor!r} holds weights relative to those of the base model, and the "
                f"{what} adapter has others beside its factors ({reason}): record and train without this setting, or use "
                "start='recorded' with anchor='reference'"
            )
