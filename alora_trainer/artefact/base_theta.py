"""theta* of a map that was measured at the base weights: no file of it, and nothing to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.artefact.entries import MapConfig, ThetaEntries, WeightEntry, demand
from alora_trainer.artefact.theta_storage import ThetaReader, ThetaStorage
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.theta import BaseTheta, Theta


class BaseStorage(ThetaStorage):
    """Nothing: the base model has theta*."""

    section = "base_weights"
    files = ()
    library = relation = None
    tags = ()

    def write(self, folder: Path, theta: Theta) -> ThetaEntries:
        return ThetaEntries(BaseTheta, {})

    def weight_entry(self, reference: Reference, base_sample: list[float] | None) -> WeightEntry:
        return WeightEntry(reference.shape, None, base_sample)

    def section_content(self, theta: ThetaEntries) -> dict[str, Any]:
        return {}

    def parse_section(self, content: Mapping[str, Any]) -> ThetaEntries:
        demand(isinstance(content, Mapping) and not content, "theta* is the base weights, and there is more of it")
        return ThetaEntries(BaseTheta, {})

    def check(self, config: MapConfig) -> None:
        for weight in config.weights.values():
            demand(weight.scaling is None and weight.stack is None, "a weight has an adapter, which the map has not")

    def open(self, folder: Path, config: MapConfig) -> ThetaReader:
        return _BaseReader(config)

    def rewritten_for_public(self, folder: Path, target: Path, base_model: str | None) -> dict[str, Path]:
        return {}

    def described(self, config: MapConfig) -> tuple[str, str]:
        return "theta*", "the base weights: no LoRA belongs to it, a fresh adapter of any rank is held"


class _BaseReader(ThetaReader):
    """Knows shapes alone."""

    def __init__(self, config: MapConfig) -> None:
        self._shapes = {name: weight.shape for name, weight in config.weights.items()}

    def theta(self, names: Sequence[str]) -> BaseTheta:
        return BaseTheta({name: self._shapes[name] for name in names})

    def theta_of(self, name: str) -> BaseTheta:
        return self.theta([name])
