"""Fine-tune a language model on a domain while holding what mattered for its general ability (arXiv 2501.13669).

The public names are loaded when first used, so that ``import alora_trainer`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alora_trainer.config import ALoRAConfig
    from alora_trainer.dpo_trainer import ALoRADPOTrainer
    from alora_trainer.errors import ALoRAError
    from alora_trainer.importance import ImportanceMap
    from alora_trainer.sft_trainer import ALoRASFTTrainer
    from alora_trainer.trainer import ALoRAMixin, ALoRATrainer

try:
    __version__ = version("alora-trainer")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "ALoRAConfig": "config",
    "ALoRADPOTrainer": "dpo_trainer",
    "ALoRAError": "errors",
    "ALoRAMixin": "trainer",
    "ALoRASFTTrainer": "sft_trainer",
    "ALoRATrainer": "trainer",
    "ImportanceMap": "importance",
}
__all__ = [
    "ALoRAConfig",
    "ALoRADPOTrainer",
    "ALoRAError",
    "ALoRAMixin",
    "ALoRASFTTrainer",
    "ALoRATrainer",
    "ImportanceMap",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
