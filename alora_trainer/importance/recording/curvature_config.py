"""The recipe's section `curvature`: how the importance of methods such as `kfac` is measured."""

from __future__ import annotations

from dataclasses import dataclass

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature import LABELS
from alora_trainer.importance.recording.squared_gradients import LOCATIONS

BASES = ("float32", "bfloat16")


@dataclass(frozen=True)
class CurvatureConfig:
    """How curvature in a basis is measured and kept.

    Attributes:
        tokens: of general text that are predicted (the batch in which it is reached is the last); None takes all.
        batch_size: blocks in a pass.
        labels: "sampled" from the model's own predictions, which is the true Fisher information, or the "text"'s own.
        draws: how often labels are sampled for each batch; each is a backward pass.
        keep: eigenvectors on either side of a weight, at most; None keeps all.
        share: as many as hold this share of the trace, at most `keep`; None for `keep`.
        weights: "adapted" is those that the recipe's LoRA adapts, "all" every linear layer but the output head, whatever is
            adapted later.
        location: where the sums are kept, "device" or "cpu".
        parts: the weights are taken in so many parts, each with passes of its own: only the sums of one are held at a time.
        storage: what the eigenvectors are saved in, "float32" or "bfloat16".

    Raises:
        ALoRAError: a value is out of range or unknown.
    """

    tokens: int | None = 100_000
    batch_size: int = 8
    labels: str = "sampled"
    draws: int = 1
    keep: int | None = 64
    share: float | None = None
    weights: str = "adapted"
    location: str = "device"
    parts: int = 1
    storage: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("batch_size", 1), ("draws", 1), ("keep", 0), ("parts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ALoRAError(f"curvature.{name}={value!r} must be at least {least}")
        if self.share is not None and not 0 < self.share <= 1:
            raise ALoRAError(f"curvature.share={self.share!r} must lie between 0 and 1")
        for name, known in (
            ("labels", LABELS),
            ("weights", ("adapted", "all")),
            ("location", LOCATIONS),
            ("storage", BASES),
        ):
            if getattr(self, name) not in known:
                raise ALoRAError(f"curvature.{name}={getattr(self, name)!r} is unknown: use one of {', '.join(known)}")
        if self.draws > 1 and self.labels != "sampled":
            raise ALoRAError(
                f"curvature.draws={self.draws} is for labels that are sampled: the text has its own labels once"
            )

    def format(self, kind: str) -> str:
        """The storage format of importance of `kind`."""
        return kind if self.storage == "float32" else f"{kind}_{self.storage}"
