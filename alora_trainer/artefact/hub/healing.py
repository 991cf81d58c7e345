"""Files that did not arrive as they were sent: they are known by their names in the Hub's cache, and fetched again once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import hf_hub_download

from alora_trainer.artefact.hub.errors import hub_errors, is_wrong_length
from alora_trainer.errors import ALoRAError

Value = TypeVar("Value")
_CHUNK = 1 << 24


def whole(download: Callable[[], Value]) -> Value:
    """`download`, and once more if a file came with another length than the Hub had announced."""
    try:
        return download()
    except OSError as error:
        if not is_wrong_length(error):
            raise
        return download()


def healed(
    read: Callable[[], Value], repo_id: str, folder: Path, files: Callable[[], Sequence[str]], token: str | bool | None
) -> Value:
    """`read`, and once more if it finds damage and files of the cache are not what was sent, which are then fetched again.

    Args:
        read: what reads them.
        repo_id: the repository.
        folder: its snapshot in the Hub's cache, whose name is the commit.
        files: names those that `read` needs.
        token: as in `huggingface_hub`.

    Raises:
        ALoRAError: `read` says so, and no file is other than sent, or it says so again.
    """
    try:
        return read()
    except ALoRAError as error:
        damaged = [name for name in files() if (folder / name).is_file() and not _is_as_sent(folder / name)]
        if not damaged:
            raise
        with hub_errors(repo_id, folder.name, f"fetched again, which is needed as {damaged[0]} arrived damaged"):
            for name in damaged:
                hf_hub_download(repo_id, name, revision=folder.name, force_download=True, token=token)
        try:
            return read()
        except ALoRAError as again:
            raise again from error


def _is_as_sent(path: Path) -> bool:
    """Whether a file of the cache has the content that the Hub named it by: its sha256, or git's hash of a small file.

    Where the cache has no links to files of such names, it is not known to be.
    """
    blob = path.resolve()
    size = blob.stat().st_size
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
