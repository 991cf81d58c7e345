"""Where text and questions come from: local files of the usual formats, or any data set of the Hub."""

from __future__ import annotations

import difflib
import glob
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from pyarrow import parquet

from alora_trainer.basics.files import replacing
from alora_trainer.errors import ALoRAError

Source: TypeAlias = str | Mapping[str, Any]

HUB_PREFIX = "hub:"
LINE_FORMATS = (".jsonl", ".jsonl.gz", ".json.gz")
TEXT_FORMATS = (".txt", ".txt.gz")
FORMATS = (*LINE_FORMATS, ".json", *TEXT_FORMATS, ".parquet")
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


def load_source(source: Source, *, base: Path | str = Path(".")) -> Dataset:
    """Load one source as a data set.

    Args:
        source: a path or glob pattern (``books/*.jsonl.gz``), ``"hub:organisation/name"``, or a mapping with ``path``
            or ``hub`` and any of ``name`` (the configuration), ``split`` (default ``train``), ``revision`` (all three
            of a Hub data set) and ``text_column`` (renamed to ``text``). JSON lines, JSON (a list of objects), text
            (one document a file) and parquet files can be read, the first and third also gzipped. Local files other
            than parquet are read into memory.
        base: the folder that a relative path starts from.

    Raises:
        ALoRAError: nothing matches the path, the format is unknown, a line cannot be read, or there is nothing in it.
    """
    settings = _settings(source)
    dataset = _load_hub(settings) if "hub" in settings else _load_files(settings, Path(base))
    if len(dataset) == 0:
        raise ALoRAError(f"{source_name(source)} is empty: give a source with at least one document")
    column = settings.get("text_column", "text")
    if column != "text":
        if column not in dataset.column_names:
            raise ALoRAError(
                f"{source_name(source)} has no column {column!r} (its columns are {', '.join(dataset.column_names)}): "
                "correct text_column"
            )
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(column, "text")
    return dataset


def load_texts(source: Source, *, base: Path | str = Path(".")) -> list[str]:
    """The non-blank documents of a source's ``text`` column, in order. Raises ALoRAError as `load_source` does."""
    dataset = load_source(source, base=base)
    if "text" not in dataset.column_names:
        raise ALoRAError(
            f"{source_name(source)} has no column 'text' (its columns are {', '.join(dataset.column_names)}): "
            "write the source as a mapping with text_column"
        )
    texts = dataset["text"][:]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ALoRAError(f"document {number} of {source_name(source)} is not a string but {type(text).__name__}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ALoRAError(f"{source_name(source)} holds only blank documents: give a source with text")
    return texts


def stream_records(source: Source, *, base: Path | str = Path(".")) -> Iterator[dict[str, Any]]:
    """The records of a source one by one, in order, never all in memory. Raises ALoRAError as `load_source` does."""
    settings = _settings(source)
    if "hub" in settings:
        yield from _load_hub(settings, streaming=True)
        return
    for path in find_files(str(settings["path"]), Path(base)):
        yield from _load_parquet(path) if path.name.endswith(".parquet") else _records(path)


def check_text(record: Mapping[str, Any], column: str, number: int, source: Source) -> str:
    """The text of a record; raises ALoRAError where there is none."""
    if column not in record:
        raise ALoRAError(
            f"document {number} of {source_name(source)} has no column {column!r} (its columns are {', '.join(record)}): "
            "write the source as a mapping with text_column"
        )
    if not isinstance(record[column], str):
        kind = type(record[column]).__name__
        raise ALoRAError(f"document {number} of {source_name(source)} is not a string but {kind}")
    return str(record[column])


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
    return list(_records(path))


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
    generic = stem in _SPLIT_NAMES or not stem or "*" in stem
    return path.parent.name if generic and path.parent.name else stem


def _load_hub(settings: Mapping[str, Any], *, streaming: bool = False) -> Dataset:
    name, split = settings["hub"], settings.get("split", "train")
    try:
        dataset = load_dataset(
            name, settings.get("name"), split=split, revision=settings.get("revision"), streaming=streaming
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ALoRAError(f"cannot load {HUB_PREFIX}{name} (split {split}): {reason}") from error
    if not isinstance(dataset, IterableDataset if streaming else Dataset):
        raise ALoRAError(f"{HUB_PREFIX}{name} with split {split!r} is not one split: name a single one, such as train")
    return dataset


def _load_files(settings: Mapping[str, Any], base: Path) -> Dataset:
    paths = find_files(str(settings["path"]), base)
    if paths[0].name.endswith(".parquet"):
        parts = [_load_parquet(path) for path in paths]
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    records = [record for path in paths for record in _records(path)]
    try:
        return Dataset.from_list(records)
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's errors are ValueErrors and TypeErrors
        reason = str(error).splitlines()[0]
        raise ALoRAError(f"the records of {settings['path']} do not have one type a field: {reason}") from error


def find_files(pattern: str, base: Path) -> list[Path]:
    """The files of a path or glob pattern, sorted; raises ALoRAError if there is none, or one that cannot be read."""
    whole = base / Path(pattern).expanduser()
    if whole.is_dir():
        raise ALoRAError(f"{whole} is a folder: name its files, for example {pattern}/*.jsonl")
    paths = [whole] if whole.is_file() else sorted(Path(path) for path in glob.glob(str(whole), recursive=True))
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ALoRAError(f"no file {pattern} under {base.resolve()}: correct the path or make the file")
    for path in paths:
        if not path.name.endswith(FORMATS):
            raise ALoRAError(f"{path} has a format that is not known: use one of {', '.join(FORMATS)}")
    if len({path.name.endswith(".parquet") for path in paths}) > 1:
        raise ALoRAError(f"{pattern} matches parquet files and others: give them as two sources")
    return paths


def _load_parquet(path: Path) -> Dataset:
    try:
        return Dataset(parquet.read_table(path, memory_map=True))
    except pyarrow.ArrowInvalid as error:
        raise ALoRAError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    name = path.name
    try:
        if name.endswith(TEXT_FORMATS):
            yield {"text": _read_text(path)}
        elif name.endswith(".json"):
            yield from _json_records(path)
        else:
            yield from _json_lines(path)
    except (OSError, EOFError) as error:
        raise ALoRAError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ALoRAError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from error


def _open(path: Path) -> Any:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def _read_text(path: Path) -> str:
    with _open(path) as stream:
        return str(stream.read())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ALoRAError(f"line {number} of {path} is not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(record, dict):
                raise ALoRAError(f"line {number} of {path} is not a JSON object but {type(record).__name__}")
            yield record


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list; a file that is called .json but holds JSON lines is read as such."""
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ALoRAError(f"line {error.lineno} of {path} is not JSON: {error.msg} at column {error.colno}") from error
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ALoRAError(f"item {number} of {path} is not a JSON object but {type(record).__name__}")
        yield record
