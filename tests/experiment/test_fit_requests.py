"""What `alora fit` and `alora init` are asked for: what is refused and in which words, what is counted, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation import lm_tasks
from alora_trainer.experiment.fit import prepared, whole_fit
from alora_trainer.experiment.fit.general_parts import PARTS
from alora_trainer.experiment.fit.prepared import planned, prepare
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.recipe.plan.general_amounts import GeneralText, general_text
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.gate import parse_kept
from tests.tiny_recipe import WORDS, make_collecting_cheap, write_all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, sums to learn, and general text of three hundred words."""
    make_collecting_cheap()
    folder = tmp_path_factory.mktemp("asked")
    write_all(folder)
    sums = [{"question": f"{a} and {b}", "answer": str(a + b)} for a in range(7) for b in range(8)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    texts = [{"text": " ".join(WORDS[n % 7 :] * 2) + f" {n}."} for n in range(60)]
    (folder / "words.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    return folder


@pytest.fixture
def asked(tiny: Path, tmp_path: Path) -> Callable[..., FitRequest]:
    """`asked(**settings)`: a request for the sums."""
    return lambda **settings: FitRequest(
        str(tiny / "model"),
        (str(tiny / "sums.jsonl"),),
        tmp_path / "out",
        general=(str(tiny / "words.jsonl"),),
        **settings,
    )


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of the error that the command ends with."""
    assert main([str(one) for one in arguments]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("alora: error: ")]
    return line


# --- a dry run ---


def test_a_dry_run_of_the_demo_writes_nothing_and_names_the_data_as_a_fit_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []

    def prepare_demo(folder: Path) -> dict[str, str]:
        made.append(folder)
        folder.mkdir(parents=True)
        for name, texts in (
            ("elements_train", 60),
            ("elements_test", 60),
            ("docstrings_train", 60),
            ("topics_train", 60),
        ):
            rows = [{"question": f"{name} {n}?", "answer": str(n), "text": f"{name} {n}. " * 40} for n in range(texts)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        return {}

    monkeypatch.setattr("alora_trainer.experiment.demo.prepare", prepare_demo)
    monkeypatch.setattr(prepared, "plan_text", lambda _: "the plan")
    monkeypatch.chdir(tmp_path)
    template = ["--prompt", "{question}", "--completion", " {answer}"]
    assert main(["fit", "demo", "--output_dir", "out", "--dry-run", *template]) == 0
    assert not list(tmp_path.iterdir()) and made and not made[0].exists()
    said = capsys.readouterr().out
    assert said.startswith("out/demo-data/elements_train.jsonl: 60 records") and str(made[0].parent) not in said


def test_the_plan_of_a_fit_counts_the_general_text_that_there_is(
    asked: Callable[..., FitRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of text that is given its files, which are written nowhere; of text to be sampled, what will be."""
    given: list[tuple[Any, Any]] = []
    monkeypatch.setattr(prepared, "format_plan", str)
    monkeypatch.setattr(
        prepared, "plan_recipe", lambda recipe, _, general: given.append((general_of(recipe, general), recipe))
    )
    found = prepare(asked(max_steps=4, overrides={"general.test.other": "mine.jsonl"}))
    found.folder.mkdir()
    (found.folder / "mine.jsonl").write_text('{"text": "one and two"}\n')
    prepared.plan_text(found)
    prepared.plan_text(prepare(replace(asked(max_steps=4, general_tokens=8000), general=())))
    (counted, _), (sampled, _) = given
    ids = found.tokenizer([text for texts in found.found.general["record"].values() for text in texts])["input_ids"]
    assert counted.train == pytest.approx(sum(len(one) + 1 for one in ids), rel=0.02)
    assert counted.test is not None and counted.test > counted.train
    assert sampled == GeneralText(int(8000 * PARTS["record"]), int(8000 * PARTS["promise"]))


def general_of(recipe: Any, given: GeneralText | None) -> GeneralText:
    """What a plan goes by."""
    return given or general_text(recipe)


def test_blocks_are_of_what_is_asked_for_and_of_what_there_is(tiny: Path) -> None:
    for train, most, blocks in ((1000, None, 10), (1000, 250, 3), (1000, 5000, 10), (None, 250, 3), (None, None, None)):
        assert GeneralText(train, None).blocks(100, most) == blocks
    whole, part = (general_text(load_recipe(tiny / "recipe.yaml", more)) for more in ({}, {"general.test_bytes": 400}))
    assert whole.train is not None and whole.test is not None and part.test is not None
    assert whole.train == part.train and 0.2 < 400 / 1600 < part.test / whole.test < 0.5
    far = {"general.train": "{more: hub:someone/text}"}
    assert general_text(load_recipe(tiny / "recipe.yaml", far)).train is None
    assert general_text(load_recipe(tiny / "recipe.yaml", far | {"general.train_tokens": 400})).train == 400


# --- settings of the recipe ---


@pytest.mark.parametrize(
    ("overrides", "argument"),
    [({"methods": "base,lora"}, "--method"), ({"seed": 1}, "--seed"), ({"output_dir": "x"}, "--output_dir")],
)
def test_a_fit_refuses_settings_that_it_would_not_follow(
    asked: Callable[..., FitRequest], overrides: dict[str, Any], argument: str
) -> None:
    for work in (planned, whole_fit.run_fit):
        with pytest.raises(ALoRAError, match=f"{next(iter(overrides))} cannot be overridden in a fit.*{argument}"):
            work(asked(overrides=overrides))
    assert not asked().output_dir.exists()


def test_init_writes_them_and_says_no_reason_for_them(asked: Callable[..., FitRequest]) -> None:
    path = whole_fit.init(asked(overrides={"methods": ["base", "lora"], "tune.learning_rate": 1e-3}))
    assert [method.name for method in load_recipe(path).methods] == ["base", "lora"]
    text = path.read_text()
    assert "held to it by a map that is measured" not in text and "by the model's size" not in text
    assert "methods: # the base model, and LoRA held" in prepare(asked()).text


def test_the_help_names_no_setting_that_is_refused_and_the_folder_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fit", "init"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "--methods" not in said and "(default: fit-NAME, NAME being" in said and "runs/NAME" not in said


def test_overrides_from_python_are_plain_values_or_texts(asked: Callable[..., FitRequest], tiny: Path) -> None:
    given = {
        "lora.r": 16,
        "tune.learning_rate": 1e-4,
        "alora.normalize": False,
        "lora.target_modules": ("q_proj", "v_proj"),
    }
    written = prepare(asked(overrides=given)).written
    assert (written["lora"]["r"], written["tune"]["learning_rate"], written["alora"]["normalize"]) == (16, 1e-4, False)
    assert yaml.safe_load(yaml.safe_dump(written))["lora"]["target_modules"] == ["q_proj", "v_proj"]
    recipe = load_recipe(
        tiny / "recipe.yaml", {"lora.r": 4, "tune.learning_rate": "1e-4", "model": {"path": tiny / "model"}}
    )
    assert recipe.lora["r"] == 4 and recipe.tune["learning_rate"] == 1e-4
    with pytest.raises(ALoRAError, match=r"lora\.r=<object .* cannot be written in a recipe: give a number"):
        load_recipe(tiny / "recipe.yaml", {"lora.r": object()})


# --- what is to be kept ---


def test_what_is_to_be_kept_may_be_said_in_every_form() -> None:
    kept = {"hellaswag": -0.01, "arc=easy": 0.0}
    for given in (
        ["hellaswag=-1pt", "arc=easy=0"],
        {"hellaswag": "-1%", "arc=easy": 0},
        kept,
        ("hellaswag=-0.01", "arc=easy=0pt"),
    ):
        assert parse_kept(given) == kept
    assert parse_kept("hellaswag=-1pt") == {"hellaswag": -0.01}
    assert parse_kept(parse_kept("hellaswag=-100pt")) == {"hellaswag": -1.0}  # nothing is held: whoever wants it may
    for wrong, words in (
        ("hellaswag=1pt", "hellaswag=1pt would have its score rise: write hellaswag=-1pt"),
        ({"hellaswag": 0.01}, "hellaswag=0.01 would have its score rise: write hellaswag=-0.01"),
        ("hellaswag=-1", "would let its score fall by 100 points: write hellaswag=-1pt"),
        ({"hellaswag": -2}, "would let its score fall by 200 points: write hellaswag=-2pt"),
        ({"hellaswag": None}, "must be the least change of its score"),
        (["a=-1pt", "a=-2pt"], "a is to be kept twice"),
        ("hellaswag", "write TASK=-1pt"),
    ):
        with pytest.raises(ALoRAError, match=words):
            parse_kept(wrong)  # type: ignore[arg-type]


def test_python_says_what_is_to_be_kept_as_the_command_line_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[FitRequest] = []
    monkeypatch.setattr(whole_fit, "run_fit", lambda request, **_: found.append(request))
    from alora_trainer import fit

    for given in ("hellaswag=-1pt", ["hellaswag=-1pt"], {"hellaswag": -0.01}):
        fit("model", "a.jsonl", keep=given)
    assert [request.keep for request in found] == [{"hellaswag": -0.01}] * 3


class Known:
    """A manager of lm-eval's that knows two tasks."""

    all_tasks = ("hellaswag", "arc_easy")


def test_a_task_that_is_none_is_told_before_anything_is_loaded_or_written(
    asked: Callable[..., FitRequest],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lm_tasks, "_own_manager", lambda _: Known())
    monkeypatch.setattr(prepared, "load_tokenizer", lambda _: pytest.fail("the tokenizer was loaded"))
    for work in (planned, whole_fit.run_fit, whole_fit.init):
        with pytest.raises(ALoRAError, match="lm-eval has no task hellaswg: did you mean hellaswag"):
            work(asked(keep="hellaswg=-1pt"))
    with pytest.raises(ALoRAError, match="is no folder"):
        planned(asked(keep="mine=-1pt", overrides={"evaluation.task_folder": "nowhere"}))
    # The same of a recipe, before its first training.
    more = ["--evaluation.general_tasks", "[hellaswg]", "--output_dir", tmp_path / "run"]
    assert "lm-eval has no task hellaswg" in error_of(capsys, "run", tiny / "recipe.yaml", "--methods", "lora", *more)
    assert not (tmp_path / "run" / "lora").exists() and not asked().output_dir.exists()


# --- names and numbers ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": "3"}, "epochs='3' must be a positive number"),
        ({"probing": "25%"}, r"probing='25%' must be a share of the training's steps, such as 0\.25"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"max_steps": 2.5}, "max_steps must be a whole number"),
        ({"max_general_rise": "1%"}, "max_general_rise='1%' must be a positive share"),
    ],
)
def test_a_wrong_argument_is_named_with_what_it_takes(
    asked: Callable[..., FitRequest], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ALoRAError, match=words):
        asked(**settings)


def test_too_few_items_have_a_remedy(asked: Callable[..., FitRequest], tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}", "completion": " x"}) + "\n" for n in range(9))
    )
    with pytest.raises(
        ALoRAError, match=r"only 9 items can be learned from .*: 20 are needed.* give more records or files"
    ):
        prepare(replace(asked(), data=(str(tmp_path / "few.jsonl"),)))


def test_a_name_that_could_be_a_path_is_told_to_be_none_here(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "items").mkdir(parents=True)
    said = error_of(capsys, "fit", tiny / "model", "data/itms")
    assert "there is no file or folder data/itms: did you mean data/items?" in said and "hub:data/itms" in said
    assert "there is no file or folder dat/items here either (did you mean data/items?)" in error_of(
        capsys, "fit", tiny / "model", "dat/items"
    )
    (tmp_path / "amodel").mkdir()
    said = error_of(capsys, "fit", "amodle", tiny / "sums.jsonl")
    assert "there is no file or folder amodle here either (did you mean amodel?)" in said
