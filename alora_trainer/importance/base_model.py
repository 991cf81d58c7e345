"""Whether a map was recorded on the base model at hand: by the commit it was loaded from, and by a few of its weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.trained_weight import TrainedWeight, sampled

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
    if name is None or not is_hub_id(name):
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / part
    return folder if folder.is_dir() else None


def named_base(importance: ImportanceValues) -> str:
    """The base model that a map names, for the middle of a sentence."""
    return f" ({importance.info.base_model})" if importance.info.base_model else ""


def check_base(
    model: torch.nn.Module,
    importance: ImportanceValues,
    weights: Mapping[str, TrainedWeight],
    *,
    merged: bool = False,
    allow_other_revision: bool = False,
) -> None:
    """Refuse a model whose base is not the one that a map was recorded on.

    Args:
        model: with `weights` in it.
        importance: the map: it has the base model's commit, and a few elements of each weight.
        weights: by name, those of the model that the map knows.
        merged: the map's own adapter is merged into the base of the model.
        allow_other_revision: only warn of other base weights; that an adapter is merged or not is refused in any case.

    Raises:
        ALoRAError: another commit or other base weights; the adapter is in the base and should not be, or the other way round.
    """
    complaint = _other_revision(base_revision(model), importance.info.base_revision)
    compared = list(_compared(importance, weights))
    if complaint is None:
        changed = (name for name, here, bare, joined in compared if not _close(here, joined if merged else bare))
        name = next(changed, None)
        complaint = None if name is None else f"other base weights: those of {name} differ"
    if complaint is not None:
        named = named_base(importance)
        if not allow_other_revision:
            otherwise = (
                "merge the map's own adapter into the base that the map names, or say start='bare'"
                if merged
                else "load the base model that the map names, record a map for this one"
            )
            raise ALoRAError(
                f"the importance map was recorded on {complaint}{named}; {otherwise}, or set allow_other_revision"
            )
        logger.warning(f"the importance map was recorded on {complaint}{named}; going on, as allow_other_revision says")
    _check_merged(compared, merged)


def check_whole_base(importance: ImportanceValues, weights: Sequence[TrainedWeight]) -> None:
    """Refuse whole weights that are to be held at the base weights a map was measured at, and are others.

    Args:
        importance: the map.
        weights: of the model, before they were tuned.

    Raises:
        ALoRAError: a weight is not as it was.
    """
    for weight in weights:
        recorded = importance.base_samples.get(weight.name)
        if not recorded:
            continue
        flat = weight.matrices[0].flatten()
        here = flat[sampled(flat.numel())].float().cpu().tolist()
        if len(here) != len(recorded) or not _close(here, recorded):
            raise ALoRAError(
                f"the importance map holds weights at those of the base model{named_base(importance)}, and {weight.name} is "
                "another one: load the base model as it was measured (a checkpoint is named to train, not loaded before)"
            )


def _compared(
    importance: ImportanceValues, weights: Mapping[str, TrainedWeight]
) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    """Of every weight whose base can be compared: its name, a few elements here, the recorded ones, and these with the map's
    own adapter added."""
    for name, weight in weights.items():
        here, bare = weight.base_sample(), importance.base_samples.get(name)
        if not here or not bare or not isinstance(weight, AdaptedWeight):
            continue
        reference = importance.reference[name]
        added = weight.sample_of(reference.a, reference.b, reference.scaling)
        if len(added) != len(bare):
            raise ALoRAError(f"the sample of base weights of {name} is damaged in the importance map: record it again")
        yield name, here, bare, [x + y for x, y in zip(bare, added, strict=True)]


def _check_merged(compared: Sequence[tuple[str, list[float], list[float], list[float]]], merged: bool) -> None:
    """The adapter may have moved the weights by less than the tolerance of a single one: all of them together tell."""
    bare_off = sum(_squared_distance(here, bare) for _, here, bare, _ in compared)
    merged_off = sum(_squared_distance(here, joined) for _, here, _, joined in compared)
    said, other = (merged_off, bare_off) if merged else (bare_off, merged_off)
    if other < said / 4:
        bare_text, merged_text = "as recorded", "with the recorded adapter in it"
        found, wanted = (bare_text, merged_text) if merged else (merged_text, bare_text)
        raise ALoRAError(
            f"the base weights are {found}, and should be {wanted}: "
            + ("merge the map's adapter first, or say start='bare'" if merged else "load the base model as it was")
        )


def _squared_distance(here: Sequence[float], there: Sequence[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(here, there, strict=True))


def _other_revision(here: str | None, recorded: str | None) -> str | None:
    """A complaint, if both are commits and not the same; the name of a branch tells nothing."""
    if here == recorded or not all(_COMMIT.fullmatch(revision or "") for revision in (here, recorded)):
        return None
    return f"another revision of the base model, {recorded} and not {here}"


def _close(here: Sequence[float], expected: Sequence[float]) -> bool:
    scale = max(max(map(abs, expected)), max(map(abs, here)))
    return all(abs(x - y) <= _TOLERANCE * scale for x, y in zip(here, expected, strict=True))
