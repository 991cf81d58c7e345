"""The compared methods: what each means and what differs in its training, one file an idea.

method.py          `Method`: a few settings, or a subclass with an adapter or a training of its own
registry.py        the list of all methods
paper.py           the base model, LoRA, ALoRA and its ablations
controls.py        the same penalty with its claims taken away
ewc.py             held by Fisher information
curvature.py       held by curvature in a basis
full_tuning.py     the model's own weights, held as published
mlp_only.py        LoRA on the MLP alone, by itself and held
corda.py, osf.py     other adapters
starts.py          what adapters have in common that start in directions which are computed
lora_null.py       ... in those that general text hardly uses
lora_ga.py         ... in those of the domain's own gradient
eva.py             ... in those that the domain's inputs vary most in
sc_lora.py         ... in those of the domain's outputs and not of general text's
weight_starts.py   ... in those of the base weights, by PEFT
extra_loss.py      trainings with a loss beside the domain's: how it enters and is logged
general_text.py    trainings that see general text beside the domain: the part that they share
replay.py, kl_anchor.py, i_lora.py     ... and what each does with it
self_replay.py     ... and the same on text that the base model says itself
base_kl.py         near the base model's predictions on the domain's own items
asft.py            tokens weighted by their own probability
finch.py           a learning rate that falls on batches of high loss
lalora.py          the factors themselves held by their Fisher information
intruders.py       intruder dimensions taken back from the finished adapter
l2_init.py         plain L2 to where the training began
oplora.py, clora.py     a movement that keeps out of directions of the weights, or of random ones
scaled.py          the finished adapter times a number
lora_pro.py        LoRA-Pro's correction of the factors' gradients
"""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.registry import METHODS, get_method

__all__ = ["METHODS", "Method", "get_method"]
