"""."""

from __future__ import annotations

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from alora_trainer.errors import ALoRAError


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


# What the models of transformers call their feed-forward part.
_MLP = re.compile(r"(^|\.)(mlp|feed_forward|ffn|ff|fc_layers)(\.|$)")
