"""Whether a map was recorded on the base model at hand: by the commit it was loaded from, and by a few of its weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.info import ImportanceInfo

logger = logging.getLogger(__name__)

# A base weight may be off by bf16 rounding (0.4 %) between two copies of one model, not by more.
_TOLERANCE = 0.02
_COMMIT = re.compile(r"[0-9a-f]{40}")


def base_revision(model: torch.nn.Module) -> str | None:
    """The commit that a base model was loaded from, where that is certain.

    Older versions of transformers note it as ``config._commit_hash``, newer ones nowhere; then `remember_revision` has noted it
    for models that were loaded by this package, and for others it is certain if the Hub's cache has one commit only.
    """
    config = getattr(model, "config", None)
    noted = getattr(config, "_commit_hash", None)
    if noted is not None:
        return str(noted)
    snapshots = _cache_folder(getattr(config, "_name_or_path", None), "snapshots")
    commits = [path.name for path in snapshots.iterdir()] if snapshots is not None else []
    return commits[0] if len(commits) == 1 else None


def remember_revision(model: torch.nn.Module, revision: str | None) -> None:
    """Note on a model that was just loaded which commit it is of.

    Args:
        revision: the branch, tag or commit that it was loaded at; None is main.
    """
    config: Any = model.config
    commit = commit_of(config._name_or_path, revision or "main")
    if commit is not None:
        config._commit_hash = commit


def commit_of(name: str | None, revision: str, kind: str = "model") -> str | None:
    """The commit that a branch or tag of a repository was when the Hub's cache last saw it; None if it never did."""
    if _COMMIT.fullmatch(revision):
        return revision
    refs = _cache_folder(name, "refs", kind)
    path = refs / revision if refs is not None else None
    return path.read_text(encoding="ascii").strip() if path is not None and path.is_file() else None


def _cache_folder(name: str | None, part: str, kind: str = "model") -> Path | None:
    """A folder of a repository in the cache; None for what is no Hub id or not there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if not name or name.count("/") != 1 or Path(name).exists():
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / part
    return folder if folder.is_dir() else None


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
