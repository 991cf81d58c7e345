"""Whether the text that was recorded on holds the test items: runs of 13 words that both have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

RUN_WORDS = 13
_WORD = re.compile(r"\w+")
_EXAMPLES = 10


def word_runs(text: str, words: int = RUN_WORDS) -> Iterator[tuple[str, ...]]:
    """All runs of so many consecutive words, letter case and everything between words left aside."""
    found = _WORD.findall(text.casefold())
    for start in range(len(found) - words + 1):
        yield tuple(found[start : start + words])


def find_overlap(
    documents: Iterable[str], items: Mapping[Any, Sequence[str]], *, words: int = RUN_WORDS
) -> dict[str, Any]:
    """Which items share a run of `words` words with any of the documents.

    Args:
        documents: the text that was recorded on.
        items: an item's name -> its texts (the prompt, every choice); no run goes over the end of a text.
        words: length of a run. 13 is what GPT-3's authors took (Brown et al. 2020, appendix C).

    Returns:
        ``run_words``; ``items``; ``long_enough``, the items that have any run of that length; ``overlapping``, how many of them
        share one; ``examples``, the names of the first ones with the first run that they share; ``documents``, how many were
        looked at.
    """
    owners: dict[tuple[str, ...], list[Any]] = {}
    long_enough = set()
    for name, texts in items.items():
        for text in texts:
            for run in word_runs(text, words):
                owners.setdefault(run, []).append(name)
                long_enough.add(name)
    shared: dict[Any, str] = {}
    count = 0
    for count, document in enumerate(documents, start=1):  # noqa: B007 (used below)
        for run in word_runs(document, words):
            for name in owners.get(run, ()):
                shared.setdefault(name, " ".join(run))
    examples = [{"item": name, "run": shared[name]} for name in items if name in shared][:_EXAMPLES]
    return {
        "run_words": words,
        "items": len(items),
        "long_enough": len(long_enough),
        "overlapping": len(shared),
        "examples": examples,
        "documents": count,
    }


def decoded_documents(blocks: Iterable[Sequence[int]], tokenizer: Any, limit: int | None = None) -> Iterator[str]:
    """The documents of packed blocks of tokens, as text again: parted at EOS, put together over the ends of blocks.

    Args:
        blocks: the token ids of every block, in the order in which they were packed.
        tokenizer: that they were made with.
        limit: stop after so many tokens.
    """
    waiting: list[int] = []
    seen = 0
    for block in blocks:
        ids = list(block) if limit is None else list(block)[: limit - seen]
        seen += len(ids)
        for token in ids:
            if token != tokenizer.eos_token_id:
                waiting.append(token)
            elif waiting:
                yield tokenizer.decode(waiting, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                waiting = []
        if limit is not None and seen >= limit:
            break
    if waiting:
        yield tokenizer.decode(waiting, skip_special_tokens=True, clean_up_tokenization_spaces=False)
