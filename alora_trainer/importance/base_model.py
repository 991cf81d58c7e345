"""Whether a map was recorded on the base model at hand: by the commit it was loaded from, and by a few of its weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.info import ImportanceInfo

logger = logging.getLogger(__name__)

# A base weight may be off by bf16 rounding (0.4 %) between two copies of one model, not by more.
_TOLERANCE = 0.02
_COMMIT = re.compile(r"[0-9a-f]{40}")


def base_revision(model: torch.nn.Module) -> str | None:
    """The commit that a base model was loaded from, where that is known."""
    return getattr(getattr(model, "config", None), "_commit_hash", None)


def check_base(
    model: torch.nn.Module,
    weights: Sequence[AdaptedWeight],
    info: ImportanceInfo,
    samples: Mapping[str, list[float] | None],
    *,
    allow_other_revision: bool,
) -> None:
    """Raise ALoRAError if the base model is another one than the map's; only warn if that is allowed.

    Args:
        model: with `weights` in it.
        info, samples: of the map: the base model's commit, and a few elements of each weight.
    """
    complaint = _other_revision(base_revision(model), info.base_revision)
    if complaint is None:
        changed = [w.name for w in weights if not _same_values(w.base_sample(), samples.get(w.name))]
        complaint = f"other base weights: those of {changed[0]} differ" if changed else None
    if complaint is None:
        return
    named = f" ({info.base_model})" if info.base_model else ""
    if allow_other_revision:
        logger.warning(f"the importance map was recorded on {complaint}{named}; going on, as allow_other_revision says")
        return
    raise ALoRAError(
        f"the importance map was recorded on {complaint}{named}; load the base model that the map names, record a map for "
        "this one, or set allow_other_revision"
    )


def _other_revision(here: str | None, recorded: str | None) -> str | None:
    """A complaint, if both are commits and not the same; the name of a branch tells nothing."""
    if here == recorded or not all(_COMMIT.fullmatch(revision or "") for revision in (here, recorded)):
        return None
    return f"another revision of the base model, {recorded} and not {here}"


def _same_values(here: list[float] | None, recorded: list[float] | None) -> bool:
    if not here or not recorded:
        return True
    if len(here) != len(recorded):
        return False
    scale = max(max(map(abs, recorded)), max(map(abs, here)))
    return all(abs(x - y) <= _TOLERANCE * scale for x, y in zip(here, recorded, strict=True))
