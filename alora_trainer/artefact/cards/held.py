"""What an adapter's card says of the importance map: by what kind of importance it held the training, or that it did not."""

from __future__ import annotations

from dataclasses import dataclass

from alora_trainer.artefact.cards.basis import CURVATURE_DESCRIPTIONS
from alora_trainer.artefact.cards.tuning import Tuning
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import FORMATS, KINDS

# `trainer.initialization.settings.DEFAULT`, as a tuned adapter's file has it: PEFT's own first directions.
DEFAULT = "default"

_PAPER = "[arXiv 2501.13669](https://arxiv.org/abs/2501.13669)"
_COMMON_TAGS: tuple[str, ...] = ("lora", "forgetting")


@dataclass(frozen=True)
class Holding:
    """How the map took part.

    Attributes:
        title: a part of the card's heading.
        words: how the adapter was trained, a part of a sentence after "A LoRA adapter"; Markdown of ours alone.
        limit: what that leaves open, a sentence.
        tags: of the card.
    """

    title: str
    words: str
    limit: str
    tags: tuple[str, ...]


def holding(tuning: Tuning) -> Holding:
    """How the map held the training of an adapter, by the map's storage format, which is of one kind of importance."""
    protection = tuning.protection
    if protection.get("lam") == 0 and protection.get("budget") is None:
        title, words = "tuned beside an importance map", "trained on a domain; the map held nothing"
        if protection.get("init_adapter") not in (None, DEFAULT):
            title = "tuned from where an importance map says"
            words = (
                "trained on a domain from first directions that an importance map chose; nothing held it from there on"
            )
        return Holding(title, words, "Nothing held the training: what mattered before may be lost.", _COMMON_TAGS)
    storage = tuning.map.get("storage")
    kind = FORMATS[storage].kind if isinstance(storage, str) and storage in FORMATS else None
    words, tags = "trained on a domain with a penalty on moving ", _COMMON_TAGS
    if kind is not None:
        tags = (f"{kind}-regularization", *tags)
    if kind == ELEMENTWISE:
        words += f"those elements of the weights that an importance map says mattered before ({_PAPER}, eq. 16-18)"
    elif kind is None:
        words += f"the weights where an importance map says that it matters (the penalty of {_PAPER})"
    else:
        words += "the weights in directions that an importance map says matter: "
        words += f"`{KINDS[kind].formula}` for a movement D of one weight"
        if tuning.map.get("estimator") in CURVATURE_DESCRIPTIONS:
            words += f". {KINDS[kind].meaning} The penalty is that of {_PAPER} on this curvature"
        else:
            words += f", recorded along a training (the method of {_PAPER} in other coordinates)"
    return Holding(
        "tuned while its general ability was held",
        words,
        "The penalty holds what was important for the text that the map was recorded on. What mattered elsewhere may be lost.",
        tags,
    )
