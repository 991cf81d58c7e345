"""General text: packed into blocks for recording, and held-out documents for measuring what was forgotten."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from alora_trainer.data.encoding import encode, put_before
from alora_trainer.data.self_text import SelfTextConfig
from alora_trainer.data.sources import Source, check_keys, load_texts, named_sources, write_lines
from alora_trainer.errors import ALoRAError

_BATCH = 64  # documents tokenised at a time: enough for the fast tokenizers' threads, little beyond what is taken

# As general.train: no corpus, but text that is sampled from the base model itself.
SELF = "self"


@dataclass
class GeneralConfig:
    """The recipe's section on general text.

    Attributes:
        test: the text that forgetting is measured on: one source, a list of sources or a mapping from name to source; every
            source is reported as a subset.
        train: the text that importance is recorded on, in the same forms, or ``self`` for text that is sampled from the base
            model. Only what trains or measures on general text needs it: nothing does, where a map is given.
        block_length: tokens in one training sequence.
        train_tokens: take this many tokens for training, about the same from every source; None takes all.
        test_bytes: keep this many bytes (UTF-8) of each test source; None keeps all.
        streaming: read and pack the training text on the way; needs record.max_steps, and takes no train_tokens
            (alora.record_tokens stops the recording after so many tokens).
        probe: general text whose loss is watched while protecting (``alora.budget``), in the same forms; None takes what
            train_tokens leaves of ``train`` (or the sampled text, with ``train: self``).
        probe_tokens: take this many tokens for the probe, about the same from every source.
        self_text: with ``train: self``, how text is sampled from the base model: fields of `SelfTextConfig`.

    Raises:
        ALoRAError: a source or a number is not one; settings that exclude each other.
    """

    test: Any
    train: Any = None
    block_length: int = 256
    train_tokens: int | None = None
    test_bytes: int | None = None
    streaming: bool = False
    probe: Any = None
    probe_tokens: int = 16384
    self_text: Any = None

    def __post_init__(self) -> None:
        if self.train == SELF:
            given = self.self_text or {}
            check_keys(given, [f.name for f in fields(SelfTextConfig)], "general.self_text")
            self.self_text = SelfTextConfig(**given)
        elif self.self_text is not None:
            raise ALoRAError("general.self_text is for text sampled from the base model: it needs general.train: self")
        elif self.train is not None:
            self.train = named_sources(self.train, "general.train")
        if self.streaming and self.train_tokens is not None:
            raise ALoRAError(
                "general.streaming takes no general.train_tokens: use alora.record_tokens and record.max_steps"
            )
        self.test = named_sources(self.test, "general.test")
        if self.probe is not None:
            self.probe = named_sources(self.probe, "general.probe")
            for name, source in self.probe.items():
                if source in self.test.values():
                    raise ALoRAError(
                        f"general.probe.{name} is text of general.test: what lambda is steered by cannot be what forgetting is "
                        "measured on; name other general text, or leave general.probe out"
                    )
        check_count(self.block_length, "general.block_length", least=2)
        check_count(self.probe_tokens, "general.probe_tokens", least=self.block_length)
        check_count(self.train_tokens, "general.train_tokens", optional=True, least=self.block_length)
        check_count(self.test_bytes, "general.test_bytes", optional=True)


def check_count(value: object, name: str, *, optional: bool = False, least: int = 1) -> None:
    """Raise ALoRAError unless the value is a whole number of at least ``least`` (or None where that is allowed)."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ALoRAError(f"{name} must be a whole number of at least {least}, not {value!r}")


def pack_general_text(
    sources: Mapping[str, Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_length: int,
    max_tokens: int | None = None,
    after: int | None = None,
    excerpt: int | None = None,
    seed: int = 0,
    base: Path | str = Path("."),
) -> Dataset:
    """Tokenise documents and pack them into blocks.

    Each document begins with what the tokenizer puts before a text (a beginning-of-text token, if that is its habit) and
    ends with the EOS token, whatever the tokenizer would put behind it. The documents of a source are shuffled; the sources
    are interleaved so that each is used up at the same rate. What is left after the last whole block is dropped.

    Args:
        sources: name -> source; see `load_source`.
        tokenizer: must have an EOS token.
        block_length: tokens in a block.
        max_tokens: stop at this many tokens. Each source gives an equal share, and all it has if that is less; others
            then give more. The last document of a share is cut.
        after: leave out the documents that the same call with this ``max_tokens`` would have taken.
        excerpt: take this many tokens of each longer document, from a random place, so that few tokens come from many
            documents.
        seed: of the shuffling; the same seed gives the same blocks.
        base: the folder that relative paths start from.

    Returns:
        A data set with the columns ``input_ids`` and ``labels``, each row a list of ``block_length`` integers.

    Raises:
        ALoRAError: a source cannot be read, or there is not enough text for one block.
    """
    if tokenizer.eos_token_id is None:
        raise ALoRAError("the tokenizer has no EOS token to end documents with: set tokenizer.eos_token")
    subsets = []
    for name, source in sources.items():
        texts = load_texts(source, base=base)
        random.Random(f"{seed}:{name}").shuffle(texts)
        subsets.append(_Subset(_documents(texts, tokenizer)))
    if after is not None:
        _fill(subsets, after)
        for subset in subsets:
            subset.documents, subset.rest = [], None
    if excerpt is not None:
        for name, subset in zip(sources, subsets, strict=True):
            subset.stream = _excerpts(subset.stream, excerpt, random.Random(f"{seed}:{name}:excerpt"))
    _fill(subsets, max_tokens)
    tokens = _interleave(subsets) if any(subset.documents for subset in subsets) else np.empty(0, np.int32)
    count = len(tokens) // block_length
    if count == 0:
        raise ALoRAError(
            f"the general text has only {len(tokens)} tokens, less than one block of {block_length}: "
            "give more text or a smaller block_length"
        )
    blocks = tokens[: count * block_length].reshape(count, block_length)
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks}, features=features)


