"""LoRA held by curvature in a basis: a new adapter, held to the base weights (docs/methods/curvature.md)."""

from __future__ import annotations

from alora_trainer.experiment.methods.ewc import FROM_THE_BASE
from alora_trainer.experiment.methods.method import Method
from alora_trainer.importance.kinds.ekfac import EKFAC as EKFAC_KIND
from alora_trainer.importance.kinds.kronecker import COVARIANCE as COVARIANCE_KIND
from alora_trainer.importance.kinds.kronecker import KRONECKER

# Formats and backends that a recipe asks for are of element-wise importance.
HELD = {**FROM_THE_BASE, "storage": None, "backend": None}

KFAC = Method(
    "kfac",
    "LoRA on the domain, held to the base weights by their curvature in Kronecker form",
    starts_from="fresh",
    importance=KRONECKER,
    alora=HELD,
)
EKFAC = Method(
    "ekfac",
    "the same with a number for every pair of eigenvectors",
    starts_from="fresh",
    importance=EKFAC_KIND,
    alora=HELD,
)
COVARIANCE = Method(
    "covariance",
    "the same by the covariance of each layer's inputs, and one number for its outputs",
    starts_from="fresh",
    importance=COVARIANCE_KIND,
    alora=HELD,
)
