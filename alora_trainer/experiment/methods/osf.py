"""."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from alora_trainer.errors import ALoRAError


@dataclass(frozen=True)
class OSFOptions:
    """Of `osf`.

    Attributes:
        effective_rank: share of each weight's singular directions that is frozen; the rest is trained.
    """

    effective_rank: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.effective_rank < 1:
            raise ALoRAError(f"effective_rank={self.effective_rank!r} must lie between 0 and 1")


def _osf_config(config: LoraConfig, options: OSFOptions) -> Any:
    from peft import OSFConfig

    return OSFConfig(
        effective_rank=options.effective_rank, target_modules=config.target_modules, task_type=config.task_type
    )
