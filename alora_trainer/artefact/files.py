"""What a folder or Hub repository with an importance map holds; how it gets there, `map_folder` says.

importance_config.json      written last; names, shapes, dtypes and checksums of everything else (see `config_file`)
importance.safetensors      Omega by module name, in the map's first storage format
importance.FORMAT.safetensors      the same in a further storage format
adapter_model.safetensors, adapter_config.json      theta*, an ordinary PEFT adapter; or, of a training without one,
reference.safetensors       theta* by the names of Omega
layer_importance.json       importance per layer, and layer_importance.png, a picture of it (where matplotlib is installed)
README.md                   model card

Omega may be spread over several files, importance-00001-of-00004.safetensors and so on, with an index beside them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError

CONFIG_FILE = "importance_config.json"
OMEGA_FILE = "importance.safetensors"
INDEX_FILE = "importance.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
REFERENCE_FILE = "reference.safetensors"
LAYERS_FILE = "layer_importance.json"
HEATMAP_FILE = "layer_importance.png"
CARD_FILE = "README.md"

_SHARD = r"(-\d{5}-of-\d{5})?"
_OMEGA = re.compile(rf"importance(\.[a-z0-9_]+)?{_SHARD}\.safetensors")
_INDEX = re.compile(r"importance(\.[a-z0-9_]+)?\.safetensors\.index\.json")
_OTHERS = (CONFIG_FILE, ADAPTER_FILE, ADAPTER_CONFIG_FILE, REFERENCE_FILE, LAYERS_FILE, HEATMAP_FILE, CARD_FILE)

# More than any importance_config.json needs: a model with 40,000 adapted weights has 20 MB.
_LARGEST_JSON = 1 << 28


def omega_file(storage: str | None, shard: int = 1, shards: int = 1) -> str:
    """The name of a file with Omega; `storage` is None for the map's first format.

    Raises:
        ALoRAError: the format's name cannot be a part of one.
    """
    stem = "importance" if storage is None else f"importance.{storage}"
    name = f"{stem}.safetensors" if shards == 1 else f"{stem}-{shard:05d}-of-{shards:05d}.safetensors"
    if not is_omega_file(name):
        raise ALoRAError(
            f"the storage format {storage!r} cannot be written beside another one: name it in lower-case letters, digits "
            "and underscores"
        )
    return name


def index_file(storage: str | None) -> str:
    """The name of the index of Omega's files, where there are several."""
    return f"{omega_file(storage)}.index.json"


def is_omega_file(name: str) -> bool:
    """Whether a file of this name is one with Omega: never a path, and no other file of ours."""
    return _OMEGA.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether an importance map may have a file of this name."""
    return name in _OTHERS or is_omega_file(name) or _INDEX.fullmatch(name) is not None


def is_replaceable(name: str) -> bool:
    """Whether a new map leaves no file of this name from an older one beside it."""
    return is_omega_file(name) or _INDEX.fullmatch(name) is not None or name == REFERENCE_FILE


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON; NaN and infinity are no JSON."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else may have written.

    Raises:
        ALoRAError: it is too large or no JSON, a key is there twice, or a number is not finite.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ALoRAError(f"{path} has {path.stat().st_size:,} bytes: no file of an importance map is that large")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}): fetch or record the map again"
        ) from error
    if not isinstance(content, dict):
        raise ALoRAError(f"{path} is damaged (a {type(content).__name__}, no object): fetch or record the map again")
    return content


def shown(value: object) -> str:
    """A stranger's value for an error message: in quotes, and not for ever."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_json(text: str) -> Any:
    """`json.loads` for untrusted text. Raises ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def check_inside(folder: Path, name: str) -> Path:
    """The path of a map's file, which must be a plain file of this folder.

    The Hub's cache keeps a snapshot's files as links into the repository's own ``blobs``; no other link is followed.

    Raises:
        ALoRAError: it is missing, no file, or a link to somewhere else.
    """
    path = folder / name
    if not path.is_file():
        raise ALoRAError(f"the importance map is not whole: {path} is missing")
    real, home = path.resolve(), folder.resolve()
    cached = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    if real.parent != home and not cached:
        raise ALoRAError(f"{path} is a link to {real}, outside of the importance map: put the file itself there")
    return path


def sizes(folder: Path) -> Mapping[str, int]:
    """Bytes of every file in `folder` by name."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
