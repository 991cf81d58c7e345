"""A result names the data that were read, and a domain of one source runs whatever its task is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.artefact.cards.facts import data_text, dataset_ids
from alora_trainer.data.sources import write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.plan import amounts
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.definitions import definitions
from alora_trainer.experiment.run import facts
from alora_trainer.experiment.run.whole_recipe import run_recipe, tune_recipe
from tests.data.test_data_tasks import RECORDS
from tests.tiny_recipe import make_collecting_cheap, write_all

HOLDOUT = {"by": "id", "items": 4}
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Recipe]:
    """`recipe(domain)`: the tiny recipe on another domain."""
    make_collecting_cheap()
    path = write_all(tmp_path_factory.mktemp("read"))
    folder = path.parent
    settings = yaml.safe_load(path.read_text())
    for section in ("record", "tune"):
        settings[section] |= {"max_steps": 2, "save_strategy": "no"}
    tokenizer = folder / "model" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"chat_template": CHAT}))
    write_lines(folder / "own.jsonl", [{"id": i, "q": f"{i} and one", "a": f"is {i + 1}"} for i in range(12)])
    talks = [[{"from": "human", "value": f"{i} and two"}, {"from": "gpt", "value": f"is {i + 2}"}] for i in range(12)]
    write_lines(folder / "talks.jsonl", [{"id": i, "conversations": talk} for i, talk in enumerate(talks)])
    write_lines(folder / "mine.jsonl", [RECORDS["medmcqa"][0] | {"id": i, "question": f"{i}?"} for i in range(12)])

    def of(domain: dict[str, Any]) -> Recipe:
        own = folder / "own.yaml"
        own.write_text(yaml.safe_dump(settings | {"domain": domain | {"max_length": 48}, "methods": ["alora"]}))
        return load_recipe(own, {})

    return of


OWN = {"task": {"name": "own", "prompt": "{q}", "completion": "{a}"}, "source": "own.jsonl", "holdout": HOLDOUT}
TALKS = {"task": {"name": "talk", "messages": "conversations"}, "source": "talks.jsonl", "holdout": HOLDOUT}
MINE = {"task": "medmcqa", "source": "mine.jsonl", "holdout": HOLDOUT}


@pytest.mark.parametrize("domain", [OWN, MINE], ids=["own", "built-in"])
def test_one_source_with_a_holdout_runs_to_its_end_and_again(
    recipe: Callable[..., Recipe], domain: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        found = run_recipe(recipe(domain), output_dir=tmp_path)
        ((name, score),) = found.methods["alora"].tasks.items()
        assert (score.items, score.source) == (4, None)
    made = json.loads((tmp_path / "alora" / "adapter" / "importance_tuning.json").read_text())
    prompt = json.dumps(get_task(domain["task"]).prompt_format)  # as a person would ask, too
    assert made["data"] == {"task": name, "sources": [{"path": domain["source"]}], "prompt": prompt}
    card = (tmp_path / "alora" / "adapter" / "README.md").read_text()
    assert domain["source"] in card and "openlifescienceai" not in card


def test_conversations_of_one_source(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    folder = tune_recipe(recipe(TALKS), METHODS["alora"], output_dir=tmp_path)
    made = json.loads((folder / "importance_tuning.json").read_text())
    assert made["data"] == {"task": "talk", "sources": [{"path": "talks.jsonl"}], "chat_template": True}


@pytest.mark.parametrize(
    ("domain", "read"),
    [
        ({"task": "sciq"}, [{"hub": "allenai/sciq", "revision": "abc"}]),
        (MINE, [{"path": "mine.jsonl"}]),
        (OWN, [{"path": "own.jsonl"}]),
        ({"task": "sciq", "train": "own.jsonl", "test": {"hub": "allenai/sciq"}}, [{"path": "own.jsonl"}]),
        (
            {"task": "sciq", "source": {"hub": "me/sciq", "split": "all"}, "holdout": HOLDOUT},
            [{"hub": "me/sciq", "split": "all", "revision": "abc"}],
        ),
        (OWN | {"source": "hub:me/own"}, [{"hub": "me/own", "revision": "abc"}]),
    ],
)
def test_a_card_names_what_was_trained_on(
    recipe: Callable[..., Recipe], domain: dict[str, Any], read: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "commit_of", lambda *_: "abc")
    found = facts.domain_facts(recipe(domain))
    assert found["sources"] == read
    assert dataset_ids(found) == [one["hub"] for one in read if "hub" in one]
    assert (read[0].get("hub") or read[0]["path"]) in data_text(found)


def test_what_is_said_of_a_split_is_said_of_the_hubs_items_alone(recipe: Callable[..., Recipe]) -> None:
    def notes(domain: dict[str, Any]) -> list[str]:
        return [name for name in definitions(recipe(domain)) if name.startswith("split of")]

    assert notes({"task": "medmcqa"}) == ["split of medmcqa"]
    assert (
        notes(MINE)
        == notes({"task": "sciq"})
        == notes({"task": "piqa", "train": "mine.jsonl", "test": "a.jsonl"})
        == []
    )
    assert notes(OWN | {"task": OWN["task"] | {"name": "piqa_like"}}) == []


def test_how_many_items_there_are_is_known_of_the_hubs_own_data_sets_alone(recipe: Callable[..., Recipe]) -> None:
    assert amounts.domain_items(recipe({"task": "sciq"})) == (11679, 1000)
    assert amounts.domain_items(recipe(OWN)) == (8, 4)
    other = {"task": "sciq", "train": {"hub": "me/more-sciq"}, "test": {"hub": "allenai/sciq", "split": "test"}}
    assert amounts.domain_items(recipe(other)) == (None, 1000)
    part = {"task": "sciq", "train": {"hub": "allenai/sciq", "split": "train[:100]"}, "test": "own.jsonl"}
    assert amounts.domain_items(recipe(part)) == (None, 12)


def test_an_evaluation_names_the_hubs_data_set_where_it_read_it(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alora_trainer.experiment.run import evaluate as evaluation

    given: list[Any] = []
    monkeypatch.setattr(evaluation, "evaluate_model", lambda *_, sources, **__: given.append(sources))
    monkeypatch.setattr(evaluation, "load_to_score", lambda *_: (None, None))
    from alora_trainer.experiment.run.prepare import PreparedData

    for domain in ({"task": "openbookqa"}, MINE, OWN | {"source": "hub:me/own"}):
        one = recipe(domain)
        files = PreparedData({}, one.base, one.base, {})
        evaluation.evaluate([one], [files], None, one.base / "scored", adapter=None)  # type: ignore[arg-type]
    assert given == [
        {"openbookqa": {"hub": "allenai/openbookqa", "name": "main", "split": "test"}},
        {"medmcqa": None},
        {"own": {"hub": "me/own", "split": "train"}},
    ]
