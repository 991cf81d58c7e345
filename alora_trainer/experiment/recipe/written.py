"""A recipe as it was written: the YAML file with the command line's overrides, before anything of it is understood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alora_trainer.basics.keys import meant_path
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.settings import as_mapping, check_no_secrets, parse_yaml, set_override


def read_written(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe's file as plain data, with overrides in it.

    Args:
        path: the YAML file.
        overrides: by dotted name, over what the file says: plain values ("lora.r": 16), or texts, which are read as YAML
            ("tune.learning_rate": "1e-4").

    Raises:
        ALoRAError: the file is missing or no YAML, a secret is written in it, or an override cannot be put there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ALoRAError(f"the recipe {path} cannot be read: {reason}; {meant_path(path)}".rstrip("; ")) from error
    written = as_mapping(parse_yaml(text, str(path)), str(path))
    check_no_secrets(written, "")  # before any message that could repeat one
    for key, override in (overrides or {}).items():
        set_override(written, key, override)
    return written
