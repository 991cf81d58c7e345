"""Fine-tune a language model on a domain while holding what mattered for its general ability (arXiv 2501.13669).

The public names are loaded when first used, so that ``import alora_trainer`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alora_trainer.basics.versions import OWN_VERSION as __version__

if TYPE_CHECKING:
    from alora_trainer.artefact.importance_map import ImportanceMap, load_reference
    from alora_trainer.errors import ALoRAError
    from alora_trainer.trainer.config import ALoRAConfig
    from alora_trainer.trainer.dpo import ALoRADPOTrainer
    from alora_trainer.trainer.initialization.initialize import initialize_adapter
    from alora_trainer.trainer.mixin import ALoRAMixin, ALoRATrainer
    from alora_trainer.trainer.retention.guard import RetentionGuard
    from alora_trainer.trainer.sft import ALoRASFTTrainer

_HOMES = {
    "ALoRAConfig": "trainer.config",
    "ALoRADPOTrainer": "trainer.dpo",
    "ALoRAError": "errors",
    "ALoRAMixin": "trainer.mixin",
    "ALoRASFTTrainer": "trainer.sft",
    "ALoRATrainer": "trainer.mixin",
    "ImportanceMap": "artefact.importance_map",
    "RetentionGuard": "trainer.retention.guard",
    "fit": "experiment.fit.whole_fit",
    "initialize_adapter": "trainer.initialization.initialize",
    "load_reference": "artefact.importance_map",
}
# Public names that are modules.
_MODULES = {"demo": "experiment.demo"}
__all__ = [
    "ALoRAConfig",
    "ALoRADPOTrainer",
    "ALoRAError",
    "ALoRAMixin",
    "ALoRASFTTrainer",
    "ALoRATrainer",
    "ImportanceMap",
    "RetentionGuard",
    "__version__",
    "initialize_adapter",
    "load_reference",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES, *_MODULES})
