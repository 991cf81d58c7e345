"""Text as tokens, and where in them an answer begins: one way for what is trained on and what is scored.

A tokenizer's post-processor may put tokens of its own before a text (beginning of text, a language code) and behind it (end of
text, a separator). What stands before belongs to the context, and stands there once, also where the text itself begins with
it; what stands behind is left out: it would part a prompt from its answer, and is no part of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from alora_trainer.errors import ALoRAError

# Texts that show what a post-processor does; a tokenizer may know none of a text's characters.
_PROBES = ("Question: one, two\nAnswer: three", "x", "7")


class Pair(NamedTuple):
    """A prompt and its completion as tokens.

    Attributes:
        context: what the post-processor puts before a text, and the prompt.
        continuation: the completion, with the white space between the two unless it is in one token with the prompt's end.
        merged: whether a letter of the completion is in one token with the prompt's end. The two are then parted where the
            prompt's own encoding is as long, as lm-eval does; ``continuation`` is not the whole completion.
    """

    context: list[int]
    continuation: list[int]
    merged: bool


def put_before(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text of its own accord.

    Raises:
        ALoRAError: it adds tokens elsewhere than before and behind a text, or other ones for other texts.
    """
    found = [_before(tokenizer, text) for text in _PROBES]
    if all(before is None for before in found):  # all of them unknown to it: any word of its vocabulary will do
        special = set(tokenizer.all_special_ids)
        words = islice((token for token in tokenizer.get_vocab().values() if token not in special), 8)
        found = [_before(tokenizer, tokenizer.decode([token])) for token in words]
    told = [before for before in found if before is not None]
    if not told or any(before != told[0] for before in told):
        raise _not_told()
    return told[0]


def text_start(tokenizer: Any) -> list[int]:
    """The tokens that a text's first one is predicted from: what the tokenizer puts there, else its BOS, else its EOS.

    Raises:
        ALoRAError: it has none of these.
    """
    if before := put_before(tokenizer):
        return before
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise ALoRAError(
        "the tokenizer has no beginning- or end-of-text token to start a text with: set tokenizer.eos_token"
    )


def encode_bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The texts' own tokens, without any that the post-processor adds."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return encoded


def encode(tokenizer: Any, texts: Sequence[str], before: list[int] | None = None) -> list[list[int]]:
    """The texts' tokens after what the post-processor puts before a text (once), without what it puts behind.

    Args:
        tokenizer: the model's.
        texts: what to encode.
        before: `put_before` of the tokenizer, for who encodes texts one by one.
    """
    before = put_before(tokenizer) if before is None else before
    return [_once(before, ids) for ids in encode_bare(tokenizer, texts)]


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Prompts and their completions, parted as lm-eval parts them: encoded together, and cut where the prompt ends.

    White space at the end of a prompt goes to the completion. Where it makes one token with the prompt's end (as a colon and
    a line break do in some vocabularies), that token is context. A blank prompt is `text_start`.

    Args:
        tokenizer: the model's.
        pairs: prompt and completion, which begins with whatever parts the two.

    Raises:
        ALoRAError: see `put_before`.
    """
    before = put_before(tokenizer)
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    contexts = [_once(before, ids) for ids in encode_bare(tokenizer, prompts)]
    wholes = [
        _once(before, ids) for ids in encode_bare(tokenizer, [prompt + completion for prompt, completion in pairs])
    ]
    encoded = []
    for (prompt, completion), bare, context, whole in zip(pairs, prompts, contexts, wholes, strict=True):
        if not bare:
            encoded.append(_after_nothing(tokenizer, prompt + completion))
            continue
        rest = (prompt + completion)[len(bare) :]
        start = _start_of_answer(tokenizer, before, bare, rest, context, whole)
        if start is None:
            encoded.append(Pair(context, whole[len(context) :], merged=True))
        else:
            encoded.append(Pair(whole[:start], whole[start:], merged=False))
    return encoded


def _start_of_answer(
    tokenizer: Any, before: list[int], prompt: str, rest: str, context: list[int], whole: list[int]
) -> int | None:
    """The number of tokens of the prompt, with as much white space behind it as makes a token with its end; None: no cut."""
    if whole[: len(context)] == context:
        return len(context)
    for spaces in range(1, len(rest) - len(rest.lstrip()) + 1):
        (longer,) = encode_bare(tokenizer, [prompt + rest[:spaces]])
        longer = _once(before, longer)
        if len(longer) < len(whole) and whole[: len(longer)] == longer:
            return len(longer)
    return None


def _after_nothing(tokenizer: Any, text: str) -> Pair:
    start = text_start(tokenizer)
    return Pair(start, _once(start, encode_bare(tokenizer, [text])[0])[len(start) :], merged=False)


def _once(before: list[int], ids: list[int]) -> list[int]:
    return ids if ids[: len(before)] == before else before + ids


def _before(tokenizer: Any, text: str) -> list[int] | None:
    """What is put before `text`; None if it has no token by which that can be told."""
    own = encode_bare(tokenizer, [text])[0]
    if not set(own) - set(tokenizer.all_special_ids):
        return None
    whole: list[int] = tokenizer(text, verbose=False)["input_ids"]
    starts = [start for start in range(len(whole) - len(own) + 1) if whole[start : start + len(own)] == own]
    if len(starts) != 1:
        raise _not_told()
    return whole[: starts[0]]


def _not_told() -> ALoRAError:
    return ALoRAError(
        "which tokens of a text are its own, and which the tokenizer added, cannot be told: give it a post-processor that puts "
        "the same tokens before and behind every text, or none"
    )
