"""The public importance maps for a base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from alora_trainer.artefact.cards.map_card import MAP_TAG
from alora_trainer.artefact.hub.errors import hub_errors
from alora_trainer.basics.sizes import size_text
from alora_trainer.basics.tables import plain_table
from alora_trainer.importance.kinds.formats import FORMATS, KINDS


@dataclass(frozen=True)
class FoundMap:
    """What a map's card says of it; facts that it does not state are None or empty.

    Attributes:
        repo_id: what `from_pretrained` and ``--importance`` take.
        kind: of importance.
        formats: bytes by storage format, the largest (which is the most exact) first.
    """

    repo_id: str
    kind: str | None
    estimator: str | None
    tokens: int | None
    formats: Mapping[str, int]
    datasets: tuple[str, ...]
    updated: str | None
    downloads: int | None

    @property
    def formats_text(self) -> str:
        return ", ".join(f"{name} {size_text(size)}" for name, size in self.formats.items()) or "not stated"


def search_maps(base_model: str, *, limit: int = 20, token: str | bool | None = None) -> list[FoundMap]:
    """The maps whose cards name `base_model`, the most downloaded first.

    Raises:
        ALoRAError: the Hub cannot be asked.
    """
    with hub_errors(base_model, None, "searched for"):
        models = HfApi(token=token).list_models(
            filter=[MAP_TAG, f"base_model:{base_model}"], sort="downloads", limit=limit, cardData=True, full=True
        )
        return [_found(model) for model in models]


def _found(model: Any) -> FoundMap:
    card = model.card_data.to_dict() if model.card_data is not None else {}
    facts = card.get("importance_map")
    facts = facts if isinstance(facts, Mapping) else {}
    stated = facts.get("formats")
    stated = stated if isinstance(stated, Mapping) else {}
    known = [name for name in stated if name in FORMATS and type(stated[name]) is int]
    sizes = {name: stated[name] for name in sorted(known, key=lambda name: -stated[name])}
    datasets = card.get("datasets") or []
    kind, estimator, tokens = facts.get("kind"), facts.get("estimator"), facts.get("tokens")
    return FoundMap(
        repo_id=model.id,
        kind=_shown(kind) if isinstance(kind, str) else _tagged(model.tags),
        estimator=_shown(estimator) if isinstance(estimator, str) else None,
        tokens=tokens if type(tokens) is int else None,
        formats=sizes,
        datasets=tuple(_shown(str(name)) for name in (datasets if isinstance(datasets, list) else [datasets])),
        updated=model.last_modified.date().isoformat() if model.last_modified is not None else None,
        downloads=model.downloads,
    )


def _tagged(tags: Sequence[str] | None) -> str | None:
    """The kind by a map's tags, where its card is of before it was stated there."""
    return next((kind for kind in KINDS if f"{kind}-importance" in (tags or ())), None)


def _shown(text: str) -> str:
    """A stranger's text without what a terminal would obey."""
    return "".join(character for character in text if character.isprintable())[:80]


def table(maps: Sequence[FoundMap], width: int | None = None) -> str:
    """The maps as lines of aligned columns; `width` as of `plain_table`."""
    rows = [("repository", "kind", "estimator", "tokens", "formats", "recorded on", "updated")]
    for found in maps:
        tokens = f"{found.tokens:,}" if found.tokens is not None else "-"
        texts = ", ".join(found.datasets) or "-"
        facts = (found.kind or "-", found.estimator or "-", tokens, found.formats_text, texts, found.updated or "-")
        rows.append((found.repo_id, *facts))
    return plain_table(rows, width)
