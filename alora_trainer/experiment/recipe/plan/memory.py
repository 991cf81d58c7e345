"""Bytes of what is held during each stage of a recipe, and their peak."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from alora_trainer.experiment.recipe.plan.along_a_basis import AlongABasis
from alora_trainer.experiment.recipe.plan.models import PlannedModel
from alora_trainer.experiment.recipe.plan.step_trace import StepTrace, trace_step
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.weights.row_blocks import block_rows

# Bytes a parameter of what bitsandbytes quantises: codes, and the scales of its blocks (nf4 twice quantised).
QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# Copies of the factors that an optimizer keeps, by what the Trainer calls it; others are taken for Adam.
_OPTIMIZER_STATES = {"sgd": 0, "adafactor": 0.1, "adamw_8bit": 0.5, "adamw_bnb_8bit": 0.5, "lion_32bit": 1}


@dataclass(frozen=True)
class Pass:
    """The shape of one micro-batch."""

    batch_size: int
    length: int
    train: bool = True


@dataclass(frozen=True)
class Variant:
    """What may be chosen otherwise than the recipe has it.

    Attributes:
        checkpointing: gradient checkpointing.
        omega_device: "device", "cpu" or "disk": where stage A keeps w.
        storage: format that stage B holds Omega in.
        quantization: of the base, "nf4", "int8" or None.
        batch_divisor: micro-batches smaller by this factor, and more of them.
    """

    checkpointing: bool = False
    omega_device: str = "device"
    storage: str = "float32"
    quantization: str | None = None
    batch_divisor: int = 1


@dataclass(frozen=True)
class Memory:
    """What a stage holds, in bytes, by name; `total` is its peak."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """As plain data: ``peak_bytes`` and ``parts``."""
        return {"peak_bytes": self.total, "parts": dict(self.parts)}


class MemoryModel:
    """Bytes of a planned model's stages.

    Args:
        planned: the model on the meta device.
        optimizer: of the training, as the Trainer calls it.
        autocast: the dtype of mixed precision, if any.
        host: the device is the processor: its memory is the host's.
    """

    def __init__(
        self, planned: PlannedModel, *, optimizer: str = "adamw_torch_fused", autocast: torch.dtype | None, host: bool
    ) -> None:
        self.planned = planned
        self.host = host
        self._autocast = autocast
        self._states = _OPTIMIZER_STATES.get(optimizer, 2)
        self._trace = lru_cache(maxsize=None)(self._trace_uncached)

    # ---- what is held ----

    @property
    def factor_bytes(self) -> int:
        """The trainable factors, in the dtype that they are trained in."""
        return sum(p.numel() * p.element_size() for p in self.planned.model.parameters() if p.requires_grad)

    @property
    def factor_elements(self) -> int:
        return sum(p.numel() for p in self.planned.model.parameters() if p.requires_grad)

    @property
    def parameters(self) -> int:
        """Of the base model."""
        return sum(p.numel() for p in self.planned.model.parameters() if not p.requires_grad)

    @property
    def adapted_elements(self) -> int:
        return sum(math.prod(weight.shape) for weight in self.planned.weights)

    def base_bytes(self, quantization: str | None) -> int:
        """The frozen weights and the buffers."""
        model = self.planned.model
        tensors = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
        plain = sum(t.numel() * t.element_size() for t in tensors)
        if quantization is None:
            return plain
        small = [m.weight for m in self._quantized_layers()]
        return (
            plain
            - sum(w.numel() * w.element_size() for w in small)
            + int(sum(w.numel() for w in small) * QUANTIZED_BYTES[quantization])
        )

    def _quantized_layers(self) -> list[nn.Linear]:
        """Linear layers of the base but the output head, which transformers leaves as it is."""
        model = self.planned.model
        head = model.get_output_embeddings()
        return [
            m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name and m is not head
        ]

    def omega_bytes(self, storage: str) -> int:
        """Omega of all adapted weights in a format.

        Raises:
            ALoRAError: the format is of another kind of importance than recipes record.
        """
        format = storage_format(storage, kind=ELEMENTWISE)
        return sum(format.made_bytes(weight.shape) for weight in self.planned.weights)

    def trace(self, shape: Pass, checkpointing: bool) -> StepTrace:
        """One pass of this shape."""
        return self._trace(shape, checkpointing)

    def _trace_uncached(self, shape: Pass, checkpointing: bool) -> StepTrace:
        return trace_step(
            self.planned.model,
            batch_size=shape.batch_size,
            length=shape.length,
            train=shape.train,
            checkpointing=checkpointing,
            autocast=self._autocast,
        )

    # ---- the stages ----

    def training(self, shape: Pass, variant: Variant) -> dict[str, int]:
        """What any LoRA training holds at its peak, at the end of a forward pass or in the backward pass."""
        small = replace(shape, batch_size=max(1, shape.batch_size // variant.batch_divisor))
        parts = {
            "base weights": self.base_bytes(variant.quantization),
            "LoRA factors": self.factor_bytes,
            "optimizer": int(self._states * self.factor_bytes),
            "activations and gradients": self.trace(small, variant.checkpointing).peak_bytes,
        }
        if variant.quantization is not None:
            parts["a dequantised weight"] = max(m.weight.numel() * 2 for m in self._quantized_layers())
        return parts

    def recording(self, shape: Pass, variant: Variant, along: AlongABasis | None = None) -> Memory:
        """Stage A: the path integral w, and the factors that it started with; `along` directions, these, too."""
        parts = self.training(shape, variant)
        if variant.omega_device == "device" or (self.host and variant.omega_device == "cpu"):
            parts["w"] = self.omega_bytes("float32") if along is None else along.path_bytes
        if along is not None:
            parts["directions"] = along.directions_bytes
        parts["factors at the start"] = self.factor_elements * 4
        return Memory(parts)

    def protecting(self, shape: Pass, variant: Variant) -> Memory:
        """Stage B with a penalty: Omega, theta*, the penalty's gradients and the blocks that it is computed in."""
        parts = self.training(shape, variant)
        parts["Omega"] = self.omega_bytes(variant.storage)
        parts["theta* and the penalty's gradients"] = 2 * self.factor_elements * 4
        parts["blocks"] = self._block_bytes()
        return Memory(parts)

    def held_in_basis(self, shape: Pass, variant: Variant, omega: int) -> Memory:
        """Stage B with importance in a basis, of `omega` bytes."""
        parts = self.training(shape, variant)
        # Not by this name, since no other storage format would help.
        parts["bases"] = omega
        parts["theta* and the penalty's gradients"] = 2 * self.factor_elements * 4
        return Memory(parts)

    def fisher(self, shape: Pass, samples: int) -> Memory:
        """The Fisher information: its sums, and a block for every sample."""
        parts = self.training(shape, Variant())
        del parts["optimizer"]
        parts["sums"] = self.omega_bytes("float32")
        parts["blocks"] = self._block_bytes()
        return Memory(parts)

    def plain(self, shape: Pass, variant: Variant) -> Memory:
        """A training that nothing holds."""
        return Memory(self.training(shape, variant))

    def evaluation(self, shape: Pass, variant: Variant) -> Memory:
        """Scoring a batch with lm-eval."""
        parts = {
            "base weights": self.base_bytes(variant.quantization),
            "LoRA factors": self.factor_bytes,
            "activations and logits": self.trace(shape, False).peak_bytes,
        }
        return Memory(parts)

    def _block_bytes(self) -> int:
        device = torch.device("cpu" if self.host else "cuda")
        return max(2 * block_rows(*weight.shape, device) * weight.shape[1] * 4 for weight in self.planned.weights)
