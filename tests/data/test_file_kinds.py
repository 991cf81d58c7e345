"""Files as people have them: read where that needs no guess, else refused with the file, the line, the field and the remedy."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from alora_trainer.data.local_files import find_files
from alora_trainer.data.sources import load_source, load_texts, stream_records
from alora_trainer.errors import ALoRAError

CASES = Path(__file__).parent.parent / "cases" / "data"
TEXTS = ["zweite: äöü", "second"]
RECORDS = [{"text": text} for text in TEXTS]


class TestRead:
    @pytest.mark.parametrize("name", ["bom.jsonl", "two_boms.jsonl", "utf16.jsonl", "capital.JSONL", "array.jsonl"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_as_it_is_and_packed(self, name: str, packed: bool, tmp_path: Path) -> None:
        path = CASES / name
        if packed:
            path = tmp_path / f"{name}.GZ"
            path.write_bytes(gzip.compress((CASES / name).read_bytes()))
        assert load_source(str(path)) == RECORDS
        assert load_texts(str(path)) == TEXTS

    def test_gzip_by_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(gzip.compress((CASES / "bom.jsonl").read_bytes()))
        assert load_texts("a.jsonl", base=tmp_path) == TEXTS

    def test_text_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
        assert load_texts("a.TXT", base=tmp_path) == ["one\r\ntwo"]

    def test_folders_named_like_patterns(self, tmp_path: Path) -> None:
        folder = tmp_path / "[v1] ü 🙂" / "d*ta"
        folder.mkdir(parents=True)
        for name in ("a[1].jsonl", "b.jsonl", "1.jsonl"):
            (folder / name).write_bytes((CASES / "bom.jsonl").read_bytes())
        names = lambda pattern, base: [path.name for path in find_files(pattern, base)]  # noqa: E731
        assert names("*.jsonl", folder) == names(f"{folder}/*.jsonl", Path("/")) == ["1.jsonl", "a[1].jsonl", "b.jsonl"]
        assert names("[v1] ü 🙂/d*ta/[ab]*.jsonl", tmp_path) == ["a[1].jsonl", "b.jsonl"]
        assert names("**/*.jsonl", folder.parent) == ["1.jsonl", "a[1].jsonl", "b.jsonl"]
        assert names("a[1].jsonl", folder) == ["a[1].jsonl"]
        assert names("[v1] ü 🙂", tmp_path) == ["1.jsonl", "a[1].jsonl", "b.jsonl"]
        with pytest.raises(ALoRAError, match="begins with a home folder that is not known"):
            find_files("~nobody-of-this-name/a.jsonl", tmp_path)


class TestParquet:
    def shards(self, folder: Path, *tables: pa.Table) -> None:
        for number, table in enumerate(tables):
            parquet.write_table(table, folder / f"{number}.parquet")

    def test_shards_of_other_types_and_columns(self, tmp_path: Path) -> None:
        self.shards(
            tmp_path,
            pa.table({"text": pa.array(["one"], pa.string()), "n": [1]}),
            pa.table({"n": ["x"], "text": pa.array(["two"], pa.large_string())}),
            pa.table({"text": pa.array(["three"]).dictionary_encode(), "extra": [[1.5]]}),
        )
        assert load_texts("*.parquet", base=tmp_path) == ["one", "two", "three"]
        assert load_source("*.parquet", base=tmp_path) == [
            {"text": "one", "n": 1},
            {"n": "x", "text": "two"},
            {"text": "three", "extra": [1.5]},
        ]

    def test_columns_that_nothing_asks_for(self, tmp_path: Path) -> None:
        late = pa.array([2**45], pa.timestamp("s"))
        with pytest.raises((ValueError, OverflowError)):
            late.to_pylist()
        kind = pa.map_(pa.string(), pa.struct([("a", pa.int64()), ("b", pa.string())]))
        maps = pa.array([[("k", {"a": 1, "b": None})]], kind)
        self.shards(
            tmp_path, pa.table({"text": ["one"], "map": maps, "late": late, "day": [datetime.date(2020, 1, 2)]})
        )
        assert load_texts("0.parquet", base=tmp_path) == ["one"]
        (row,) = load_source("0.parquet", base=tmp_path)
        assert (row["text"], row["map"], row["day"]) == ("one", {"k": {"a": 1}}, datetime.date(2020, 1, 2))
        with pytest.raises(
            ALoRAError, match=r"row 1 of .*0\.parquet is no document: its field 'text' is a value that cannot be"
        ):
            load_texts({"path": "0.parquet", "text_column": "late"}, base=tmp_path)
        with pytest.raises(
            ALoRAError, match=r"row 1 of .* has no column 'body' \(its columns are text, map, late, day\)"
        ):
            load_texts({"path": "0.parquet", "text_column": "body"}, base=tmp_path)

    def test_a_null_is_named_by_its_row(self, tmp_path: Path) -> None:
        self.shards(tmp_path, pa.table({"text": ["x"] * 300 + [None]}))
        with pytest.raises(ALoRAError, match=r"row 301 of .*0\.parquet is no document: its field 'text' is null"):
            load_texts("0.parquet", base=tmp_path)

    def test_files_are_read_as_they_are_asked_for(self, tmp_path: Path) -> None:
        self.shards(tmp_path, pa.table({"text": ["x"] * 600}))
        (tmp_path / "1.parquet").write_bytes(b"PAR1 no more")
        rows = stream_records("*.parquet", base=tmp_path, text_only=True)
        assert [next(rows)["text"] for _ in range(600)] == ["x"] * 600
        with pytest.raises(ALoRAError, match=r"1\.parquet cannot be read as parquet"):
            next(rows)


class TestTables:
    def test_every_value_is_a_string(self, tmp_path: Path) -> None:
        text = '\ufeffid,text,answer\r\n1,"a, ""b""\nc",1\r\n\r\n02,,B\r\n3,' + "x" * 200_000 + ",null\r\n"
        for name, written in (("a.CSV", text.encode()), ("b.csv.gz", gzip.compress(text.encode()))):
            (tmp_path / name).write_bytes(written)
            assert load_source(name, base=tmp_path) == [
                {"id": "1", "text": 'a, "b"\nc', "answer": "1"},
                {"id": "02", "text": "", "answer": "B"},
                {"id": "3", "text": "x" * 200_000, "answer": "null"},
            ]
            assert len(load_texts(name, base=tmp_path)) == 2

    @pytest.mark.parametrize(("text", "value"), [
        ("text;answer\n\"a; b\";1,5\n", "a; b"),  # as spreadsheets write it where the comma is in numbers
        ("text\tanswer\na, b\t1\n", "a, b"),
        ('"text;more",answer\na,1\n', None),  # a comma is there: it parts
    ])  # fmt: skip
    def test_what_parts_the_values_is_seen_in_the_header(self, tmp_path: Path, text: str, value: str | None) -> None:
        (tmp_path / "a.csv").write_text(text)
        (row,) = load_source("a.csv", base=tmp_path)
        assert len(row) == 2 and row.get("text") == value

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                b"a,b\n1,2\n1,2,3\n",
                r"line 3 of .*a\.csv has 3 values for the 2 fields of line 1 \(a, b\): quote values",
            ),
            (b"a,b\n1\n", r"line 2 of .*a\.csv has 1 values for the 2 fields"),
            (b"a,a\n1,2\n", r"line 1 of .*a\.csv names a field twice"),
            (b'a,b\n1,"2" x\n', r"line 2 of .*a\.csv is no comma-separated values"),
            (b'a,b\n1,"2\n', r"line 2 of .*a\.csv is no comma-separated values"),
            (b"a,b\n", r"a\.csv is empty"),
            (b"text,b\ncaf\xe9,1\n", r"line 2 of .*a\.csv is no document: its field 'text' has the byte 0xE9"),
        ],
    )
    def test_refused(self, text: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(text)
        with pytest.raises(ALoRAError, match=said):
            load_source("a.csv", base=tmp_path)
            load_texts("a.csv", base=tmp_path)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            (
                "windows1252.jsonl",
                r"line 3 of .* is no document: its field 'text' has the byte 0xE9 \(line 1, character 7 of it\), which is not "
                r"UTF-8: convert the file, for example with iconv -f WINDOWS-1252 -t UTF-8",
            ),
            ("surrogate.jsonl", r"line 3 of .* its field 'text' has half of a surrogate pair, \\ud83d"),
            ("array_and_more.jsonl", "line 2 of .* goes on after a JSON list: write one object a line, or one list"),
            (
                "one_object.json",
                r"line 1 of .* is not JSON: .* at column .; write one object a line, or a list of objects",
            ),
            ("lfs_pointer.jsonl", "is not the file itself but a Git LFS pointer to it: fetch it with git lfs pull"),
            ("lfs_pointer.parquet", "is not the file itself but a Git LFS pointer to it: fetch it with git lfs pull"),
        ],
    )
    def test_with_the_place_and_the_remedy(self, name: str, said: str) -> None:
        with pytest.raises(ALoRAError, match=said) as caught:
            load_texts(name, base=CASES)
        assert str(CASES / name) in str(caught.value) and "\n" not in str(caught.value)

    def test_bytes_of_an_unused_field_do_not_matter(self) -> None:
        assert [row["text"] for row in load_source("windows1252.jsonl", base=CASES)][:2] == ["plain", "plain"]
        assert [row["text"] for row in load_source("surrogate.jsonl", base=CASES)][:2] == ["😀", "plain"]

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda packed: packed[:-30], "damaged or cut off .*end-of-stream"),
            (lambda packed: packed[:-8] + b"\0\0\0\0" + packed[-4:], "damaged or cut off .*CRC"),
            (
                lambda packed: packed[:100] + bytes(byte ^ 0x5A for byte in packed[100:200]) + packed[200:],
                "damaged or cut off",
            ),
            (lambda packed: packed + b"rest", "damaged or cut off .*Not a gzipped file"),
            (lambda packed: b"plain" + packed, "it is not gzipped, in spite of its name; rename it or fetch it again"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
    def test_damaged_gzip(self, damage, said: str, name: str, tmp_path: Path) -> None:
        plain = "".join(f'{{"text": "{number * 7919 % 1000}"}}\n' for number in range(2000))
        (tmp_path / name).write_bytes(damage(gzip.compress(plain.encode())))
        with pytest.raises(ALoRAError, match=rf"{name} cannot be read.*{said}"):
            load_source(name, base=tmp_path)

    def test_what_json_has_no_end_of(self, tmp_path: Path) -> None:
        for name, value, said in (("deep", "[" * 10**5, "nested too deeply"), ("long", "1" * 5000, "4300")):
            (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "x"}}\n{{"text": "y", "n": {value}}}\n')
            with pytest.raises(ALoRAError, match=rf"line 2 of .*{name}\.jsonl is not JSON: .*{said}"):
                load_source(f"{name}.jsonl", base=tmp_path)

    def test_utf16_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes((CASES / "utf16.jsonl").read_bytes()[:-1])
        with pytest.raises(ALoRAError, match=r"line . of .*a\.jsonl cannot be decoded .*convert the file to UTF-8"):
            load_source("a.jsonl", base=tmp_path)

    @pytest.mark.parametrize("error", ["DatasetGenerationError", "DatasetGenerationCastError"])
    def test_what_the_hubs_library_raises(self, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        from alora_trainer.data import sources

        def load(*_: object, **__: object) -> None:
            raise getattr(datasets.exceptions, error)("shards differ\nmuch more")

        monkeypatch.setattr(sources, "load_dataset", load)
        with pytest.raises(ALoRAError, match=r"cannot load hub:who/what \(split train\): shards differ$"):
            load_source("hub:who/what")

    def test_a_hub_data_set_that_breaks_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from datasets import IterableDataset

        from alora_trainer.data import sources

        def rows():
            yield {"text": "x"}
            raise pa.ArrowInvalid("column changed type")

        monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: IterableDataset.from_generator(rows))
        with pytest.raises(ALoRAError, match="hub:who/what cannot be read after item 1: column changed type"):
            list(stream_records("hub:who/what"))
