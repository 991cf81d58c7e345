"""Where text and questions come from: local files of the usual formats, or any data set of the Hub."""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from alora_trainer.basics.files import replacing
from alora_trainer.basics.hub_ids import HUB_PREFIX
from alora_trainer.data.local_files import find_files, first_line, plain, read_rows
from alora_trainer.data.records import Row, listed, string_field
from alora_trainer.errors import ALoRAError

Source: TypeAlias = str | Mapping[str, Any]
_T = TypeVar("_T")

# What `load_dataset` and reading from what it gives can raise: of the network, of files, of tables, of a missing package.
_HUB_ERRORS = (DatasetsError, OSError, ValueError, TypeError, RuntimeError, EOFError, ImportError, zlib.error)
SOURCE_KEYS = ("path", "hub", "name", "split", "revision", "text_column")
_SPLIT_NAMES = frozenset({"train", "training", "test", "validation", "valid", "val", "dev", "data"})


def check_keys(mapping: Mapping[str, Any], allowed: Iterable[str], what: str) -> None:
    """Raise ALoRAError for the first key of ``mapping`` that is not in ``allowed``, with the nearest right one."""
    allowed = list(allowed)
    for key in mapping:
        if key not in allowed:
            nearest = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"the keys are {', '.join(allowed)}"
            raise ALoRAError(f"{what} has an unknown key {key!r}: {hint}")


def load_source(source: Source, *, base: Path | str = Path(".")) -> list[Row]:
    """The records of one source, each with its own fields alone, in order.

    Args:
        source: a path or glob pattern (``books/*.jsonl.gz``), ``"hub:organisation/name"``, or a mapping with ``path``
            or ``hub`` and any of ``name`` (the configuration), ``split`` (default ``train``), ``revision`` (all three
            of a Hub data set) and ``text_column`` (renamed to ``text``). JSON lines, JSON (a list of objects),
            comma- or tab-separated values (with the fields' names in the first line), text (one document a file) and parquet
            files can be read, all but the last also packed by gzip or zstd.
        base: the folder that a relative path starts from.

    Raises:
        ALoRAError: nothing matches the path, the format is unknown, a line cannot be read, or there is nothing in it.
    """
    return _some(list(_rows(_settings(source), Path(base))), source)


def load_texts(source: Source, *, base: Path | str = Path(".")) -> list[str]:
    """The non-blank documents of a source's ``text`` column, in order. Raises ALoRAError as `load_source` does."""
    texts = _some([check_text(row) for row in _rows(_settings(source), Path(base), text_only=True)], source)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ALoRAError(f"{source_name(source)} holds only blank documents: give a source with text")
    return texts


def stream_records(source: Source, *, base: Path | str = Path("."), text_only: bool = False) -> Iterator[Row]:
    """The records of a source one by one, in order, never all in memory. Raises ALoRAError as `load_source` does.

    Args:
        source, base: as in `load_source`.
        text_only: nothing but ``text`` will be asked for.
    """
    yield from _rows(_settings(source), Path(base), text_only=text_only, streaming=True)


def check_text(row: Row) -> str:
    """The text of a record; raises ALoRAError where there is none."""
    if "text" not in row:
        raise ALoRAError(
            f"{row.where} has no column 'text' (its columns are {listed(row)}): write the source as a mapping with "
            "text_column"
        )
    try:
        return string_field(row, "text")
    except ALoRAError as error:
        raise ALoRAError(f"{row.where} is no document: {error}") from error


def named_sources(sources: object, what: str) -> dict[str, Source]:
    """Bring one source, a list of sources or a mapping of them to a mapping by name.

    Sources without a name take that of their file, or of its folder where the file is merely called ``train`` or
    ``test``. Raises ALoRAError if there is none, if one is of the wrong type, or if two would have the same name.
    """
    if isinstance(sources, str) or (isinstance(sources, Mapping) and set(sources) & {"path", "hub"}):
        sources = [sources]
    if isinstance(sources, Mapping):
        named = {str(name): source for name, source in sources.items()}
    elif isinstance(sources, Sequence):
        named = {}
        for source in sources:
            name = _name_of(source)
            if name in named:
                raise ALoRAError(f"{what} has two sources called {name!r}: write it as a mapping from name to source")
            named[name] = source
    else:
        raise ALoRAError(f"{what} must be a source, a list of sources or a mapping from name to source")
    if not named:
        raise ALoRAError(f"{what} is empty: name at least one source")
    for name, source in named.items():
        if not name or name in (".", "..") or any(character in name for character in '/\\:*?"<>|\0'):
            raise ALoRAError(f"{what} has a source called {name!r}: it names a file, so use letters, digits, - and _")
        _settings(source)
    return named


