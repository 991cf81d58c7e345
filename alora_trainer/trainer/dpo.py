"""`ALoRADPOTrainer`: TRL's direct preference optimization with recording and protecting. Imported when it is first used."""

from __future__ import annotations

from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.mixin import ALoRAMixin

try:
    from trl import DPOTrainer
except ImportError as error:
    raise ALoRAError("ALoRADPOTrainer needs TRL: pip install trl") from error


class ALoRADPOTrainer(ALoRAMixin, DPOTrainer):
    """`trl.DPOTrainer` with `importance` and `alora` beside its own arguments; see `ALoRAMixin`.

    TRL keeps a frozen copy of the adapter, called ``ref``, on the same model; only the adapter that trains is recorded and
    held. DPO's loss is a mean over each micro-batch, which the Trainer divides by their number: the penalty counts once.
    """
