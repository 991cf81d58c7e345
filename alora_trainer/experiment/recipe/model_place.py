"""Where `model.path` leads: a folder of this machine, or a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from alora_trainer.basics.hub_ids import is_model_id
from alora_trainer.basics.keys import nearest
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.settings import resolve_path


def model_place(written: str, base: Path) -> Path | None:
    """The folder that `model.path` names; None for an id of the Hub.

    What looks like an id and begins with a folder that is there (``models/lama`` beside ``models/llama``) is taken for a path:
    the Hub would only be asked for it, and a connection be blamed.

    Raises:
        ALoRAError: it is a path, and there is no such folder; the message has the nearest one.
    """
    path = resolve_path(written, base)
    if path.is_dir():
        return path
    beside = path.parent if path.parent.is_dir() else None
    parted = beside is not None and beside.resolve() != base.resolve()
    if is_model_id(written) and not path.exists() and not parted:
        return None
    near = None
    if beside is not None:
        near = nearest(path.name, sorted(one.name for one in beside.iterdir() if one.is_dir()))
    meant = f"did you mean {written.removesuffix(path.name)}{near}? " if near else ""
    raise ALoRAError(
        f"there is no model folder {written} (looked in {base.resolve()}): {meant}set model.path to a folder or to a Hub id"
    )