def write_held_out(
    sources: Mapping[str, Source], folder: Path, *, max_bytes: int | None = None, base: Path | str = Path(".")
) -> dict[str, Path]:
    """Write ``folder/NAME.jsonl`` with the documents (``{"text": ...}``) of every source.

    With ``max_bytes``, documents are taken in the order of a hash of their text, which mixes works and topics and is
    the same everywhere, until that many UTF-8 bytes are reached; the last one is cut, at the end of a paragraph or
    else at white space. Files appear whole or not at all.

    Raises:
        ALoRAError: a source cannot be read or is empty.
    """
    paths = {}
    for name, source in sources.items():
        texts = load_texts(source, base=base)
        if max_bytes is not None:
            texts = _take_bytes(texts, max_bytes)
            if not texts:
                raise ALoRAError(f"test_bytes = {max_bytes} leaves nothing of {name}: raise it")
        paths[name] = Path(folder) / f"{name}.jsonl"
        write_lines(paths[name], ({"text": text} for text in texts))
    return paths


def _documents(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[NDArray[np.int32]]:
    """Token ids of the documents, each ending with EOS; encoded as they are asked for."""
    eos: Any = tokenizer.eos_token_id
    before = put_before(tokenizer)
    for start in range(0, len(texts), _BATCH):
        for ids in encode(tokenizer, texts[start : start + _BATCH], before):
            yield np.asarray(ids if ids and ids[-1] == eos else [*ids, eos], dtype=np.int32)


def _excerpts(
    documents: Iterator[NDArray[np.int32]], length: int, chance: random.Random
) -> Iterator[NDArray[np.int32]]:
    """A piece of `length` tokens from a random place of each longer document."""
    for document in documents:
        start = chance.randrange(max(len(document) - length, 0) + 1)
        yield document[start : start + length]


class _Subset:
    """The documents taken from one source so far; the last one may be cut, and is gone on with if more is taken."""

    def __init__(self, stream: Iterator[NDArray[np.int32]]) -> None:
        self.stream = stream
        self.documents: list[NDArray[np.int32]] = []
        self.rest: NDArray[np.int32] | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    def take(self, count: int) -> int:
        """Take ``count`` tokens more, or all there are; returns how many were taken."""
        missing = count
        while missing > 0:
            if self.rest is not None:
                document = np.concatenate([self.documents.pop(), self.rest])
                missing += len(document) - len(self.rest)
                self.rest = None
            else:
                following = next(self.stream, None)
                if following is None:
                    break
                document = following
            self.documents.append(document[:missing])
            self.rest = document[missing:] if len(document) > missing else None
            missing -= min(missing, len(document))
        return count - missing


def _fill(subsets: list[_Subset], max_tokens: int | None) -> None:
    """Take all, or ``max_tokens`` in equal shares, what one subset lacks being taken from the others."""
    if max_tokens is None:
        for subset in subsets:
            subset.take(sys.maxsize)
        return
    left, active = max_tokens, list(subsets)
    while left > 0 and active:
        share, more = divmod(left, len(active))
        exhausted = []
        for place, subset in enumerate(active):
            wanted = share + (place < more)
            taken = subset.take(wanted)
            left -= taken
            if taken < wanted:
                exhausted.append(subset)
        active = [subset for subset in active if subset not in exhausted]


def _interleave(subsets: list[_Subset]) -> NDArray[np.int32]:
    """One stream of tokens in which every subset is used up at the same rate, whole documents at a time."""
    totals = [subset.tokens for subset in subsets]
    used = [0] * len(subsets)
    queues = [iter(subset.documents) for subset in subsets]
    ordered: list[NDArray[np.int32]] = []
    pending = [index for index, total in enumerate(totals) if total]
    while pending:
        index = min(pending, key=lambda i: used[i] / totals[i])
        ordered.append(next(queues[index]))
        used[index] += len(ordered[-1])
        if used[index] == totals[index]:
            pending.remove(index)
    return np.concatenate(ordered)


def _take_bytes(texts: list[str], limit: int) -> list[str]:
    taken: list[str] = []
    left = limit
    for text in sorted(texts, key=lambda text: (hashlib.sha1(text.encode("utf-8")).hexdigest(), text)):
        size = len(text.encode("utf-8"))
        if size > left:
            text = _cut(text, left)
            if text:
                taken.append(text)
            break
        taken.append(text)
        left -= size
    return taken


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, at most ``limit`` UTF-8 bytes, up to the end of a paragraph, a line or a word."""
    start = text.encode("utf-8")[:limit].decode("utf-8", errors="ignore")
    for mark in ("\n\n", "\n", " "):
        end = start.rfind(mark)
        if end > len(start) // 2:
            return start[:end].rstrip()
    return start.rstrip()
