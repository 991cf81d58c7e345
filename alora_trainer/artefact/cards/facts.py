"""What both cards state: the base model, licences, texts, and numbers as a reader wants them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.basics.hub_ids import is_hub_id

_GIT_NAME = re.compile(r"[A-Za-z0-9][\w./-]{0,250}", re.ASCII)
# A backslash is none within `code`, where these texts may stand.
_ESCAPES = {"<": "&lt;", ">": "&gt;", "`": "'", "\\": "/"}


def public_name(name: str | None) -> str:
    """What a model may be called in public: its Hub id, or the last part of its path."""
    if name is None:
        return "an unnamed base model"
    return name if is_hub_id(name) else Path(name).name or "an unnamed base model"


def loadable_name(name: str | None) -> str:
    """What `from_pretrained` takes in a card's code: the Hub id, or a word that says what to put there."""
    return str(name) if is_hub_id(name) else "FOLDER_OF_THE_BASE_MODEL"


def as_markdown(text: str) -> str:
    """A stranger's text for a card: in one line, and as nothing but text, in a table's cell too."""
    line = " ".join(text.split())
    return re.sub(r"[\\`\[\]|<>]", lambda match: _ESCAPES.get(match.group(), f"\\{match.group()}"), line)


def as_python(text: str | None) -> str:
    """A text as a literal of Python, for a card's code."""
    return json.dumps(text) if text is not None else "None"


def git_name(text: Any) -> str | None:
    """A commit, branch or tag as it may stand in an address; None for what is none."""
    return text if isinstance(text, str) and _GIT_NAME.fullmatch(text) else None


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Licences:
    """Licences as the Hub states them, None where it states none or was not asked; never one of our own.

    Attributes:
        stated: what whoever publishes says for the whole.
        base: of the base model.
        data: of each text that went into it, by its Hub id or file name.
    """

    stated: str | None = None
    base: str | None = None
    data: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def for_metadata(self) -> str | None:
        """The licence in the card's metadata: the stated one, or the one that base model and data all have."""
        found = {self.base, *self.data.values()}
        if self.stated is not None:
            return self.stated
        return self.base if len(found) == 1 else None

    @property
    def text(self) -> str:
        """All that is known, in a sentence for the card."""
        parts = [f"of the base model: {self.base or 'not known'}"]
        parts += [f"of {name}: {licence or 'not known'}" for name, licence in self.data.items()]
        known = "Licence " + "; ".join(parts) + "."
        if self.stated is not None:
            return f"Licence: {self.stated}, as its publisher states. {known}"
        return known if self.for_metadata else f"{known} {'They bind' if self.data else 'It binds'} whoever uses this."


def source_text(source: Any) -> str:
    """A source of text in words; a file's folder is nobody's business."""
    if isinstance(source, Mapping):
        named = str(source.get("hub") or Path(str(source.get("path", "a text"))).name)
        details = [str(source[key]) for key in ("name", "split") if source.get(key)]
        if source.get("revision"):
            details.append(f"revision {source['revision']}")
        return named + (f" ({', '.join(details)})" if details else "")
    return str(source)


def data_text(data: Mapping[str, Any]) -> str:
    """What was recorded on, in words."""
    sources = data.get("sources")
    if isinstance(sources, Sequence) and not isinstance(sources, str) and sources:
        return "; ".join(source_text(source) for source in sources)
    rest = ", ".join(f"{key}: {value}" for key, value in data.items())
    return f"not described ({rest})" if rest else "not described"


def dataset_ids(data: Mapping[str, Any]) -> list[str]:
    """The Hub ids of the data sets among the sources."""
    return [name for name in licensed_texts(data) if is_hub_id(name)]


def licensed_texts(data: Mapping[str, Any]) -> list[str]:
    """The texts that have licences of their own: Hub ids, file names, or words for what is not described.

    Text that was sampled from the base model is not among them.
    """
    sources = data.get("sources")
    if not isinstance(sources, Sequence) or isinstance(sources, str) or not sources:
        return ["the text"]
    named = [str(source.get("hub") or source_text(source)) for source in sources if isinstance(source, Mapping)]
    return list(dict.fromkeys(named))
