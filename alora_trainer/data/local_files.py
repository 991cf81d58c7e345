"""Local files as records, each with its own fields: JSON lines, JSON lists, comma- or tab-separated values, text and parquet.

Nothing is brought into one table: a field that no one asks for may be anything, and a record has the fields that it was given.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow  # type: ignore[import-untyped]
from pyarrow import parquet

from alora_trainer.basics.keys import meant_path
from alora_trainer.data.records import Row, Unreadable, listed, shown
from alora_trainer.errors import ALoRAError

_PACKED = ("", ".gz", ".zst")
JSON_FORMATS = tuple(f"{name}{packed}" for name in (".jsonl", ".json") for packed in _PACKED)
TAB_FORMATS = tuple(f".tsv{packed}" for packed in _PACKED)
TABLE_FORMATS = (*(f".csv{packed}" for packed in _PACKED), *TAB_FORMATS)
TEXT_FORMATS = tuple(f".txt{packed}" for packed in _PACKED)
FORMATS = (*JSON_FORMATS, *TABLE_FORMATS, *TEXT_FORMATS, ".parquet")
_KINDS = (JSON_FORMATS, TABLE_FORMATS, TEXT_FORMATS, (".parquet",))  # what a folder may have one of
_ASIDE = ("README", "LICENSE", "LICENCE")

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_GIT_LFS = b"version https://git-lfs.github.com/spec/"
# A byte order mark says the encoding for certain; without one it is UTF-8. UTF-32's comes before UTF-16's, which begins it.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
_BETWEEN = {
    ",": "comma",
    ";": "semicolon",
    "\t": "tab",
}  # the values of a table, in the order in which they are looked for
_LONGEST_CELL = 2**31 - 1
_PARQUET_ROWS = 256  # rows of a parquet file in memory at a time: documents may be long


def find_files(pattern: str, base: Path) -> list[Path]:
    """The files of a path, a folder or a glob pattern, sorted, all of a known format.

    Of a folder they are all those of a known format in it and below it, if they are of one kind; its own description (README,
    LICENSE), hidden files and other formats are left out.

    The folders at the pattern's beginning that are there under just that name are taken by it, whatever characters it has; the
    rest is the pattern. `base` is never a pattern.

    Raises:
        ALoRAError: there is none, one has a format that is not known, or parquet files are among others.
    """
    try:
        whole = base / Path(pattern).expanduser()
    except RuntimeError as error:  # ~someone
        raise ALoRAError(f"{pattern} begins with a home folder that is not known: write the whole path") from error
    try:
        paths = _matching(whole, pattern)
    except (OSError, ValueError) as error:  # a name that is too long, or that no file system allows
        raise ALoRAError(f"{shown(pattern)} cannot be looked for: {error.args[-1]}") from error
    if not paths:
        raise ALoRAError(
            f"no file {pattern} under {base.resolve()}: {meant_path(whole)}correct the path or make the file"
        )
    for path in paths:
        if not _is(path, *FORMATS):
            raise ALoRAError(f"{path} has a format that is not known: use one of {', '.join(FORMATS)}")
    if len({_is(path, ".parquet") for path in paths}) > 1:
        raise ALoRAError(f"{pattern} matches parquet files and others: give them as two sources")
    return paths


def _matching(whole: Path, pattern: str) -> list[Path]:
    found, left = Path(whole.anchor or "."), list(whole.parts[1 if whole.anchor else 0 :])
    while left and (found / left[0]).exists():
        found /= left.pop(0)
    if not left and found.is_dir():
        return files_in_folder(found, pattern)
    matched = glob.glob(os.path.join(glob.escape(str(found)), *left), recursive=True) if left else [str(found)]
    return [path for path in sorted(map(Path, matched)) if path.is_file()]


def files_in_folder(folder: Path, pattern: str) -> list[Path]:
    """The files of data that a folder stands for: all of a known format in it and below it, sorted; see `find_files`.

    Args:
        folder: that is there.
        pattern: how it was written, for messages.

    Raises:
        ALoRAError: there is none, or they are of several kinds.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_aside(path.relative_to(folder))]
    known = [path for path in files if _is(path, *FORMATS)]
    kinds = {kind for path in known for kind in _KINDS if _is(path, *kind)}
    if not known:
        other = f", but {files[0].name} and the like" if files else ""
        raise ALoRAError(f"the folder {folder} has no file of a known format ({', '.join(FORMATS)}){other}")
    if len(kinds) > 1:
        names = " and ".join(f"*{kind[0]}" for kind in _KINDS if kind in kinds)
        raise ALoRAError(
            f"the folder {folder} has files of several kinds ({names}): name one, {pattern}/**/*{_KINDS[0][0]}"
        )
    return known


