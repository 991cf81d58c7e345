"""General text as a stream: packed as it is read, so that a corpus of any size costs neither memory nor time in advance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import IterableDataset, interleave_datasets
from transformers import PreTrainedTokenizerBase

from alora_trainer.data.encoding import encode, put_before
from alora_trainer.data.sources import Source, check_text, stream_records
from alora_trainer.errors import ALoRAError

# Documents that are shuffled among each other: a stream cannot be shuffled as a whole.
SHUFFLE_BUFFER = 1000


def stream_general_text(
    sources: Mapping[str, Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    block_length: int,
    seed: int = 0,
    base: Path | str = Path("."),
) -> IterableDataset:
    """Blocks of packed general text, read and tokenised on the way; give the Trainer ``max_steps`` with it.

    Documents are shuffled within a buffer of `SHUFFLE_BUFFER`, sources take turns until the last one is used up, every
    document ends with the EOS token, and what is left after the last whole block is dropped.

    Args:
        sources: name -> source; see `sources.load_source`. Hub data sets are streamed, too.
        tokenizer: must have an EOS token.
        block_length: tokens in a block.
        seed: of the shuffling.
        base: the folder that relative paths start from.

    Returns:
        A stream with the columns ``input_ids`` and ``labels``, each row a list of `block_length` integers.

    Raises:
        ALoRAError: the tokenizer has no EOS token; a source cannot be found. While reading: a record cannot be used.
    """
    if tokenizer.eos_token_id is None:
        raise ALoRAError("the tokenizer has no EOS token to end documents with: set tokenizer.eos_token")
    streams = []
    for source in sources.values():
        next(_documents(source, str(base)), None)  # what is wrong with the source is known before training
        stream = IterableDataset.from_generator(_documents, gen_kwargs={"source": source, "base": str(base)})
        streams.append(stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER))
    mixed = streams[0] if len(streams) == 1 else interleave_datasets(streams, stopping_strategy="all_exhausted")
    return IterableDataset.from_generator(
        _blocks, gen_kwargs={"documents": mixed, "tokenizer": tokenizer, "block_length": block_length}
    )


def _documents(source: Source, base: str) -> Iterator[dict[str, str]]:
    for row in stream_records(source, base=base, text_only=True):
        text = check_text(row)
        if text.strip():
            yield {"text": text}


def _blocks(documents: IterableDataset, tokenizer: Any, block_length: int) -> Iterator[dict[str, list[int]]]:
    waiting: list[int] = []
    before = put_before(tokenizer)
    for document in documents:
        (ids,) = encode(tokenizer, [document["text"]], before)
        waiting += ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        while len(waiting) >= block_length:
            block, waiting = waiting[:block_length], waiting[block_length:]
            yield {"input_ids": block, "labels": list(block)}
