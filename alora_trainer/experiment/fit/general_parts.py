"""General text in four parts that have no document in common: to measure the map, to steer, to choose the scale, to promise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from alora_trainer.errors import ALoRAError

# Part -> its share of the text. What the promise rests on is the largest; a map needs little (docs/fit.md).
PARTS = {"record": 0.25, "steer": 0.15, "choose": 0.2, "promise": 0.4}
# About so many bytes make a token, in English and with a vocabulary of a usual size: it only decides how much is kept.
_BYTES = 4
# With fewer documents than this, each is cut into passages, so that there are enough for every part.
_MANY = 400
_PASSAGE = 1200  # bytes, about
_PARAGRAPH = re.compile(r"\n\s*\n|(?<=[.!?])\s+(?=[A-Z\"'(])|\n")


def in_parts(sources: Mapping[str, Sequence[str]], tokens: int) -> dict[str, dict[str, list[str]]]:
    """Part -> source -> documents; each document in one part, whichever source has it again.

    Documents go to parts in the order of a hash of their text, which mixes works and topics and is the same everywhere. Of each
    source about the same number of bytes is taken, all it has if that is less.

    Args:
        sources: source -> its documents.
        tokens: to keep in all, about.

    Raises:
        ALoRAError: there is not enough text for four parts.
    """
    parts: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    seen: set[str] = set()
    for name, texts in sources.items():
        chosen = sample_of(texts, tokens // len(sources), seen)
        size, used = sum(map(_size, chosen)), 0
        for text in chosen:
            parts[_part_at(used / size)].setdefault(name, []).append(text)
            used += _size(text)
    empty = [part for part, own in parts.items() if not own]
    if empty:
        raise ALoRAError(
            f"the general text is too little for its four parts ({', '.join(PARTS)}): give more documents, or leave --general "
            "out and let it be sampled from the model"
        )
    return parts


def sample_of(texts: Sequence[str], tokens: int, seen: set[str] | None = None) -> list[str]:
    """About so many tokens of a source's documents, or of their passages where they are few, in the order of a hash.

    Args:
        texts: the documents.
        tokens: about.
        seen: hashes of what is not to be taken again; those of the source are added.
    """
    return _up_to(_mixed(passages(texts), set() if seen is None else seen), tokens * _BYTES)


def passages(texts: Sequence[str]) -> list[str]:
    """The documents, if there are many; else their passages, cut at the ends of paragraphs or sentences."""
    if len(texts) >= _MANY:
        return list(texts)
    found = []
    for text in texts:
        passage = ""
        start = 0
        for end in (match.end() for match in _PARAGRAPH.finditer(text)):
            passage += text[start:end]
            start = end
            if _size(passage) >= _PASSAGE:
                found.append(passage.strip())
                passage = ""
        found.append((passage + text[start:]).strip())
    return [passage for passage in found if passage]


def _mixed(texts: Sequence[str], seen: set[str]) -> list[str]:
    by_hash = {hashlib.sha1(text.encode("utf-8")).hexdigest(): text for text in texts}
    new = sorted(set(by_hash) - seen)
    seen.update(new)
    return [by_hash[one] for one in new]


def _up_to(texts: Sequence[str], room: int) -> list[str]:
    kept = []
    for text in texts:
        if room <= 0:
            break
        kept.append(text)
        room -= _size(text)
    return kept


def _part_at(share: float) -> str:
    reached = 0.0
    for part, own in PARTS.items():
        reached += own
        if share < reached:
            return part
    return next(reversed(PARTS))


def _size(text: str) -> int:
    return len(text.encode("utf-8"))
