"""What the artefact asks of theta*, whatever was trained: where it lies, how it is written, read, checked and described."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from alora_trainer.artefact.entries import MapConfig, ThetaEntries, WeightEntry
from alora_trainer.weights.theta import Theta


class ThetaReader(ABC):
    """theta* of an opened folder, every tensor of it checked before it is used.

    Its methods raise ALoRAError for a tensor that is not as the map's config describes it, or not finite.
    """

    @abstractmethod
    def theta(self, names: Sequence[str]) -> Theta:
        """theta* of some weights, as it can be saved again."""

    @abstractmethod
    def theta_of(self, name: str) -> Theta:
        """theta* of one weight, to look at; it cannot be saved."""


class ThetaStorage(ABC):
    """How theta* of one parameterization lies in a map's folder or Hub repository.

    Attributes:
        section: its key in importance_config.json.
        files: the names of its files.
        library: the library that loads it, for the Hub's metadata; None where it is no model by itself.
        relation: what it is to the base model, in the Hub's words; None as before.
        tags: of the map's card, beside those of every map.
    """

    section: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    library: ClassVar[str | None]
    relation: ClassVar[str | None]
    tags: ClassVar[tuple[str, ...]]

    @abstractmethod
    def write(self, folder: Path, theta: Theta) -> ThetaEntries:
        """Write theta* into `folder`; where its tensors are then."""

    @abstractmethod
    def weight_entry(self, reference: Any, base_sample: list[float] | None) -> WeightEntry:
        """What the config says of one weight.

        Args:
            reference: theta* of it.
            base_sample: a few elements of its base weight.
        """

    @abstractmethod
    def section_content(self, theta: ThetaEntries) -> dict[str, Any]:
        """The section of importance_config.json, as plain data."""

    @abstractmethod
    def parse_section(self, content: Mapping[str, Any]) -> ThetaEntries:
        """The other way round, from a stranger's file. Raises ValueError, KeyError or TypeError."""

    @abstractmethod
    def check(self, config: MapConfig) -> None:
        """Raise ValueError unless what the config says of theta* fits its weights and files."""

    @abstractmethod
    def open(self, folder: Path, config: MapConfig) -> ThetaReader:
        """What reads theta*.

        Raises:
            ALoRAError: a file is missing or damaged, or has other tensors than the config says.
        """

    @abstractmethod
    def rewritten_for_public(self, folder: Path, target: Path, base_model: str | None) -> dict[str, Path]:
        """The files that must say something else before they are published, written anew into `target`; by name.

        Args:
            folder: the map's.
            target: an empty folder.
            base_model: what the base model is called in public.
        """

    @abstractmethod
    def described(self, config: MapConfig) -> tuple[str, str]:
        """A label and a few words for `alora inspect`."""
