"""The model card of a finished adapter that was multiplied by a number, and that no importance map held while it was tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.artefact.cards.facts import loadable_name, public_name
from alora_trainer.artefact.cards.map_card import render
from alora_trainer.basics.hub_ids import is_hub_id

TEMPLATE = Path(__file__).parent / "scaled_card.md"


@dataclass(frozen=True)
class ScaledCard:
    """The facts of the card, as the template names them."""

    base: str
    base_source: str
    base_revision: str | None
    times: str
    metadata: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Any, ...] = ()


def write_scaled_card(base_model: str | None, revision: str | None, times: float, path: Path) -> None:
    """Write the card.

    Args:
        base_model, revision: as the adapter's configuration names them.
        times: what the adapter was multiplied by in all.
        path: the file.
    """
    metadata = {
        "library_name": "peft",
        "base_model": base_model if is_hub_id(base_model) else None,
        "base_model_relation": "adapter" if is_hub_id(base_model) else None,
        "tags": ["lora", "forgetting"],
    }
    card = ScaledCard(
        base=public_name(base_model),
        base_source=loadable_name(base_model),
        base_revision=revision,
        times=f"{times:g}",
        metadata={key: value for key, value in metadata.items() if value is not None},
    )
    path.write_text(render(card, TEMPLATE, ""), encoding="utf-8")
