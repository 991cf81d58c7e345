"""Which weights of a map are meant: by the number of their transformer block, or by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from alora_trainer.errors import ALoRAError

Layers: TypeAlias = Sequence[int | str]

_BLOCK = re.compile(r"\.(\d+)(?=\.)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def block_number(name: str) -> int | None:
    """The transformer block of a weight: 3 for "model.layers.3.self_attn.q_proj", None where there is no number."""
    match = _BLOCK.search(name)
    return int(match.group(1)) if match else None


def block_name(name: str) -> str:
    """A weight's name up to its block's number, or all of it: weights of one block have it in common."""
    match = _BLOCK.search(name)
    return name[: match.end()] if match else name


def select_weights(names: Iterable[str], layers: Layers | None) -> list[str]:
    """The weights in `names` that `layers` means, in their own order.

    Args:
        names: all weights of a map.
        layers: numbers of transformer blocks, and names or patterns ("*.q_proj") of weights; None means all.

    Raises:
        ALoRAError: one of `layers` means none of them.
    """
    names = list(names)
    if layers is None:
        return names
    if isinstance(layers, str):
        raise ALoRAError(f"layers={layers!r} must be a list: numbers of transformer blocks, and names or patterns")
    chosen: set[str] = set()
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, (int, str)):
            raise ALoRAError(
                f"layers has {layer!r}: use numbers of transformer blocks, and names or patterns of weights"
            )
        meant = {name for name in names if _means(layer, name)}
        if not meant:
            known = sorted({number for number in map(block_number, names) if number is not None})
            blocks = f"its blocks are {known[0]} to {known[-1]}, and " if known else ""
            raise ALoRAError(f"the importance map has no layer {layer!r}: {blocks}it has weights such as {names[0]}")
        chosen |= meant
    if not chosen:
        raise ALoRAError("layers is empty: name at least one, or leave it out")
    return [name for name in names if name in chosen]


def _means(layer: int | str, name: str) -> bool:
    return block_number(name) == layer if isinstance(layer, int) else fnmatchcase(name, layer)


def parse_layers(text: str | None) -> list[int | str] | None:
    """Layers from the command line: "0-11,20,*.v_proj".

    Raises:
        ALoRAError: a range goes backwards.
    """
    if text is None:
        return None
    layers: list[int | str] = []
    for item in (part.strip() for part in text.split(",") if part.strip()):
        match = _RANGE.fullmatch(item)
        if match is None:
            layers.append(item)
            continue
        first = int(match.group(1))
        last = int(match.group(2)) if match.group(2) else first
        if last < first or last - first > 100_000:
            raise ALoRAError(f"--layers has {item}, which is no range of layers: write it as 0-11")
        layers += range(first, last + 1)
    return layers
