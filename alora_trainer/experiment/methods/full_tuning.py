"""Full tuning, held as Synaptic Intelligence and EWC were published: every parameter, no layer weights."""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method
from alora_trainer.weights.parameterization import Parameterization

# What a recipe says of its LoRA's start, and of the directions that its importance is recorded along, is not for these.
_FULL = {
    "full_parameters": True,
    "basis": None,
    "layer_weights": "none",
    "start": "recorded",
    "anchor": "reference",
    "missing": "error",
    "backend": None,
}

SI_FULL = Method(
    "si_full",
    "full tuning, held by Synaptic Intelligence recorded in a full tuning on general text",
    starts_from="recorded",
    importance="recorded",
    parameterization=Parameterization.FULL,
    alora=_FULL,
)
EWC_FULL = Method(
    "ewc_full",
    "full tuning, held to the base weights by their Fisher information",
    starts_from="fresh",
    importance="fisher",
    parameterization=Parameterization.FULL,
    alora=_FULL,
)
