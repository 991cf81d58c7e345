"""What a map says of itself: where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alora_trainer.importance.recording.measured import MEASURED


@dataclass(frozen=True)
class ImportanceInfo:
    """Where a map comes from: what a stranger must know to judge it. All of it is plain JSON.

    Attributes:
        base_model: Hub id (or folder) of the base model, and `base_revision` its commit.
        estimator: how importance was estimated.
        xi: the damping of eq. 15, where it was a number; `xi_share` is it as a share of each weight's mean squared movement.
        basis: in which directions importance was recorded, where these were not the weight's own rows and columns.
        labels: of an estimate from gradients without a training, what they are of: "sampled" for labels drawn from the model's
            own predictions, "text" for the text's; None where there are none.
        draws: how often labels were drawn for each batch of text; None as before.
        steps, tokens, optimizer, learning_rate, seed: the training that it was recorded in.
        data: what it was recorded on; `sources` in it is a list of texts or of mappings with `hub`, `name`, `split` and
            `revision`.
        license: the licence that whoever publishes the map states for it; None says nothing.
        cost: `seconds` and `peak_bytes` of the recording, and the `device`, where they are known.
        versions: of the software.
        earlier_tasks: the same facts of the maps that were added up before this one.
    """

    base_model: str | None = None
    base_revision: str | None = None
    estimator: str | None = None
    xi: float | None = None
    xi_share: float | None = None
    basis: str | None = None
    labels: str | None = None
    draws: int | None = None
    steps: int = 0
    tokens: int = 0
    optimizer: str | None = None
    learning_rate: float | None = None
    seed: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    earlier_tasks: Sequence[Mapping[str, Any]] = ()

    @property
    def is_curvature_by_token(self) -> bool:
        """Whether ``1/2 sum_l R_l`` of a movement predicts how much general loss rises by it, in nats a token.

        Fisher information by element does not: it is of samples' mean losses, so that its scale depends on how long these are.
        Nor does the sum of several tasks, which is of two texts at once.
        """
        measured = MEASURED.get(self.estimator or "")
        return measured is not None and measured.is_curvature and not self.earlier_tasks


@dataclass(frozen=True)
class Origin:
    """The Hub repository that a map was fetched from, and the commit."""

    repo_id: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}"
