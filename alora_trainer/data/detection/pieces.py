"""Plain text as items: pieces that fit a sequence, each a short beginning and what goes on from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from alora_trainer.data.encoding import encode_bare

_WORD = re.compile(r"\S+\s*")
# Words of a piece that are its prompt; all of the piece is learned (`loss_on: all`), so they only need to be some.
_PROMPT_WORDS = 8
# Of the length of a sequence: words have more tokens in some places than on average.
_ROOM = 0.9


def pieces(text: str, tokenizer: Any, max_length: int) -> Iterator[dict[str, str]]:
    """``{prompt, completion}`` for every piece of a document, cut between words, of at most about `max_length` tokens.

    Together they are the document, but for white space at its beginning; what is too short to have both parts is left out.
    """
    words = _WORD.findall(text.strip())
    tokens = len(encode_bare(tokenizer, [text])[0])
    most = max(int(_ROOM * max_length * len(words) / max(tokens, 1)), 2 * _PROMPT_WORDS)
    count = max(-(-len(words) // most), 1)
    edges = [
        len(words) * place // count for place in range(count + 1)
    ]  # all about as long, so that no end is too short
    for start, end in pairwise(edges):
        own = words[start:end]
        if len(own) > _PROMPT_WORDS:
            prompt, rest = "".join(own[:_PROMPT_WORDS]), "".join(own[_PROMPT_WORDS:])
            between = prompt[len(prompt.rstrip()) :]
            yield {"prompt": prompt.rstrip(), "completion": between + rest.rstrip()}
