"""The compared methods: what each means (`table`), what can be set for it (`options`), and the trainings that differ.

table.py           every method, a few lines of configuration each
options.py         the recipe's section method_options
adapters.py        other adapters than plain LoRA: on the MLP alone, PEFT's CorDA and OSF
general_text.py    trainings that see general text beside the domain: the part that they share
replay.py          ... and train on it
kl_anchor.py       ... and stay near the base model's predictions on it
i_lora.py          ... and stay near a slowly moving average of their own adapter
lora_pro.py        LoRA-Pro's correction of the factors' gradients
trainers.py        which trainer a method trains with
"""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.registry import METHODS, get_method

__all__ = ["METHODS", "Method", "get_method"]