def _is_aside(path: Path) -> bool:
    """Whether a file in a folder of data is none of the data."""
    return path.stem.upper() in _ASIDE or any(part.startswith(".") for part in path.parts)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The records of one file in order, as they are read; a text file is one record with ``text``.

    Args:
        path: a file of one of the `FORMATS`.
        columns: all that will be asked for, so that of a parquet file no others need be read.

    Raises:
        ALoRAError: the file, or a line of it, cannot be read.
    """
    if _is(path, ".parquet"):
        yield from _parquet_rows(path, columns)
    elif _is(path, *TEXT_FORMATS):
        yield Row({"text": "".join(line for _, line in _lines(path))}, str(path))
    elif _is(path, *TABLE_FORMATS):
        yield from _table_rows(path)
    else:
        yield from _json_rows(path)


def plain(value: Any, kind: Any, *, encoded: bool) -> Any:
    """A value out of a table as it was before the table: one type a column gives every object the keys of all, as nulls.

    Those are taken away again (an explicit null cannot be told from them), and maps become objects.

    Args:
        value: what the table gave.
        kind: its arrow type.
        encoded: whether JSON is still text in it.
    """
    if value is None or isinstance(value, Unreadable):
        return value
    if pyarrow.types.is_struct(kind) and isinstance(value, dict):
        own = {key: one for key, one in value.items() if one is not None}
        return {key: plain(one, kind.field(key).type, encoded=encoded) for key, one in own.items()}
    if pyarrow.types.is_map(kind):
        return {key: plain(one, kind.item_type, encoded=encoded) for key, one in value}
    if hasattr(kind, "value_type") and isinstance(value, list):
        return [plain(one, kind.value_type, encoded=encoded) for one in value]
    if encoded and isinstance(kind, pyarrow.JsonType):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            return Unreadable(_json_reason(error))
    return value


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _is(path: Path, *endings: str) -> bool:
    return path.name.lower().endswith(endings)


# --- text and JSON ---


def _open(path: Path) -> TextIO:
    """A file as text with its own line ends, unpacked and decoded as its first bytes say."""
    with path.open("rb") as file:
        start = file.read(64)
    _check_pointer(path, start)
    packed = next((unpack for mark, unpack in _UNPACKED.items() if start.startswith(mark)), None)
    for ending, mark, name in ((".gz", _GZIP, "gzipped"), (".zst", _ZSTANDARD, "packed by zstd")):
        if start and _is(path, ending) and not start.startswith(mark):
            raise ALoRAError(
                f"{path} cannot be read: it is not {name}, in spite of its name; rename it or fetch it again"
            )
    if packed is not None:
        with packed(path) as file:
            start = file.read(64)
        _check_pointer(path, start)
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    stream = packed(path) if packed is not None else path.open("rb")
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")


def _unpacked_zstandard(path: Path) -> io.BufferedReader:
    # pyarrow, which reads parquet, has the library.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


_UNPACKED: dict[bytes, Callable[[Path], Any]] = {_GZIP: gzip.open, _ZSTANDARD: _unpacked_zstandard}


def _check_pointer(path: Path, start: bytes) -> None:
    if start.startswith(_GIT_LFS):
        raise ALoRAError(f"{path} is not the file itself but a Git LFS pointer to it: fetch it with git lfs pull")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file by their numbers; whatever breaks off says after which."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line
    except UnicodeError as error:
        raise ALoRAError(
            f"line {number + 1} of {path} cannot be decoded ({first_line(error)}): convert the file to UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ALoRAError(
            f"{path} cannot be read after line {number}: it is damaged or cut off ({first_line(error)}); fetch or pack it again"
        ) from error
    except OSError as error:
        raise ALoRAError(f"{path} cannot be read: {first_line(error)}") from error


def _json_rows(path: Path) -> Iterator[Row]:
    """The objects of JSON lines, or of one JSON list, whatever the file is called."""
    lines = _lines(path)
    first = True
    for number, line in lines:
        line = line.removeprefix("\ufeff")  # files with a byte order mark that were put one after the other
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            yield from _json_list("".join([line, *(rest for _, rest in lines)]), number, path)
            return
        first = False
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ALoRAError(
                f"line {number} of {path} is not JSON: {_json_reason(error)}; write one object a line, or a list of objects"
            ) from error
        yield _object(record, f"line {number} of {path}")


def _json_list(text: str, start: int, path: Path) -> Iterator[Row]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        number = start + (error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0)
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            raise ALoRAError(
                f"line {number} of {path} goes on after a JSON list: write one object a line, or one list of them"
            ) from error
        raise ALoRAError(f"line {number} of {path} is not JSON: {_json_reason(error)}") from error
    for number, record in enumerate(records, start=1):
        yield _object(record, f"item {number} of {path}")


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)


def _object(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise ALoRAError(f"{where} is not a JSON object but {shown(record)}")
    return Row(record, where)


# --- comma-separated values ---


def _table_rows(path: Path) -> Iterator[Row]:
    """The rows of a table whose first line names the fields; every value is a string."""
    csv.field_size_limit(_LONGEST_CELL)  # the default, 131072 characters, is less than a document may have
    lines = (line for _, line in _lines(path))
    first = next(lines, "")
    delimiter = "\t" if _is(path, *TAB_FORMATS) else _delimiter(first)
    between = _BETWEEN[delimiter]
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=delimiter)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise ALoRAError(f"line 1 of {path} names a field twice ({listed(names)}): rename one")
        for values in reader:
            if not values:
                continue
            where = f"line {reader.line_num} of {path}"
            if len(values) != len(names):
                raise ALoRAError(
                    f"{where} has {len(values)} values for the {len(names)} fields of line 1 ({listed(names)}): quote values "
                    f"that hold a {between} or a line's end"
                )
            yield Row(dict(zip(names, values, strict=True)), where)
    except csv.Error as error:
        raise ALoRAError(
            f"line {reader.line_num} of {path} is no {between}-separated values: {first_line(error)}"
        ) from error


def _delimiter(header: str) -> str:
    """A comma, or what stands in its place in a header without any: spreadsheets of half the world write semicolons."""
    bare = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in _BETWEEN if mark in bare), ",")


# --- parquet ---


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            _check_pointer(path, file.read(64))
        with parquet.ParquetFile(path, memory_map=True) as file:
            known = file.schema_arrow.names
            # If one is not there, whoever asks for it will want to say which are.
            wanted = list(columns) if columns is not None and set(columns) <= set(known) else None
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                names = batch.schema.names
                for values in zip(*map(_column, batch.columns), strict=True):
                    number += 1
                    yield Row(dict(zip(names, values, strict=True)), f"row {number} of {path}")
    except (pyarrow.ArrowException, OSError) as error:
        raise ALoRAError(f"{path} cannot be read as parquet: {first_line(error)}") from error


def _column(column: Any) -> list[Any]:
    return [plain(value, column.type, encoded=True) for value in _values(column)]


def _values(column: Any) -> list[Any]:
    """A column as Python values; what Python has nothing for (a date after 9999) only matters if it is asked for."""
    try:
        return cast(list[Any], column.to_pylist())
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:
        return Unreadable(first_line(error))
