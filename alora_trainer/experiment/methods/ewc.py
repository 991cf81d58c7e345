"""EWCLoRA: a new adapter, held to the base weights by their Fisher information (docs/methods/ewclora.md)."""

from __future__ import annotations

from alora_trainer.experiment.methods.method import Method

# A new adapter over the base as it is, held to the base: theta* = W0.
FROM_THE_BASE = {"start": "bare", "anchor": "base", "layer_weights": "none"}

EWCLORA = Method(
    "ewclora",
    "LoRA on the domain, held to the base weights by their Fisher information",
    starts_from="fresh",
    importance="fisher",
    alora=FROM_THE_BASE,
)
EWCLORA_TRUE = Method(
    "ewclora_true",
    "the same with labels drawn from the model's own predictions: the true Fisher information",
    starts_from="fresh",
    importance="fisher_true",
    alora=FROM_THE_BASE,
)
EWCLORA_BATCH = Method(
    "ewclora_batch",
    "the same with the squared batch gradients of the official code",
    starts_from="fresh",
    importance="fisher_batch",
    alora=FROM_THE_BASE,
)
EWCLORA_FACTORED = Method(
    "ewclora_factored",
    "`ewclora` in the bytes that `kfac` takes with 16 eigenvectors a side: a sum of 16 outer products",
    starts_from="fresh",
    importance="fisher",
    alora={**FROM_THE_BASE, "storage": "factored_16", "backend": None},
)
