"""General text and domain questions: from files or the Hub to token batches and to the files that lm-eval reads."""

from __future__ import annotations

from alora_trainer.data.domain import (
    DomainConfig,
    DomainFiles,
    collator,
    prepare_domain,
    tokenize_domain,
)
from alora_trainer.data.general import GeneralConfig, pack_general_text, write_held_out
from alora_trainer.data.items import split_records
from alora_trainer.data.sources import load_source
from alora_trainer.data.tasks import BUILT_IN, Task, get_task

__all__ = [
    "BUILT_IN",
    "DomainConfig",
    "DomainFiles",
    "GeneralConfig",
    "Task",
    "collator",
    "get_task",
    "load_source",
    "pack_general_text",
    "prepare_domain",
    "split_records",
    "tokenize_domain",
    "write_held_out",
]
