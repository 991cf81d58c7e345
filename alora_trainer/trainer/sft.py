"""`ALoRASFTTrainer`: TRL's supervised fine-tuning with recording and protecting. Imported when it is first used."""

from __future__ import annotations

from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.mixin import ALoRAMixin

try:
    from trl import SFTTrainer
except ImportError as error:
    raise ALoRAError("ALoRASFTTrainer needs TRL: pip install trl") from error


class ALoRASFTTrainer(ALoRAMixin, SFTTrainer):
    """`trl.SFTTrainer` with `importance` and `alora` beside its own arguments; see `ALoRAMixin`.

    Packing, completion-only loss, chat templates and every other option are TRL's. Its `SFTConfig` trains in bf16 with
    gradient checkpointing unless told otherwise.
    """
