"""What stands at a recipe's local paths: a digest that changes with the content, and not with where a file is kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.disclosure import disclosed
from alora_trainer.basics.hub_ids import HUB_PREFIX
from alora_trainer.data.general import SELF
from alora_trainer.data.local_files import find_files

_SOURCES = {"general": ("train", "test", "probe"), "domain": ("train", "test", "source")}
# Settings of the Trainer that may be the name of a file.
CONFIG_FILES = ("deepspeed", "fsdp_config", "accelerator_config")
# Of a folder with a model, an adapter or a map: weights, configurations, tokenizers and code; not its card or pictures.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_READ = (*_WEIGHTS, ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_CHUNK = 1 << 22
_LENGTH = 16  # of a digest in hexadecimal digits: it is compared with one other, and read by people
_SETTLED = 2.0  # seconds after which a file system's clock is sure to tell a further change


class Contents:
    """Digests of local files and folders, each read when it is first asked for; a file's own, until it is touched."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def source(self, path: str) -> dict[str, str]:
        """The file or the files of a path or glob pattern, as a source of text or items.

        Raises:
            ALoRAError: there is none, or it is none that can be read.
        """
        return {"file": Path(disclosed(path)).name, "content": self._together(find_files(path, Path()))}

    def file(self, path: Path) -> dict[str, str]:
        """One file."""
        return {"content": self._digest(path)}

    def loaded(self, folder: Path) -> dict[str, str]:
        """A folder that is loaded from: a model's, an adapter's or a map's; its subfolders do not count."""
        files = [path for path in folder.iterdir() if path.suffix in _READ and path.is_file()]
        if any(path.suffix == ".safetensors" for path in files):
            files = [path for path in files if path.suffix not in _WEIGHTS[1:]]
        return {"content": self._together(files)}

    def tree(self, folder: Path) -> dict[str, str]:
        """A folder with all that is below it, such as one with tasks; hidden files and caches do not count."""
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        hidden = [path for path in files if any(part.startswith(".") for part in path.relative_to(folder).parts)]
        return {"content": self._together([path for path in files if path not in hidden])}

    def _together(self, files: Sequence[Path]) -> str:
        if len(files) == 1:
            return self._digest(files[0])
        top = os.path.commonpath([path.parent for path in files]) if files else ""
        parts = sorted((os.path.relpath(path, top), self._digest(path)) for path in files)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_LENGTH]

    def _digest(self, path: Path) -> str:
        now, stat = time.time(), path.stat()
        key = (str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
        found = self._known.get(key)
        if found is None:
            whole = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                while part := file.read(_CHUNK):
                    whole.update(part)
            found = whole.hexdigest()[:_LENGTH]
            if now - max(stat.st_mtime, stat.st_ctime) > _SETTLED:
                self._known[key] = found
        return found


# One for the process, so that the cells of a sweep read a model once.
CONTENTS = Contents()


def by_content(section: str, value: Any, contents: Contents) -> Any:
    """A section of a resolved recipe, with what stands at its local paths in the place of the paths.

    Args:
        section: its name.
        value: what `Recipe.resolved` says of it, or a part of that.
        contents: the digests.

    Raises:
        ALoRAError: there is no such source.
        OSError: a file cannot be read.
    """
    if section == "domains":
        return [by_content("domain", one, contents) for one in value]
    if section == "method_options":
        return {name: {key: by_content(key, one, contents) for key, one in own.items()} for name, own in value.items()}
    if not isinstance(value, Mapping):
        return value
    return {key: _setting(section, key, item, contents) for key, item in value.items()}


def _setting(section: str, key: str, value: Any, contents: Contents) -> Any:
    if key in _SOURCES.get(section, ()):
        return value if value == SELF else _source(value, contents)
    if section in ("record", "tune") and key in CONFIG_FILES:
        return contents.file(Path(value)) if isinstance(value, str) and Path(value).is_file() else value
    if (section, key) == ("model", "path"):
        return contents.loaded(Path(value)) if Path(value).is_dir() else value
    if (section, key) == ("alora", "basis") and value is not None:
        return contents.loaded(Path(value)) if Path(value).is_dir() else value
    if (section, key) == ("evaluation", "task_folder") and value is not None:
        return contents.tree(Path(value)) if Path(value).is_dir() else value
    return value


def _source(source: Any, contents: Contents) -> Any:
    if isinstance(source, str):
        return source if source.startswith(HUB_PREFIX) else contents.source(source)
    if isinstance(source, list):
        return [_source(item, contents) for item in source]
    if isinstance(source, Mapping) and "hub" in source:
        return source
    if isinstance(source, Mapping) and "path" in source:
        return {**source, "path": contents.source(source["path"])}
    if isinstance(source, Mapping):
        return {name: _source(item, contents) for name, item in source.items()}
    return source