def hub_settings(source: Source) -> dict[str, str] | None:
    """A Hub data set's ``hub``, ``split`` and, if it was given, ``name`` (the configuration); None for a local file."""
    settings = _settings(source)
    if "hub" not in settings:
        return None
    own = {key: str(settings[key]) for key in ("hub", "name") if settings.get(key) is not None}
    return own | {"split": str(settings.get("split") or "train")}


def source_name(source: Source) -> str:
    """A source in a few words, for messages."""
    if isinstance(source, str):
        return source
    return str(source.get("path") or f"{HUB_PREFIX}{source.get('hub')}")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, so that no reader ever sees half a file."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON lines file, plain or gzipped; ALoRAError names the line that is not a JSON object."""
    return list(read_rows(path))


def _settings(source: Source) -> dict[str, Any]:
    if isinstance(source, str):
        if source.startswith(HUB_PREFIX):
            return {"hub": source[len(HUB_PREFIX) :]}
        return {"path": source}
    if not isinstance(source, Mapping):
        raise ALoRAError(f"a source must be a path, {HUB_PREFIX}organisation/name or a mapping, not {source!r}")
    check_keys(source, SOURCE_KEYS, f"the source {source_name(source)}")
    if ("path" in source) == ("hub" in source):
        raise ALoRAError(f"the source {dict(source)!r} must have either 'path' or 'hub'")
    for key in SOURCE_KEYS:
        if key in source and not (
            isinstance(source[key], str) or (source[key] is None and key in ("name", "revision"))
        ):
            raise ALoRAError(f"{key!r} of the source {dict(source)!r} must be a string, not {source[key]!r}")
    hub_only = sorted({"name", "split", "revision"} & set(source))
    if "path" in source and hub_only:
        raise ALoRAError(f"the source {source_name(source)} is a local file and takes no {hub_only[0]!r}: leave it out")
    return dict(source)


def _name_of(source: Source) -> str:
    settings = _settings(source)
    if "hub" in settings:
        return str(settings["hub"]).rsplit("/", 1)[-1]
    path = Path(settings["path"])
    stem = path.name.split(".", 1)[0]
    generic = stem in _SPLIT_NAMES or not stem or "*" in stem or "?" in stem
    return path.parent.name if generic and path.parent.name else stem


def _some(found: list[_T], source: Source) -> list[_T]:
    if not found:
        raise ALoRAError(f"{source_name(source)} is empty: give a source with at least one document")
    return found


def _rows(
    settings: Mapping[str, Any], base: Path, *, text_only: bool = False, streaming: bool = False
) -> Iterator[Row]:
    """The records of a source, its text column under the name ``text``."""
    column = str(settings.get("text_column", "text"))
    columns = [column] if text_only else None
    if "hub" in settings:
        rows = _hub_rows(settings, columns, streaming=streaming)
    else:
        paths = find_files(str(settings["path"]), base)
        rows = (row for path in paths for row in read_rows(path, columns))
    for row in rows:
        if column != "text":
            if column not in row:
                raise ALoRAError(
                    f"{row.where} has no column {column!r} (its columns are {listed(row)}): correct text_column"
                )
            row["text"] = row.pop(column)
        yield row


def _hub_rows(settings: Mapping[str, Any], columns: list[str] | None, *, streaming: bool) -> Iterator[Row]:
    dataset = _load_hub(settings, streaming=streaming)
    if columns is not None and set(columns) <= set(dataset.column_names or ()):
        dataset = dataset.select_columns(columns)
    schema = dataset.features.arrow_schema if dataset.features is not None else None
    number = 0
    try:
        for number, values in enumerate(dataset, start=1):
            if schema is not None:
                values = {key: plain(value, schema.field(key).type, encoded=False) for key, value in values.items()}
            yield Row(values, f"item {number} of {HUB_PREFIX}{settings['hub']}")
    except _HUB_ERRORS as error:
        raise ALoRAError(
            f"{HUB_PREFIX}{settings['hub']} cannot be read after item {number}: {first_line(error)}"
        ) from error


def _load_hub(settings: Mapping[str, Any], *, streaming: bool) -> Dataset | IterableDataset:
    name, split = settings["hub"], settings.get("split", "train")
    try:
        dataset = load_dataset(
            name, settings.get("name"), split=split, revision=settings.get("revision"), streaming=streaming
        )
    except _HUB_ERRORS as error:
        raise ALoRAError(f"cannot load {HUB_PREFIX}{name} (split {split}): {first_line(error)}") from error
    if not isinstance(dataset, IterableDataset if streaming else Dataset):
        raise ALoRAError(f"{HUB_PREFIX}{name} with split {split!r} is not one split: name a single one, such as train")
    return dataset
