"""The recipe's section `map`: how the importance that it records is saved."""

from __future__ import annotations

from dataclasses import dataclass

from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import storage_format


@dataclass(frozen=True)
class RecordedMapConfig:
    """The recorded importance map.

    Attributes:
        storage: the format that it is saved in: "log8" (one byte an element, with no loss that showed), "bfloat16" (two),
            "float32" (four), or "factored" (a thousandth). None saves it as exactly as it was recorded, and so is importance
            that was recorded along a basis (`alora.basis`), which these formats cannot keep.

    Raises:
        ALoRAError: an unknown format, or one of another kind of importance than is recorded.
    """

    storage: str | None = "log8"

    def __post_init__(self) -> None:
        if self.storage is not None:
            storage_format(self.storage, "map.storage", kind=ELEMENTWISE)

    def storage_of(self, kind: str) -> str | None:
        """The format that recorded importance of a kind is saved in; None as it was recorded."""
        return self.storage if kind == ELEMENTWISE else None
