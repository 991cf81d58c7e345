"""What may be the id of a repository on the Hub, and what is a folder."""

from __future__ import annotations

import re
from pathlib import Path

# In front of an id where a path could stand as well: "hub:organisation/name".
HUB_PREFIX = "hub:"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OLD_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str | Path | None) -> bool:
    """Whether a name is "organisation/name", as a model's or data set's id on the Hub is, and no path of this machine.

    What exists here under this name is taken for a path. Whether the Hub has such a repository is not asked.
    """
    return name is not None and _HUB_ID.fullmatch(str(name)) is not None and not Path(name).exists()


def is_model_id(name: str) -> bool:
    """The same, or the id of one of the Hub's first models, which have no organisation ("gpt2")."""
    return is_hub_id(name) or (_OLD_HUB_ID.fullmatch(name) is not None and not Path(name).exists())
