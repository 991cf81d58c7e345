"""Recipes that a stranger may hand over: what YAML can do beyond saying settings is refused in a line, and quickly."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from alora_trainer.basics.output import configure_output, say
from alora_trainer.basics.printable import markdown_text, printable
from alora_trainer.cli import main
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import lm_eval_tasks
from alora_trainer.experiment.recipe import reading
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from tests.tiny_recipe import SETTINGS

CASES = Path(__file__).resolve().parents[1] / "cases" / "recipes" / "yaml"
REFUSED = {
    "bomb": "in line 6: it has more than 100,000 values, counting what aliases stand for",
    "merge_bomb": "it has more than 100,000 values",
    "cycle": "in line 1: *a stands for something that it is itself in",
    "cycle_of_mappings": "in line 3: *t stands for something that it is itself in",
    "deep": "in line 1: it is nested more than 50 deep",
    "deep_block": "in line 50: it is nested more than 50 deep",
    "not_its_tag": "a value is not what its tag says",
    "python_tag": "in line 1: could not determine a constructor for the tag",
    "unhashable": "in line 1: found unhashable key",
    "long_number": "a value is not what its tag says",
    "escapes": r"unknown key \x1b[31mred\x1b[0m\u202e: ",
    "raw_escape": "special characters are not allowed",
    "escaped_value": r"\x1b[2Jsciq",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_refused_in_a_line_that_a_terminal_takes_as_text(
    name: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    begun = time.monotonic()
    folder = ["--output_dir", str(tmp_path / "run"), "--over", "lam=1"] if command == "sweep" else []
    assert main([command, str(CASES / f"{name}.yaml"), *folder]) == 2
    said = capsys.readouterr().err
    assert REFUSED[name] in said and said.count("\n") == 1 and said[:-1].isprintable()
    assert time.monotonic() - begun < 5


def test_anchors_that_do_no_harm_are_read() -> None:
    recipe = load_recipe(CASES / "fine.yaml")
    assert recipe.record == recipe.tune == {"max_steps": 3}


def test_overrides_are_read_as_safely(tmp_path: Path) -> None:
    for text, message in (("[" * 60 + "]" * 60, "nested more than 50 deep"), ("&a [*a]", "that it is itself in")):
        with pytest.raises(ALoRAError, match=message):
            load_recipe(CASES / "fine.yaml", {"tune.lr_scheduler_kwargs": text})


def test_printable() -> None:
    assert printable("a\x1b[31mb\x07\x9b1m\r\x00\u2028\u202e\u2066\ud800") == (
        r"a\x1b[31mb\x07\x9b1m\r\x00\u2028\u202e\u2066\ud800"
    )
    for fine in ("plain", "zwei Zeilen\n\tund Tab", "±%–ü漢字 👩‍🚀 العربية", ""):
        assert printable(fine) == fine


def test_markdown_text() -> None:
    assert markdown_text("a|b\n# <script>x</script> [y](javascript:z) `c` *d* \x1b[0m\\") == (
        r"a\|b # &lt;script>x&lt;/script> \[y\](javascript:z) \`c\` \*d\* \\x1b\[0m\\"
    )
    assert markdown_text("lora_ab@lam=0.1 (±2.5 %)") == "lora_ab@lam=0.1 (±2.5 %)"


def test_what_is_printed_and_logged_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_output()
    say("from a map: \x1b[31mred")
    assert capsys.readouterr().out == "from a map: \\x1b[31mred\n"
    logging.getLogger("alora_trainer.x").warning("from a file: \x1b[31mred")
    assert capsys.readouterr().err == "from a file: \\x1b[31mred\n"


def test_tasks_of_ones_own_stand_beside_the_recipe_and_a_warning_says_that_their_code_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()  # of the working folder, which is not meant
    reading._warn_of_code.cache_clear()
    settings = SETTINGS | {"evaluation": {"general_tasks": ["own"], "task_folder": "tasks"}}
    with caplog.at_level(logging.WARNING, logger="alora_trainer"):
        recipe = build_recipe(settings, base=tmp_path / "recipes")
        build_recipe(settings, base=tmp_path / "recipes")
    folder = str(tmp_path / "recipes" / "tasks")
    assert recipe.evaluation.task_folder == folder
    assert caplog.text.count("may run code of their own (!function)") == 1 and folder in caplog.text
    with pytest.raises(ALoRAError, match="task_folder='.*recipes/tasks' is no folder"):
        lm_eval_tasks(["own"], folder)
    caplog.clear()
    assert build_recipe(SETTINGS).evaluation.task_folder is None and not caplog.text


def test_files_of_the_trainers_settings_stand_beside_the_recipe(tmp_path: Path) -> None:
    tune = SETTINGS["tune"] | {"accelerator_config": "accelerator.json"}
    (tmp_path / "accelerator.json").write_text('{"split_batches": true}')
    recipe = build_recipe(SETTINGS | {"tune": tune}, base=tmp_path)
    assert recipe.tune["accelerator_config"] == str(tmp_path / "accelerator.json")
    assert recipe.training_arguments("tune", tmp_path).accelerator_config.split_batches
    inline = build_recipe(SETTINGS | {"tune": tune | {"accelerator_config": '{"split_batches": true}'}}, base=tmp_path)
    assert inline.tune["accelerator_config"] == '{"split_batches": true}'
