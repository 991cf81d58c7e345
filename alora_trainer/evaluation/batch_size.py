"""How many sequences fit at once."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import find_executable_batch_size

_MOST = 256
# A CPU gives no warning before memory runs out, so there the logits of a batch are kept below this.
_CPU_LOGITS_BYTES = 2**29


def largest_batch_size(model: Any, length: int, device: torch.device | str) -> int:
    """How many sequences of `length` tokens `model` scores at once without running out of memory.

    On a GPU it is tried, from many downwards by a tenth; on a CPU it is reckoned from the size of the logits.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)
    device = torch.device(device)

    def attempt(batch_size: int) -> int:
        with torch.no_grad():
            logits = model(torch.ones(batch_size, length, dtype=torch.long, device=device)).logits
            torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        return batch_size

    if device.type == "cpu":
        fitting = max(_CPU_LOGITS_BYTES // (length * vocabulary * 4), 1)
        return int(min(_MOST, 2 ** (fitting.bit_length() - 1)))
    found = find_executable_batch_size(attempt, starting_batch_size=_MOST)()
    torch.cuda.empty_cache()
    return int(found)
