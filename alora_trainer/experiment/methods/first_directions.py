"""Where a new adapter starts, and whether A is trained at all (docs/methods/first_directions.md)."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig
from transformers import PreTrainedModel

from alora_trainer.experiment.methods.curvature import HELD
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method
from alora_trainer.importance.kinds.kronecker import COVARIANCE, KRONECKER
from alora_trainer.trainer.initialization.settings import CONTRASTIVE, NATURAL_GRADIENT
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.frozen_a import freeze_a

# The map says where to start, and holds nothing.
_UNHELD = {**HELD, "lam": 0.0, "lam_schedule": "constant", "budget": None}
_NATURAL = {"init_adapter": NATURAL_GRADIENT}
_CONTRASTIVE = {"init_adapter": CONTRASTIVE}


@dataclass(frozen=True)
class FrozenA(Method):
    """LoRA with PEFT's own random A, which is not trained (LoRA-FA)."""

    is_plain = False

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        adapter = super().attach(base, config, inputs)
        freeze_a(adapted_weights(adapter.model))
        return adapter


LORA_FROZEN = FrozenA("lora_frozen", "LoRA on the domain with its random A frozen (LoRA-FA)", starts_from="fresh")
LORA_NATURAL = Method(
    "lora_natural",
    "LoRA that starts where the domain's natural gradient in the general curvature leads",
    starts_from="fresh",
    importance=KRONECKER,
    alora={**_UNHELD, **_NATURAL},
)
LORA_NATURAL_FROZEN = Method(
    "lora_natural_frozen",
    "the same with A frozen there",
    starts_from="fresh",
    importance=KRONECKER,
    alora={**_UNHELD, **_NATURAL, "freeze_a": True},
)
LORA_CONTRASTIVE = Method(
    "lora_contrastive",
    "LoRA that starts where the domain's inputs are large and general ones small",
    starts_from="fresh",
    importance=COVARIANCE,
    alora={**_UNHELD, **_CONTRASTIVE},
)
LORA_CONTRASTIVE_FROZEN = Method(
    "lora_contrastive_frozen",
    "the same with A frozen there",
    starts_from="fresh",
    importance=COVARIANCE,
    alora={**_UNHELD, **_CONTRASTIVE, "freeze_a": True},
)
KFAC_NATURAL = Method(
    "kfac_natural",
    "`kfac` that starts where the domain's natural gradient in the general curvature leads",
    starts_from="fresh",
    importance=KRONECKER,
    alora={**HELD, **_NATURAL},
)
KFAC_CONTRASTIVE = Method(
    "kfac_contrastive",
    "`kfac` that starts where the domain's inputs are large and general ones small",
    starts_from="fresh",
    importance=KRONECKER,
    alora={**HELD, **_CONTRASTIVE},
)
