"""LoRA on the MLP's layers alone, which forgets less than LoRA on all of them (PEFT's method comparison)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.curvature import HELD
from alora_trainer.experiment.methods.method import Method
from alora_trainer.importance.kinds.kronecker import KRONECKER

# What the models of transformers call their feed-forward part.
_MLP = re.compile(r"(^|\.)(mlp|feed_forward|ffn|ff|fc_layers)(\.|$)")


@dataclass(frozen=True)
class MLPOnly(Method):
    """LoRA on whatever linear layers the model's feed-forward parts have, instead of the recipe's target modules."""

    places_itself = True

    def configure(self, base: PreTrainedModel, config: LoraConfig) -> None:
        config.target_modules = mlp_layers(base)


def mlp_layers(model: nn.Module) -> set[str]:
    """Names of the linear layers in the model's feed-forward parts.

    Raises:
        ALoRAError: there are none that this knows.
    """
    names = {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and _MLP.search(name)
    }
    if not names:
        raise ALoRAError("mlp_only finds no MLP in this model: use the method lora with lora.target_modules instead")
    return names


MLP_ONLY = MLPOnly("mlp_only", "LoRA on the MLP's layers alone", starts_from="fresh")
KFAC_MLP = MLPOnly(
    "kfac_mlp", "`kfac` on the MLP's layers alone", starts_from="fresh", importance=KRONECKER, alora=HELD
)
