"""EWCLoRA: a new adapter, held to the base weights by their Fisher information (docs/methods/ewclora.md)."""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method

# A new adapter over the base as it is, held to the base: theta* = W0.
_FROM_THE_BASE = {"start": "bare", "anchor": "base", "layer_weights": "none"}

EWCLORA = Method(
    "ewclora",
    "LoRA on the domain, held to the base weights by their Fisher information",
    starts_from="fresh",
    importance="fisher",
    alora=_FROM_THE_BASE,
)
EWCLORA_BATCH = Method(
    "ewclora_batch",
    "the same with the squared batch gradients of the official code",
    starts_from="fresh",
    importance="fisher_batch",
    alora=_FROM_THE_BASE,
)
