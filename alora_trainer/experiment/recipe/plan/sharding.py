"""Several GPUs: what of a training each of them holds whole, and what is spread over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.plan.memory import Memory

NONE, ZERO2, FSDP2, ZERO3 = "none", "zero2", "fsdp2", "zero3"
KINDS = (NONE, ZERO2, FSDP2, ZERO3)
# Of importance each process keeps its own weights' share, whatever the engine (see basics/processes.py).
_SHARED_OUT = ("Omega", "w", "bases")


@dataclass(frozen=True)
class Sharding:
    """How many GPUs train together, and by which engine.

    Attributes:
        gpus: one process each.
        kind: "none" is plain data parallelism (torchrun): the model is whole on each; "zero2" spreads what the optimizer
            keeps; "fsdp2" and "zero3" the model itself, of which one block at a time is gathered.

    Raises:
        ALoRAError: there is no such engine; a model is to be spread over one GPU.
    """

    gpus: int = 1
    kind: str = NONE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ALoRAError(f"--sharding {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if self.gpus < 1:
            raise ALoRAError(f"--gpus {self.gpus} must be at least 1")
        if self.kind != NONE and self.gpus == 1:
            raise ALoRAError(f"--sharding {self.kind} spreads over several GPUs: say how many, by --gpus")

    @property
    def spreads_model(self) -> bool:
        """Whether no GPU has the whole model."""
        return self.kind in (FSDP2, ZERO3)

    @property
    def with_whole_model(self) -> Sharding:
        """The same for what needs the model whole on each: measuring at the base weights, choosing first directions."""
        return Sharding(self.gpus)

    def each(self, held: Memory, model: nn.Module) -> Memory:
        """What one of the GPUs holds of a training.

        Args:
            held: what a single one would hold.
            model: with the adapter on it, for the size of a block.
        """
        if self.gpus == 1:
            return held
        spread = set(_SHARED_OUT)
        if self.kind != NONE:
            spread.add("optimizer")
        if self.spreads_model:
            spread |= {"base weights", "LoRA factors"}
        parts = {name: -(-count // self.gpus) if name in spread else count for name, count in held.parts.items()}
        if self.spreads_model:
            parts["gathered blocks"] = _gathered(model, held.parts)
        return Memory(parts)


def _gathered(model: nn.Module, parts: Mapping[str, int]) -> int:
    """Two blocks of the model, the one that is computed and the one that is fetched next, or its largest other part.

    In the share of their bytes that the base has (less, where it is quantised).
    """
    plain = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    share = parts["base weights"] / plain if plain else 1.0
    blocks: list[int] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not blocks:
            blocks = [_bytes(block) for block in module]
            inside = {id(p) for p in module.parameters()}
    rest = [p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside]
    return int(share * max(2 * max(blocks, default=0), max(rest, default=0)))


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
