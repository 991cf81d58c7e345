"""Secrets and what else comes from the environment: used where it is needed, written nowhere."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from alora_trainer.basics.disclosure import FromEnvironment, as_settings, disclosed, is_secret_name, without_secrets
from alora_trainer.basics.files import write_json
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.cli import main
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.contents import CONTENTS, by_content
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.recipe.settings import interpolate
from alora_trainer.experiment.report.results import read_results
from alora_trainer.experiment.run import dependencies
from alora_trainer.experiment.run.facts import recording_facts
from alora_trainer.experiment.run.stage import Stage, digest, plain
from tests.tiny_recipe import SETTINGS, make_collecting_cheap, write_all

TOKEN = "hf_" + "SecretOfNobody" * 3
LABEL = "label-of-this-machine"
CASES = Path(__file__).resolve().parents[1] / "cases" / "recipes"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("private-folder")).parent


@pytest.fixture
def private(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a token, a label and the folder of the texts from the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("RUN_LABEL", LABEL)
    monkeypatch.setenv("TEXTS", str(tiny))
    settings = copy.deepcopy(SETTINGS) | {"methods": ["lora", "alora"]}
    settings["tune"] |= {"hub_token": "${HF_TOKEN}", "run_name": "${RUN_LABEL}", "max_steps": 2}
    settings["record"] |= {"hub_token": "${HF_TOKEN}", "max_steps": 2}
    settings["method_options"] = {"alora": {"tune": {"hub_token": "${HF_TOKEN}"}}}
    settings["general"]["train"] = "${TEXTS}/words_train.jsonl"
    path = tiny / "private.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def without_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*args: Any, **rest: Any) -> Score:
        return Score(GeneralScore(token_perplexity=10.0, subsets={}), {"sums": TaskScore(acc=0.5)})

    monkeypatch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", evaluate)


def test_nothing_of_it_is_written_by_a_run(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_evaluation(monkeypatch)
    run = tmp_path / "run"
    assert main(["run", str(private), "--output_dir", str(run)]) == 0
    said = capsys.readouterr()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "results.json", "settings.json", "training.json"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    # The Trainer pickles its own arguments, and its name of the run among them.
    ours = [path for path in files if path.name != "training_args.bin"]
    assert not [path for path in ours if LABEL.encode() in path.read_bytes()]
    where = str(private.parent / "words_train.jsonl").encode()
    assert not [path for path in ours if where in path.read_bytes()]
    assert TOKEN not in said.out + said.err and LABEL not in said.out + said.err
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert written["tune"]["hub_token"] == "${HF_TOKEN}" and written["tune"]["run_name"] == "${RUN_LABEL}"
    assert written["general"]["train"] == {"words_train": "${TEXTS}/words_train.jsonl"}
    assert load_recipe(run / "recipe.yaml").resolved() == load_recipe(private).resolved()
    # Another token is the same work; another label is not, and the message does not tell either.
    monkeypatch.setenv("HF_TOKEN", TOKEN + "2")
    assert main(["run", str(private), "--output_dir", str(run)]) == 0
    monkeypatch.setenv("RUN_LABEL", "another-label-of-it")
    capsys.readouterr()
    assert main(["run", str(private), "--output_dir", str(run)]) == 2
    said = capsys.readouterr()
    assert "tune.run_name was '${RUN_LABEL} (sha256 " in said.err
    assert LABEL not in said.err and "another-label" not in said.err


def test_the_values_are_there_where_they_are_used(private: Path) -> None:
    recipe = load_recipe(private)
    args = recipe.training_arguments("tune", "out")
    assert args.hub_token == TOKEN and type(args.hub_token) is str
    assert args.run_name == LABEL and type(args.run_name) is str
    assert recipe.general.train == {"words_train": str(private.parent / "words_train.jsonl")}
    lora = build_recipe(_settings({"lora": {"init_lora_weights": "${INIT}"}}), variables={"INIT": "gaussian"})
    assert lora.lora_config().init_lora_weights == "gaussian"


def test_a_step_depends_on_the_value_and_not_on_secrets(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> dict[str, Any]:
        recipe = load_recipe(private)
        return plain(dependencies.result(recipe, recipe.methods[1]).settings | recipe.resolved())

    before = settings()
    assert TOKEN not in json.dumps(before) and LABEL not in json.dumps(before) and "hub_token" not in json.dumps(before)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "2")
    assert settings() == before
    monkeypatch.setenv("RUN_LABEL", "another-label-of-it")
    assert digest(settings()) != digest(before)
    reason = dependencies.result(load_recipe(private), load_recipe(private).methods[0]).reason_without("tune.hub_token")
    assert reason is not None and "a secret is no setting" in reason


def _settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    return settings


LITERAL = [
    ({"tune": {"hub_token": TOKEN}}, "tune.hub_token"),
    ({"record": {"hub_token": "x"}}, "record.hub_token"),
    ({"tune": {"hub_token": "${HF_TOKEN:-" + TOKEN + "}"}}, "tune.hub_token"),
    ({"method_options": {"lora": {"tune": {"hub_token": "x"}}}}, "method_options.lora.tune.hub_token"),
    ({"tune": {"run_name": f"https://me:{TOKEN}@example.org"}}, "tune.run_name"),
    ({"general": {"test": {"words": TOKEN}}}, "general.test.words"),
    ({"tune": {"deepspeed": {"api_key": "x"}}}, "tune.deepspeed.api_key"),
]


@pytest.mark.parametrize(("changes", "field"), LITERAL, ids=[field for _, field in LITERAL])
def test_a_secret_that_is_written_down_is_refused_and_not_repeated(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ALoRAError) as caught:
        build_recipe(_settings(changes))
    assert str(caught.value).startswith(f"{field} holds a secret") and "HF_TOKEN" in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{recipe}", "--tune.hub_token", TOKEN],
        ["run", "{recipe}", "--tune.hub_token", f"[{TOKEN}"],
        ["run", "{recipe}", "--tune.hub_token.x", TOKEN],
        ["run", "{recipe}", f"--tune.hub_token={TOKEN}"],
        ["run", "{recipe}", "--tune", TOKEN],
        ["sweep", "{recipe}", "--over", f"tune.hub_token={TOKEN},x"],
        ["run", str(CASES / "token.yaml")],
        ["sweep", str(CASES / "token_in_sweep.yaml")],
        ["plan", str(CASES / "token.yaml")],
    ],
    ids=str,
)
def test_so_is_one_on_the_command_line(
    arguments: list[str], private: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.replace("{recipe}", str(private)) for one in arguments]
    folder = [] if given[0] == "plan" else ["--output_dir", str(tmp_path / "run")]
    assert main([*given, *folder]) == 2
    said = capsys.readouterr()
    assert "holds a secret" in said.err and "SecretOfNobody" not in said.err + said.out
    assert not (tmp_path / "run").exists()


def test_what_is_no_secret() -> None:
    for name in ("hub_token", "tune.hub_token", "HF_TOKEN", "WANDB_API_KEY", "db_password", "client_secret", "token"):
        assert is_secret_name(name), name
    for name in (
        "record_tokens",
        "kl_tokens",
        "pad_token",
        "eos_token",
        "TOKENIZERS",
        "keys",
        "average_tokens",
        "secretary",
    ):
        assert not is_secret_name(name), name
    assert {one for one in vars(TrainingArguments()) if is_secret_name(one)} == {"hub_token"}
    build_recipe(_settings({"tune": {"hub_token": None}, "general": {"test": {"secret": "words_test.jsonl"}}}))


def test_an_unset_variable_with_an_empty_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert build_recipe(_settings({"tune": {"hub_token": "${HF_TOKEN:-}"}})).tune["hub_token"] == ""


def test_the_value_and_how_it_was_written() -> None:
    value = interpolate({"tune": {"path": "${A}/x/${B:-y}/${C}"}}, {"A": "/private", "C": "c"}, known=["C"])["tune"][
        "path"
    ]
    assert value == "/private/x/y/c" and isinstance(value, FromEnvironment)
    assert disclosed([value]) == ["${A}/x/y/c"] and repr(value) == "'${A}/x/y/c'" and f"{value}" == "/private/x/y/c"
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert copied == value and copied.written == value.written and not copied.secret
    assert type(interpolate("${C}", {"C": "c"}, known=["C"])) is str
    told = as_settings({"a": value, "token": FromEnvironment(TOKEN, "${T}", True), "n": [value]})
    assert list(told) == ["a", "n"] and told["a"].startswith("${A}/x/y/c (sha256 ")
    assert told != as_settings({"a": FromEnvironment("/other/x/y/c", "${A}/x/y/c"), "n": [value]})


def test_a_relative_value_stays_where_the_recipe_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "texts")
    recipe = build_recipe(
        _settings({"general": {"train": "${TEXTS}/a.jsonl"}, "model": {"path": "some/model"}}), base=tmp_path
    )
    (train,) = recipe.resolved()["general"]["train"].values()
    assert train == str(tmp_path / "texts" / "a.jsonl") and train.written == f"{tmp_path}/${{TEXTS}}/a.jsonl"


def test_json_files_and_cards_have_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", {"x": [FromEnvironment("private", "${X}")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": ["${X}"]}
    monkeypatch.setenv("ORG", "private-org")
    monkeypatch.setenv("FILE", "private-file.jsonl")
    sources = {"a": {"hub": "${ORG}/texts", "split": "train", "revision": "x"}, "b": "${FILE}"}
    recipe = build_recipe(_settings({"general": {"train": sources}}))
    monkeypatch.setattr("alora_trainer.experiment.run.facts.commit_of", lambda *_: None)
    import torch

    facts = recording_facts(recipe, {"seconds": 1, "peak_bytes": 1}, torch.device("cpu"))
    assert facts["data"]["sources"] == [{"hub": "${ORG}/texts", "split": "train", "revision": "x"}, {"path": "${FILE}"}]


def test_a_file_whose_name_is_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private-file.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setenv("FILE", str(tmp_path / "private-file.jsonl"))
    for source in ("${FILE}", {"path": "${FILE}", "text_column": "text"}):
        recipe = build_recipe(_settings({"general": {"train": {"a": source}}}))
        told = by_content("general", {"train": recipe.general.train}, CONTENTS)
        assert "${FILE}" in json.dumps(plain(told)) and "private-file" not in json.dumps(plain(told))


def test_a_seed_from_the_environment_is_a_number_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "7")
    recipe = build_recipe(SETTINGS | {"seed": "${SEED}"})
    assert recipe.seed == 7 and recipe.written["seed"] == 7


def test_results_and_settings_of_earlier_versions(tmp_path: Path) -> None:
    """They may have a token in clear: it gets into no report, and into no message."""
    method = {"general": {}, "tasks": {}, "settings": {"tune.hub_token": TOKEN, "tune.max_steps": 2}}
    content = {"schema": 1, "recipe": {"tune": {"hub_token": TOKEN}}, "methods": {"lora": method}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    (run,) = read_results(tmp_path / "results.json")
    assert TOKEN not in json.dumps(run.to_json()) and run.recipe["tune"]["hub_token"] == "<HUB_TOKEN>"
    assert without_secrets({"a": ["${T}", {"my_token": "${T}"}], "tokens": 3}) == {
        "a": ["${T}", {"my_token": "${T}"}],
        "tokens": 3,
    }
    stage = Stage(tmp_path / "lora", {"tune": {"max_steps": 2}}, "training")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "settings.json").write_text(json.dumps({"tune": {"max_steps": 2, "hub_token": TOKEN}}))
    (tmp_path / "lora" / "training.json").write_text("{}")
    with pytest.raises(ALoRAError, match="tune.hub_token is secret") as caught:
        stage.begin()
    assert TOKEN not in str(caught.value)
