"""Which items were answered rightly, compactly enough to be committed, for paired statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from alora_trainer.errors import ALoRAError


def pack_correct(correct: Sequence[float | bool]) -> str:
    """One bit an item (1: right), the first item in the highest bit of the first byte, in hexadecimal digits."""
    return np.packbits(np.asarray(correct, dtype=bool)).tobytes().hex()


def unpack_correct(text: str, items: int) -> np.ndarray:
    """What `pack_correct` packed, as an array of `items` zeros and ones (float64).

    Raises:
        ALoRAError: the text is no hexadecimal number of that many bits.
    """
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    except (ValueError, TypeError) as error:
        raise ALoRAError(f"'correct' holds no hexadecimal digits ({error}): the results are damaged") from error
    if not items <= len(bits) < items + 8:
        raise ALoRAError(f"'correct' holds {len(bits)} bits for {items} items: the results are damaged")
    return bits[:items].astype(np.float64)


def digest_items(hashes: Iterable[str]) -> str:
    """Tells whether two evaluations asked the same items in the same order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
