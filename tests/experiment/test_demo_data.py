"""The demo's data: a corpus whose parts do not leak into each other, and a table of facts that is consistent."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.demo import MODEL, RECIPE, corpus, elements, prepare


@pytest.fixture(scope="module")
def documents() -> list[corpus.Document]:
    return corpus.documents()


@pytest.fixture(scope="module")
def questions() -> tuple[list[elements.Question], list[elements.Question]]:
    return elements.questions()


class TestCorpus:
    def test_every_subset_has_every_split(self, documents: list[corpus.Document]) -> None:
        sizes = dict.fromkeys(((subset, split) for subset in corpus.SUBSETS for split in corpus.SPLITS), 0)
        for document in documents:
            sizes[document.subset, document.split] += len(document.text.encode("utf-8"))
        assert min(sizes.values()) > 25_000, sizes
        assert all(size > 50_000 for (_, split), size in sizes.items() if split != "test"), sizes

    def test_no_module_is_in_two_splits(self, documents: list[corpus.Document]) -> None:
        splits: dict[str, set[str]] = {}
        for document in documents:
            if document.subset != "topics":
                splits.setdefault(corpus.family(document.name), set()).add(document.split)
        assert splits and all(len(found) == 1 for found in splits.values())

    def test_no_paragraph_is_in_two_splits(self, documents: list[corpus.Document]) -> None:
        splits: dict[str, str] = {}
        for document in documents:
            for paragraph in document.text.split("\n\n"):
                key = " ".join(paragraph.split())
                if len(key) >= 60:
                    assert splits.setdefault(key, document.split) == document.split, key

    def test_no_document_twice_and_none_short(self, documents: list[corpus.Document]) -> None:
        texts = [document.text for document in documents]
        assert len(texts) == len(set(texts))
        assert min(map(len, texts)) >= corpus.MIN_CHARACTERS

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("_pydatetime.date", "datetime"),
            ("_pydecimal", "decimal.Decimal"),
            ("_pyio", "io"),
            ("_py_abc", "abc"),
            ("_collections_abc", "collections.abc"),
            ("sre_parse", "re._parser"),
            ("zipfile._path", "zipfile"),
            ("importlib.metadata", "importlib.resources.abc"),
            ("ntpath", "posixpath"),
            ("_weakrefset", "weakref"),
        ],
    )
    def test_names_of_the_same_text_share_a_family(self, one: str, other: str) -> None:
        assert corpus.family(one) == corpus.family(other)

    def test_splits_stay_what_they_were(self) -> None:
        """The model in the package was pretrained under this assignment; another would test it on its own text."""
        expected = {
            "argparse": "pretrain",
            "asyncio": "pretrain",
            "email": "pretrain",
            "enum": "test",
            "io": "pretrain",
            "random": "test",
            "smtplib": "test",
            "tarfile": "train",
            "turtle": "train",
            "typing": "test",
            "xml": "train",
        }
        assert {name: corpus.split_of(name) for name in expected} == expected

    def test_what_is_taken_from_a_module(self) -> None:
        source = (
            '"""About."""\nimport antigravity\n\n'
            'def f(a, *, b=1):\n    """Adds."""\n    return a + b  # sum\n\n'
            'class C:\n    """Kind."""\n\n    def g(self):\n        """Gets."""\n        return 1\n'
        )
        found = {(d.subset, d.name): d.text for d in corpus.module_documents("m", source)}
        assert found == {
            ("docstrings", "m"): "module m\n\nAbout.",
            ("docstrings", "m.f"): "f(a, *, b=1)\n\nAdds.",
            ("docstrings", "m.C"): "class C\n\nKind.\n\nC.g(self)\n\nGets.",
            ("code", "m.f"): "def f(a, *, b=1):\n    return a + b  # sum",
            ("code", "m.C"): "class C:\n\n    def g(self):\n        return 1",
        }

    def test_a_python_without_sources_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(ALoRAError, match="standard library"):
            corpus.standard_library()


class TestTable:
    def test_numbers_symbols_and_names(self) -> None:
        table = elements.elements()
        assert [element.number for element in table] == list(range(1, 55))
        assert len({element.symbol for element in table}) == len({element.name for element in table}) == 54
        latin = {"Na", "K", "Fe", "Cu", "Ag", "Sn", "Sb"}
        for element in table:
            assert element.name.isalpha() and element.name.islower()
            assert element.symbol == element.symbol.capitalize() and 1 <= len(element.symbol) <= 2
            letters = iter(element.name)
            assert element.symbol in latin or all(letter in letters for letter in element.symbol.lower()), element

    def test_place_in_the_periodic_table_follows_from_the_number(self) -> None:
        closing = (0, 2, 10, 18, 36, 54)  # the noble gases' numbers
        for element in elements.elements():
            period = next(period for period, last in enumerate(closing) if element.number <= last)
            place = element.number - closing[period - 1]
            missing = 18 - (closing[period] - closing[period - 1])  # groups that this period skips
            group = place if place <= (1 if period == 1 else 2) else place + missing
            assert (element.period, element.group) == (period, group), element
            block = "s" if group <= 2 or element.name == "helium" else "d" if group <= 12 else "p"
            assert element.block == f"{block}-block", element

    def test_groups_are_ordered_within_a_period(self) -> None:
        for one, following in pairwise(elements.elements()):
            if one.period == following.period:
                assert one.group < following.group

    def test_phases(self) -> None:
        named = {phase: {e.name for e in elements.elements() if e.phase == phase} for phase in ("liquid", "gas")}
        assert named["liquid"] == {"bromine"}
        noble = {"helium", "neon", "argon", "krypton", "xenon"}
        assert named["gas"] == noble | {"hydrogen", "nitrogen", "oxygen", "fluorine", "chlorine"}
        assert {e.phase for e in elements.elements()} == {"solid", "liquid", "gas"}

    def test_categories_follow_from_the_place(self) -> None:
        for element in elements.elements():
            if element.group == 18:
                assert element.category == "noble gas"
            elif element.group == 17:
                assert element.category == "halogen"
            elif element.group == 2:
                assert element.category == "alkaline earth metal"
            elif element.group == 1:
                assert element.category == ("nonmetal" if element.name == "hydrogen" else "alkali metal")
            elif element.block == "d-block":
                assert element.category == "transition metal"
            else:
                assert element.category in {"nonmetal", "metalloid", "post-transition metal"}
        named = {c: {e.symbol for e in elements.elements() if e.category == c} for c in ("nonmetal", "metalloid")}
        assert named == {"nonmetal": {*"HCNOPS", "Se"}, "metalloid": {"B", "Si", "Ge", "As", "Sb", "Te"}}


Split = tuple[list[elements.Question], list[elements.Question]]


class TestQuestions:
    def test_sizes(self, questions: Split) -> None:
        train, test = questions
        assert 2_000 <= len(train) <= 3_000 and len(test) == 300

    def test_no_question_is_in_both_parts_and_each_test_fact_is_in_the_training_part(self, questions: Split) -> None:
        train, test = questions
        asked = [question.question for question in (*train, *test)]
        assert len(asked) == len(set(asked))
        assert {question.fact for question in test} <= {question.fact for question in train}

    def test_choices(self, questions: Split) -> None:
        by_name = {element.name: element for element in elements.elements()}
        for question in (*questions[0], *questions[1]):
            assert len(set(question.choices)) == 4
            kind, name = question.fact.split(": ")
            element = by_name[name]
            right = {
                "group": f"group {element.group}",
                "period": f"period {element.period}",
                "number": str(element.number),
            }.get(kind) or getattr(element, kind)
            assert question.choices[question.answer] == right

    def test_the_place_of_the_answer_tells_nothing(self, questions: Split) -> None:
        for asked in questions:
            share = [sum(question.answer == place for question in asked) / len(asked) for place in range(4)]
            assert max(share) < 0.33 and min(share) > 0.17


@pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="the demo's model has not been built")
class TestPrepare:
    def test_writes_what_the_recipe_names(
        self, tmp_path: Path, documents: list[corpus.Document], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(corpus, "documents", lambda: documents)  # extracted once for all tests
        variables = prepare(tmp_path / "data")
        recipe = RECIPE.read_text(encoding="utf-8")
        for name, value in variables.items():
            assert f"${{{name}}}" in recipe
            recipe = recipe.replace(f"${{{name}}}", value)
        assert "${" not in recipe
        files = [Path(line.split(": ")[1]) for line in recipe.splitlines() if line.endswith(".jsonl")]
        assert len(files) == 8 and {path.parent for path in files} == {tmp_path / "data"}
        assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "data").iterdir())
        for path in files:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            fields = {"question", "choices", "answer"} if path.name.startswith("elements") else {"text"}
            assert records and all(set(record) == fields for record in records)
            if path.name.endswith("_test.jsonl") and fields == {"text"}:
                assert path.stat().st_size < 1.1 * corpus.TEST_BYTES

    def test_the_model_is_small_and_loads(self) -> None:
        transformers = pytest.importorskip("transformers")
        assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 6_000_000
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
        assert len(tokenizer) == model.config.vocab_size == 2048
        assert tokenizer.eos_token_id is not None and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        text = "Return the ﬁrst item;\n    ¿naïve?  x = [1, 2]\n"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
