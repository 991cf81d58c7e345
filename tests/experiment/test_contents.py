"""A result depends on what stands in local files, not on where they are: changed in place they count, moved they do not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.contents import CONTENTS, Contents, by_content
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.dependencies import Given, result
from alora_trainer.experiment.run.given_map import GivenMap
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.sweep import Grid, cells_of
from alora_trainer.experiment.run.whole_recipe import _identity
from tests.tiny_recipe import SETTINGS

LORA, ALORA = METHODS["lora"], METHODS["alora"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder with all that a recipe may name, none of it what a training could begin with."""
    folder = tmp_path / "recipes"
    texts = {
        "words_train.jsonl": '{"text": "a"}\n',
        "words_test.jsonl": '{"text": "b"}\n',
        "sums_train.jsonl": '{"question": "1"}\n',
        "sums_test.jsonl": '{"question": "2"}\n',
        "more/one.jsonl": "1\n",
        "more/two.jsonl": "2\n",
        "model/config.json": "{}",
        "model/model.safetensors": "weights",
        "model/README.md": "a model",
        "tasks/mine.yaml": "task: mine",
        "tasks/data/mine.jsonl": "{}",
        "map/importance_config.json": "{}",
        "map/adapter_model.safetensors": "theta",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def refused(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """`refused(name, text, **settings)`: a training is finished, the file gets this text, and the same command comes again;
    why it is refused, or None."""
    # What is in a map is not looked at here.
    monkeypatch.setattr(GivenMap, "place", property(lambda given: given._source))
    monkeypatch.setattr(GivenMap, "measured", None)

    def check(name: str, text: str, *, importance: Path | None = None, **settings: str) -> str | None:
        def run() -> Run:
            return Run(load_recipe(files / "recipe.yaml", settings), tmp_path / "run", importance=importance)

        stage = run().steps.training(ALORA)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        stage.begin()
        stage.finish({})
        before = (files / name).read_text()
        (files / name).write_text(text)
        try:
            run().check(ALORA)
        except ALoRAError as error:
            return str(error)
        finally:
            (files / name).write_text(before)
        return None

    return check


def test_a_file_that_was_changed_in_place_is_told_by_name(refused: Callable[..., str | None], files: Path) -> None:
    for name, setting, options in (
        ("words_train.jsonl", "recording.general.train", {}),
        ("sums_train.jsonl", "domain.train", {}),
        ("sums_test.jsonl", "domain.test", {}),
        ("model/model.safetensors", "model.path", {}),
        ("model/config.json", "model.path", {}),
        ("map/adapter_model.safetensors", "recording", {"importance": files / "map"}),
        ("more/one.jsonl", "recording.general.train", {"general.train": "more/*.jsonl"}),
        (
            "more/one.jsonl",
            "tune.accelerator_config",
            {"tune.accelerator_config": str(files / "more/one.jsonl")},
        ),
    ):
        if setting.startswith("tune."):
            (files / name).write_text("{}")
        message = refused(name, '{"split_batches": false}', **options)
        assert message is not None and re.search(rf"\({setting}\S*\.content was ", message), (name, message)
    for name, options in (
        ("model/README.md", {}),
        ("tasks/mine.yaml", {}),
        ("words_test.jsonl", {}),  # forgetting is measured after the training
        ("words_train.jsonl", {"importance": files / "map"}),
        ("map/importance_config.json", {}),
    ):
        assert refused(name, "other", **options) is None, name


def test_moved_files_are_the_same_and_renamed_ones_are_not(files: Path, tmp_path: Path) -> None:
    def identity(folder: Path, **settings: str) -> str:
        recipe = replace(load_recipe(folder / "recipe.yaml", settings), contents=CONTENTS)
        return result(recipe, ALORA).digest

    several = {"general.train": "more/*.jsonl", "evaluation.general_tasks": "[mine]"}
    tasks = {"evaluation.task_folder": str(files / "tasks")}
    before = [identity(files), identity(files, **several, **tasks)]
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(files, moved)
    tasks = {"evaluation.task_folder": str(moved / "tasks")}
    assert [identity(moved), identity(moved, **several, **tasks)] == before
    (moved / "tasks" / "data" / "mine.jsonl").write_text("changed")
    assert identity(moved, **several, **tasks) != before[1]
    (moved / "sums_train.jsonl").rename(moved / "renamed.jsonl")
    assert identity(moved, **{"domain.train": "renamed.jsonl"}) != before[0]
    with pytest.raises(ALoRAError, match="no file .*sums_train.jsonl"):
        identity(moved)


def test_a_pattern_is_told_by_the_list_of_its_files(files: Path) -> None:
    pattern = str(files / "more" / "*.jsonl")
    before = CONTENTS.source(pattern)
    (files / "more" / "two.jsonl").rename(files / "more" / "three.jsonl")
    renamed = CONTENTS.source(pattern)
    (files / "more" / "two.jsonl").write_text("2\n")
    more = CONTENTS.source(pattern)
    assert len({one["content"] for one in (before, renamed, more)}) == 3
    (files / "more" / "one.jsonl").write_text("X\n")  # of the same size, in the same moment
    assert CONTENTS.source(pattern) != more


def test_only_what_a_step_depends_on_is_read() -> None:
    """A run whose corpus is gone can still be evaluated."""

    class Asked(Contents):
        def __init__(self) -> None:
            self.paths: list[str] = []

        def source(self, path: str) -> dict[str, str]:
            self.paths.append(Path(path).name)
            return {"file": "x", "content": path}

    def asked(name: str, given: Given | None = None) -> set[str]:
        contents = Asked()
        recipe = build_recipe(SETTINGS | {"model": {"path": "some/model"}}, base="/nowhere", variables={})
        assert result(replace(recipe, contents=contents), METHODS[name], given).digest
        return set(contents.paths)

    held_out = {"words_test.jsonl", "sums_train.jsonl", "sums_test.jsonl"}
    assert asked("base") == asked("lora") == asked("alora", {"content": "0"}) == held_out
    assert asked("alora") == asked("replay") == held_out | {"words_train.jsonl"}


def test_a_result_of_an_adapter_is_one_on_its_base_model(files: Path, tmp_path: Path) -> None:
    """`alora eval --method lora` takes the training as it was; the base model that it is scored on is today's."""

    def run(**settings: str) -> Run:
        return Run(load_recipe(files / "recipe.yaml", settings), tmp_path / "run")

    training = run().steps.training(LORA)
    training.begin()
    training.finish({})
    run().check_scores([LORA], {})
    run().steps.scores("lora", training.digest).finish({})
    run().check_scores([LORA], {})
    run(**{"tune.learning_rate": "0.5"}).check_scores([LORA], {})
    with pytest.raises(ALoRAError, match="lora was made with other settings"):
        run(**{"model.dtype": "bfloat16"}).check_scores([LORA], {})
    (files / "model" / "model.safetensors").write_text("others")
    with pytest.raises(ALoRAError, match="lora was made with other settings"):
        run().check_scores([LORA], {})


def test_sources_in_all_their_forms(files: Path) -> None:
    path = str(files / "sums_train.jsonl")
    told = CONTENTS.source(path)
    assert told["file"] == "sums_train.jsonl" and len(told["content"]) == 16
    for written, expected in (
        (path, told),
        ("hub:some/data", "hub:some/data"),
        ([path, "hub:some/data"], [told, "hub:some/data"]),
        ({"words": path}, {"words": told}),
        ({"path": path, "text_column": "x"}, {"path": told, "text_column": "x"}),
        ({"hub": "some/data", "split": "test"}, {"hub": "some/data", "split": "test"}),
        ("self", "self"),
        (None, None),
    ):
        assert by_content("general", {"train": written, "block_length": 3}, CONTENTS) == {
            "train": expected,
            "block_length": 3,
        }
    several: Any = by_content("domains", [{"train": path}, {"source": path}], CONTENTS)
    assert several == [{"train": told}, {"source": told}]
    assert by_content("seed", 3, CONTENTS) == 3


def test_a_cell_of_a_sweep_and_an_adapter_from_anywhere(files: Path, tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(files / "recipe.yaml")
    (cell,) = cells_of(Grid(files / "recipe.yaml"))
    run = Run(recipe, tmp_path / "run")

    def both() -> list[str]:
        return [cell.remembered(tmp_path).digest, _identity(run, "adapter", files / "map")]

    before = both()
    shutil.copytree(files / "map", tmp_path / "map")
    assert _identity(run, "adapter", tmp_path / "map") == before[1]
    (files / "sums_test.jsonl").write_text("changed")
    (files / "map" / "adapter_model.safetensors").write_text("THETA")
    assert all(one != other for one, other in zip(both(), before, strict=True))
