"""A small map of importance in a basis, at the base weights of a tiny Llama: what q, k and v multiply is the same."""

from __future__ import annotations

from typing import Any

import torch

from alora_trainer import ImportanceMap
from alora_trainer.importance.kinds.eigenbasis import EigenSide, eigen_side
from alora_trainer.importance.kinds.ekfac import EkfacOmega
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import CovarianceOmega, KroneckerOmega
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.theta import BaseTheta
from tests.dense_metric import moments
from tests.tiny_map import COMMIT

BLOCKS = 2
SHAPES = {"self_attn.q_proj": (16, 16), "self_attn.v_proj": (8, 16), "mlp.down_proj": (16, 24)}
KINDS = ("kronecker", "ekfac", "covariance")


def side(size: int, seed: int, keep: int | None) -> EigenSide:
    found = eigen_side(moments(size, seed), keep)
    return EigenSide(found.vectors.float(), found.values.float())


def basis_map(
    kind: str = "kronecker", *, keep: int | None = 5, blocks: int = BLOCKS, storage: str | None = None, **info: Any
) -> ImportanceMap:
    """Random curvature that keeps `keep` directions a side; q and v share those of their inputs."""
    omega: dict[str, InBasis] = {}
    for block in range(blocks):
        inputs = {16: side(16, 100 + block, keep), 24: side(24, 200 + block, keep)}
        for number, (name, shape) in enumerate(SHAPES.items()):
            outputs, own = side(shape[0], 10 * block + number, keep), inputs[shape[1]]
            omega[f"model.layers.{block}.{name}"] = _made(kind, shape, outputs, own, seed=10 * block + number)
    facts: dict[str, Any] = {
        "base_model": "tiny-org/tiny-llama",
        "base_revision": COMMIT,
        "estimator": kind,
        "labels": "sampled",
        "draws": 2,
        "steps": 12,
        "tokens": 3_072,
        "seed": 3,
        "data": {"sources": [{"hub": "tiny-org/books", "split": "train", "revision": "main"}]},
        "cost": {"seconds": 25.0, "peak_bytes": 1_300_000_000, "device": "one x86_64 cpu"},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
    }
    theta = BaseTheta({name: each.shape for name, each in omega.items()})
    made = ImportanceMap(omega, theta, info=ImportanceInfo(**(facts | info)))
    return made if storage is None else made.convert(storage_format(storage).format)


def _made(kind: str, shape: tuple[int, int], outputs: EigenSide, inputs: EigenSide, seed: int) -> InBasis:
    if kind == "covariance":
        return CovarianceOmega.of(shape, outputs, inputs)
    if kind == "kronecker":
        return KroneckerOmega.of(shape, outputs, inputs)
    sizes = (outputs.vectors.shape[1] + 1, inputs.vectors.shape[1] + 1)
    omega = torch.rand(sizes, generator=torch.Generator().manual_seed(seed))
    return EkfacOmega(shape, {"output_vectors": outputs.vectors, "input_vectors": inputs.vectors, "omega": omega})
