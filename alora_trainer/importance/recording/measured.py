"""What importance can be measured at the base weights, in passes over general text and without any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alora_trainer.importance.kinds.ekfac import EKFAC
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.kronecker import COVARIANCE, KRONECKER

# What is recorded in a training on general text instead: the path integral.
RECORDED = "recorded"


@dataclass(frozen=True)
class Measured:
    """One such importance.

    Attributes:
        name: as recipes and methods call it, and the provenance of a map.
        section: the recipe's section that says how it is measured.
        kind: of importance.
        squares: of Fisher information alone: of the gradients of each "sample", or of a "batch" (see `fisher`).
        labels: of Fisher information alone: the "text"'s own, or "sampled" from the model's predictions.
    """

    name: str
    section: Literal["fisher", "curvature"]
    kind: str = ELEMENTWISE
    squares: str = "sample"
    labels: str = "text"

    @property
    def folder(self) -> str:
        """The name of the folder in a run that it is kept in: none that a method has for its training."""
        return f"curvature_{self.name}" if self.is_curvature else self.name

    @property
    def is_curvature(self) -> bool:
        """Whether it is curvature in a basis, and no Fisher information by element."""
        return self.section == "curvature"


MEASURED: Mapping[str, Measured] = {
    one.name: one
    for one in (
        Measured("fisher", "fisher"),
        Measured("fisher_true", "fisher", labels="sampled"),
        Measured("fisher_batch", "fisher", squares="batch"),
        Measured(KRONECKER, "curvature", KRONECKER),
        Measured(EKFAC, "curvature", EKFAC),
        Measured(COVARIANCE, "curvature", COVARIANCE),
    )
}
