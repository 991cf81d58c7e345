"""Starts that PEFT makes of the base weights alone, or of nothing but chance (docs/methods/weight_starts.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method
from alora_trainer.experiment.methods.starts import TakenOut, linear_weights


@dataclass(frozen=True)
class PartOfTheWeight(TakenOut):
    """PEFT takes the adapter's start out of the base weights.

    Attributes:
        start: PEFT's ``init_lora_weights``.
        knows_conv1d: whether PEFT minds that a Conv1D keeps its weight's transpose.
    """

    start: str = "pissa"
    knows_conv1d: bool = True

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        config.init_lora_weights = self.start
        model = get_peft_model(base, config)
        for weight in linear_weights(model):
            if weight.stored_transposed and not self.knows_conv1d:
                raise ALoRAError(
                    f"{weight.name} keeps the transpose of its weight (Conv1D), which PEFT's {self.start} takes for the "
                    f"weight: leave {self.name} out for this model"
                )
        return model


@dataclass(frozen=True)
class MinorComponents(Method):
    """PEFT's MiCA: B is frozen in each weight's last left singular vectors, A starts at zero and is trained."""

    needs_plain_base = True
    is_plain = False

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        config.init_lora_weights = "mica"
        model: Any = get_peft_model(base, config)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                # The variant's forward pass is LoRA's own. What it is there for, that B is frozen, the layer knows by itself.
                layer.lora_variant.pop("default", None)
        linear_weights(model)
        model.peft_config["default"].init_lora_weights = True
        return Adapter.plain(model)


@dataclass(frozen=True)
class OrthogonalStart(Method):
    """PEFT draws A and B with orthogonal inner sides, so that ``B A = 0`` and neither is zero."""

    # Quantised weights are whole numbers to PEFT, whose dtype it gives the factors.
    needs_plain_base = True


MICA = MinorComponents(
    "mica", "PEFT's MiCA: A is trained in the weights' last singular directions", starts_from="fresh"
)
PISSA = PartOfTheWeight(
    "pissa", "PEFT's PiSSA: starts as the leading singular part of each weight", starts_from="fresh"
)
OLORA = PartOfTheWeight(
    "olora",
    "PEFT's OLoRA: starts as the first part of each weight's QR decomposition",
    starts_from="fresh",
    start="olora",
    knows_conv1d=False,
)
ORTHOGONAL = OrthogonalStart(
    "orthogonal",
    "PEFT's orthogonal start: random A and B with B A = 0",
    starts_from="fresh",
    lora={"init_lora_weights": "orthogonal"},
)
