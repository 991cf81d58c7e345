"""Every format of a source, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from alora_trainer.data import sources
from alora_trainer.data.sources import load_source, load_texts, named_sources, read_lines, write_lines
from alora_trainer.errors import ALoRAError

RECORDS = [{"text": "first\nsecond line", "n": 1}, {"text": "zweite: äöü  ", "n": 2}]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode("utf-8")))
    else:
        path.write_bytes(text.encode("utf-8"))
    return path


class TestFormats:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "lines.json"])
    def test_json_lines(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, lines(RECORDS[:1]) + "\n" + lines(RECORDS[1:]))
        assert load_source(name, base=tmp_path) == RECORDS

    def test_json_list(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", json.dumps(RECORDS, indent=1))
        assert load_source("a.json", base=tmp_path) == RECORDS

    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
    def test_text_is_one_document_to_the_byte(self, tmp_path: Path, name: str) -> None:
        text = "line\r\nother\n\n  end\n"
        write(tmp_path / name, text)
        assert load_source(name, base=tmp_path) == [{"text": text}]

    def test_parquet(self, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(RECORDS).to_parquet(str(tmp_path / "a.parquet"))
        Dataset.from_list(RECORDS[:1]).to_parquet(str(tmp_path / "b.parquet"))
        assert load_source("a.parquet", base=tmp_path) == RECORDS
        assert load_source("*.parquet", base=tmp_path) == RECORDS + RECORDS[:1]

    def test_glob_is_sorted_and_absolute_paths_ignore_the_base(self, tmp_path: Path) -> None:
        write(tmp_path / "d/2.jsonl", lines(RECORDS[1:]))
        write(tmp_path / "d/1.jsonl.gz", lines(RECORDS[:1]))
        assert load_source("d/*", base=tmp_path) == RECORDS
        assert load_source(str(tmp_path / "d" / "2.jsonl"), base="/nowhere") == RECORDS[1:]

    def test_values_keep_their_types(self, tmp_path: Path) -> None:
        records = [{"text": "1945-05-08", "list": ["2020-01-01", "x"], "none": None}, {"text": "y", "none": "z"}]
        write(tmp_path / "a.jsonl", lines(records))
        assert load_source("a.jsonl", base=tmp_path)[0] == records[0]

    def test_text_column(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", lines([{"body": "here", "text": "not this"}]))
        assert load_texts({"path": "a.jsonl", "text_column": "body"}, base=tmp_path) == ["here"]

    def test_blank_documents_are_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", lines([{"text": " \n"}, {"text": "x"}]))
        assert load_texts("a.jsonl", base=tmp_path) == ["x"]

    def test_hub_settings_reach_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:

        calls: list[tuple] = []

        def load(*args: Any, **settings: Any) -> Any:
            calls.append((args, settings))
            return datasets.Dataset.from_list(RECORDS)

        monkeypatch.setattr(sources, "load_dataset", load)
        load_source("hub:who/what")
        load_source({"hub": "who/what", "name": "main", "split": "test", "revision": "abc"})
        assert calls == [
            (("who/what", None), {"split": "train", "revision": None, "streaming": False}),
            (("who/what", "main"), {"split": "test", "revision": "abc", "streaming": False}),
        ]


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.jsonl", '{"text": "x"}\n{"text": \n', r"line 2 of .*a\.jsonl is not JSON"),
            ("a.jsonl", '{"text": "x"}\n\n[1]\n', r"line 3 of .*a\.jsonl is not a JSON object but \[1\]"),
            ("a.json", '[{"text": "x"},\n {]', r"line 2 of .*a\.json is not JSON"),
            ("a.json", "[1]", r"item 1 of .*a\.json is not a JSON object"),
            ("a.jsonl", "", r"a\.jsonl is empty"),
            (
                "a.jsonl",
                '{"text": 1}\n',
                r"line 1 of .*a\.jsonl is no document: its field 'text' is 1 \(type int\), not a string",
            ),
            ("a.jsonl", '{"text": "  "}\n', r"a\.jsonl holds only blank documents"),
            ("a.jsonl", '{"body": "x"}\n', r"no column 'text' \(its columns are body\).*text_column"),
            ("a.jsonl", '{"text": "x"}\n{"text": 1}\n', r"line 2 of .*a\.jsonl is no document: its field 'text' is 1"),
            ("a.ods", "text\nx\n", r"a\.ods has a format that is not known"),
            ("a.parquet", "no parquet", r"a\.parquet cannot be read as parquet"),
        ],
    )
    def test_unreadable(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        write(tmp_path / name, text)
        with pytest.raises(ALoRAError, match=message):
            load_texts(name, base=tmp_path)

    def test_not_gzip_and_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl.gz").write_bytes(b"plain")
        with pytest.raises(ALoRAError, match=r"a\.jsonl\.gz cannot be read"):
            load_source("a.jsonl.gz", base=tmp_path)
        (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait")
        with pytest.raises(ALoRAError, match=r"b\.txt is no document: .*byte 0xE9 \(line 1, character 4 of it\)"):
            load_texts("b.txt", base=tmp_path)
        cut = gzip.compress(lines(RECORDS * 50).encode())[:-20]
        (tmp_path / "c.jsonl.gz").write_bytes(cut)
        with pytest.raises(ALoRAError, match=r"c\.jsonl\.gz cannot be read"):
            load_source("c.jsonl.gz", base=tmp_path)

    def test_missing_file_names_it_and_the_base(self, tmp_path: Path) -> None:
        with pytest.raises(ALoRAError, match="no file x/absent.jsonl under .*" + tmp_path.name):
            load_source("x/absent.jsonl", base=tmp_path)

    def test_a_folder_of_text(self, tmp_path: Path) -> None:
        write(tmp_path / "notes/a.txt", "one")
        write(tmp_path / "notes/below/b.txt", "two")
        for aside in ("README.txt", ".hidden/c.txt", "below/picture.png"):
            write(tmp_path / "notes" / aside, "not this")
        assert load_texts("notes", base=tmp_path) == load_texts("notes/", base=tmp_path) == ["one", "two"]
        write(tmp_path / "other/a.docx", "one")
        with pytest.raises(ALoRAError, match=r"other has no file of a known format \(\.jsonl, .*, but a\.docx"):
            load_texts("other", base=tmp_path)

    def test_folder_and_mixed_formats(self, tmp_path: Path) -> None:
        write(tmp_path / "d/a.jsonl", lines(RECORDS))
        write(tmp_path / "d/b.parquet", "")
        with pytest.raises(ALoRAError, match=r"has files of several kinds \(\*\.jsonl and \*\.parquet\): name one"):
            load_source("d", base=tmp_path)
        with pytest.raises(ALoRAError, match="matches parquet files and others"):
            load_source("d/*", base=tmp_path)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"path": "a.jsonl", "text_colunm": "x"}, "did you mean 'text_column'"),
            ({"path": "a.jsonl", "hub": "x/y"}, "either 'path' or 'hub'"),
            ({"path": "a.jsonl", "split": "test"}, "takes no 'split'"),
            (3, "must be a path, hub:"),
            ({"path": None}, "'path' of the source .* must be a string, not None"),
            ({"hub": 5}, "'hub' of the source .* must be a string, not 5"),
            ({"path": "a.jsonl", "text_column": ["x"]}, "'text_column' of the source .* must be a string"),
            ("a" * 5000 + ".jsonl", "'aaa.*' cannot be looked for: File name too long"),
        ],
    )
    def test_wrong_settings(self, source: Any, message: str) -> None:
        with pytest.raises(ALoRAError, match=message):
            load_source(source)

    def test_wrong_text_column(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", lines(RECORDS))
        with pytest.raises(ALoRAError, match="no column 'body'.*correct text_column"):
            load_source({"path": "a.jsonl", "text_column": "body"}, base=tmp_path)

    def test_hub_failure_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:

        def load(*args: Any, **settings: Any) -> Any:
            raise datasets.exceptions.DatasetNotFoundError("no such thing\nmore")

        monkeypatch.setattr(sources, "load_dataset", load)
        with pytest.raises(ALoRAError, match=r"cannot load hub:who/what \(split train\): no such thing$"):
            load_source("hub:who/what")


class TestNames:
    def test_from_files_folders_and_the_hub(self) -> None:
        sources = [
            "x/books/train.jsonl.gz",
            "y/news.jsonl",
            {"hub": "who/wiki", "split": "test"},
            "z/code/*.txt",
            "u/v/p?.txt",
        ]
        assert list(named_sources(sources, "general.train")) == ["books", "news", "wiki", "code", "v"]
        assert named_sources("a.txt", "g") == {"a": "a.txt"}
        assert named_sources({"path": "a.txt"}, "g") == {"a": {"path": "a.txt"}}
        assert named_sources({"mine": "a.txt"}, "g") == {"mine": "a.txt"}

    @pytest.mark.parametrize("sources", [[], {}, None, 3, ["a/x.txt", "b/x.txt"], {"a/b": "x.txt"}, {"a": {}}])
    def test_wrong(self, sources: Any) -> None:
        with pytest.raises(ALoRAError):
            named_sources(sources, "general.train")


def test_lines_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    write_lines(path, RECORDS)
    assert read_lines(path) == RECORDS

    def broken() -> Any:
        yield RECORDS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(path, broken())
    assert read_lines(path) == RECORDS
