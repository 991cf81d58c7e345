"""A run from end to end on a tiny model: what it writes, that it goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import record as recording
from alora_trainer.experiment.run import tune as training
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.whole_recipe import evaluate_recipe, record_recipe, run_recipe, tune_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all

METHODS = ("base", "lora", "lora_ab", "alora")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the tiny recipe and all that it names."""
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("tiny")).parent


@pytest.fixture
def recipe(tiny: Path) -> Callable[..., Recipe]:
    """`recipe(**{"tune.max_steps": "2"})`: the tiny recipe with overrides."""
    return lambda **overrides: load_recipe(tiny / "recipe.yaml", overrides)


@pytest.fixture
def fast_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces lm-eval by one number that tells models apart; the list has one entry a call."""
    calls: list[str] = []

    def evaluate(model: Any, tokenizer: Any, *, samples_path: Path, **rest: Any) -> Score:
        calls.append(samples_path.parent.name)
        total = sum(float(p.detach().double().abs().sum()) for name, p in model.named_parameters() if "lora_" in name)
        return Score(GeneralScore(token_perplexity=10 + total, subsets={}), {"sums": TaskScore(acc=0.5)})

    monkeypatch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", evaluate)
    return calls


@pytest.fixture(scope="session")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, evaluated by lm-eval."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(load_recipe(tiny / "recipe.yaml"), output_dir=folder)
    return folder


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_results_have_the_schema(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == ["schema", "recipe", "environment", "definitions", "overlap", "methods"]
    assert results["schema"] == 1
    assert results["recipe"]["tune"]["learning_rate"] == 0.01
    assert {
        "python",
        "torch",
        "transformers",
        "peft",
        "lm_eval",
        "alora_trainer",
        "platform",
        "threads",
        "device",
    } <= set(results["environment"])
    assert tuple(results["methods"]) == METHODS
    for name, entry in results["methods"].items():
        assert isinstance(entry["general"]["token_perplexity"], float)
        assert isinstance(entry["general"]["word_perplexity"], float)
        assert set(entry["general"]["subsets"]) == {"words"}
        scores = entry["tasks"]["sums"]
        assert {"acc", "acc_stderr", "acc_norm"} <= set(scores)
        assert (entry["train"]["seconds"] > 0) == (entry["train"]["peak_bytes"] > 0) == (name != "base")
        assert ("record" in entry) == (name in ("lora_ab", "alora"))


def test_no_path_of_this_machine_is_in_the_results(whole: Path, tiny: Path) -> None:
    text = (whole / "results.json").read_text()
    assert str(tiny) not in text and str(whole) not in text and str(Path.home()) not in text


def test_the_table_names_every_method(whole: Path) -> None:
    table = (whole / "table.md").read_text()
    assert all(f"| {name} " in table for name in METHODS)


def test_adapters_load_with_peft_alone(whole: Path, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name in METHODS[1:]:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny / "model"), str(whole / name / "adapter")
        )
        assert model.merge_and_unload() is not None
    moved = adapter(whole / "alora")
    assert not all(torch.equal(moved[key], value) for key, value in adapter(whole / "lora_ab").items())


def test_a_second_call_does_nothing_again(
    whole: Path, recipe: Callable[..., Recipe], fast_evaluation: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alora_trainer.experiment.run.tune.train", lambda trainer: pytest.fail("trained again"))
    before = (whole / "results.json").read_text()
    run_recipe(recipe(), output_dir=whole)
    assert fast_evaluation == []
    assert (whole / "results.json").read_text() == before


def test_the_resolved_recipe_goes_on_in_the_same_folder(whole: Path, fast_evaluation: list[str]) -> None:
    run_recipe(load_recipe(whole / "recipe.yaml"), output_dir=whole)
    assert fast_evaluation == []


def test_lambda_zero_is_lora_ab_bit_for_bit(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    run_recipe(recipe(**{"alora.lam": "0", "methods": "lora_ab,alora"}), output_dir=tmp_path)
    assert_same(adapter(tmp_path / "lora_ab"), adapter(tmp_path / "alora"))


@pytest.mark.parametrize(("part", "step"), [("record", 3), ("lora", 2), ("alora", 3)])
def test_a_stopped_run_goes_on_to_the_same_end(
    part: str,
    step: int,
    whole: Path,
    recipe: Callable[..., Recipe],
    fast_evaluation: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import TrainerCallback

    train = training.train

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    def stopped(trainer: Any) -> Any:
        if Path(trainer.args.output_dir).parent.name == part:
            trainer.add_callback(Stop)
        return train(trainer)

    for module in (training, recording):
        monkeypatch.setattr(module, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(), output_dir=tmp_path)
    (tmp_path / part / "checkpoints" / "checkpoint-9").mkdir()  # torn: no trainer_state.json in it
    for module in (training, recording):
        monkeypatch.setattr(module, "train", train)
    results = run_recipe(recipe(), output_dir=tmp_path)
    assert tuple(results.methods) == METHODS
    for name in METHODS[1:]:
        assert_same(adapter(tmp_path / name), adapter(whole / name))


def test_a_training_stopped_between_its_end_and_its_saving(
    whole: Path, recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    """The last checkpoint is at the end; going on from it would train one step too many."""
    run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    (tmp_path / "lora" / "training.json").unlink()
    shutil.rmtree(tmp_path / "lora" / "adapter")
    run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    assert_same(adapter(tmp_path / "lora"), adapter(whole / "lora"))


def test_the_cost_of_a_stopped_training_adds_up(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    checkpoint = tmp_path / "lora" / "checkpoints" / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"]["_CostKeeper"]["attributes"] = {"seconds": 1000.0, "peak_bytes": 2**50}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "lora" / "training.json").unlink()
    results = run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    cost = results.methods["lora"].train
    assert cost is not None and cost.seconds is not None and 1000 < cost.seconds < 1100
    assert cost.peak_bytes == 2**50


def test_other_settings_are_refused_by_name_or_made_anew(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    run_recipe(recipe(methods="base,lora"), output_dir=tmp_path)
    before = adapter(tmp_path / "lora")
    other = recipe(**{"methods": "base,lora", "tune.learning_rate": "0.02"})
    with pytest.raises(
        ALoRAError, match=r"lora was made with other settings \(tune.learning_rate was 0.01 and is 0.02\)"
    ):
        run_recipe(other, output_dir=tmp_path)
    assert_same(adapter(tmp_path / "lora"), before)
    run_recipe(other, output_dir=tmp_path, overwrite=True)
    assert fast_evaluation == ["base", "lora", "lora"]
    assert not torch.equal(next(iter(adapter(tmp_path / "lora").values())), next(iter(before.values())))


def test_another_evaluation_is_refused_and_needs_no_new_training(
    recipe: Callable[..., Recipe],
    fast_evaluation: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    other = recipe(**{"methods": "lora", "evaluation.limit": "2"})
    with pytest.raises(ALoRAError, match=r"evaluation.limit was None and is 2"):
        run_recipe(other, output_dir=tmp_path)
    monkeypatch.setattr("alora_trainer.experiment.run.tune.train", lambda trainer: pytest.fail("trained again"))
    run_recipe(other, output_dir=tmp_path, overwrite=True)
    assert fast_evaluation == ["lora", "lora"]


def test_a_folder_of_something_else_is_left_alone(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    with pytest.raises(ALoRAError, match="data holds files that no run made"):
        run_recipe(recipe(), output_dir=tmp_path, overwrite=True)
    assert (tmp_path / "data" / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(ALoRAError, match="is a file"):
        run_recipe(recipe(), output_dir=tmp_path / "file")


def test_results_of_finished_methods_survive_a_failure(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = training.train

    def failing(trainer: Any) -> Any:
        if "lora_ab" in trainer.args.output_dir:
            raise ZeroDivisionError("no")
        return train(trainer)

    for module in (training, recording):
        monkeypatch.setattr(module, "train", failing)
    with pytest.raises(RuntimeError, match="method lora_ab failed; finished methods are in .*results.json"):
        run_recipe(recipe(), output_dir=tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())["methods"]) == ["base", "lora"]
    (tmp_path / "record" / "map" / "adapter_config.json").unlink()
    for module in (training, recording):
        monkeypatch.setattr(module, "train", train)
    with pytest.raises(ALoRAError, match="method lora_ab: .*holds no adapter"):
        run_recipe(recipe(), output_dir=tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())["methods"]) == ["base", "lora"]


def test_methods_run_one_after_another_share_their_results(
    recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    run_recipe(recipe(methods="lora"), output_dir=tmp_path)
    results = run_recipe(recipe(methods="base"), output_dir=tmp_path)
    assert list(results.methods) == ["base", "lora"]
    assert not (tmp_path / "record").exists()


def test_the_steps_alone_end_where_the_whole_run_ends(
    whole: Path, recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    folder = record_recipe(recipe(), output_dir=tmp_path / "map")
    for name in ("lora_ab", "alora"):
        made = tune_recipe(recipe(), get_method(name), output_dir=tmp_path / "tuned", importance=str(folder))
        assert_same(adapter(made.parent), adapter(whole / name))
    assert not (tmp_path / "tuned" / "record").exists()
    evaluate_recipe(recipe(), output_dir=tmp_path / "tuned")
    evaluate_recipe(recipe(), output_dir=tmp_path / "tuned", method=get_method("alora"))
    results = evaluate_recipe(recipe(), output_dir=tmp_path / "tuned", adapter=whole / "lora" / "adapter")
    assert list(results.methods) == ["base", "adapter"]  # alora's training here is not the recipe's own
    assert fast_evaluation == ["base", "alora", "adapter"]


def test_what_the_steps_refuse(recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path) -> None:
    with pytest.raises(ALoRAError, match="trains nothing"):
        tune_recipe(recipe(), get_method("base"), output_dir=tmp_path)
    with pytest.raises(ALoRAError, match="takes no importance map"):
        tune_recipe(recipe(), get_method("lora"), output_dir=tmp_path, importance="x")
    with pytest.raises(ALoRAError, match="no importance map at"):
        tune_recipe(recipe(), get_method("alora"), output_dir=tmp_path / "a", importance="./none")
    with pytest.raises(ALoRAError, match="holds no finished training"):
        evaluate_recipe(recipe(), output_dir=tmp_path / "b", method=get_method("lora"))
    with pytest.raises(ALoRAError, match="there is no adapter folder"):
        evaluate_recipe(recipe(), output_dir=tmp_path / "b", adapter=tmp_path / "none")


def test_an_adapter_from_anywhere_is_scored_anew_when_it_or_the_base_is_another(
    whole: Path, recipe: Callable[..., Recipe], fast_evaluation: list[str], tmp_path: Path
) -> None:
    shutil.copytree(whole / "lora" / "adapter", tmp_path / "adapter")
    found = evaluate_recipe(recipe(), output_dir=tmp_path / "run", adapter=tmp_path / "adapter")
    assert evaluate_recipe(recipe(), output_dir=tmp_path / "run", adapter=tmp_path / "adapter") == found
    assert fast_evaluation == ["adapter"]
    with pytest.raises(ALoRAError, match="adapter was made with other settings"):
        other = recipe(**{"model.dtype": "bfloat16"})
        evaluate_recipe(other, output_dir=tmp_path / "run", adapter=tmp_path / "adapter")
    shutil.copyfile(
        whole / "alora" / "adapter" / "adapter_model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors"
    )
    with pytest.raises(ALoRAError, match="adapter was made with other settings"):
        evaluate_recipe(recipe(), output_dir=tmp_path / "run", adapter=tmp_path / "adapter")


def test_to_make_a_run_writes_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = Run(recipe(), tmp_path / "run", importance="./none")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ALoRAError, match="no importance map at"):
        run.prepare_data()
    assert not (tmp_path / "run").exists()
    Run(recipe(), tmp_path / "run").prepare_data()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").resolved() == recipe().resolved()


def test_what_cannot_be_joined_is_refused_before_anything_is_done(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Over the merged base the adapters are joined at the end: a recorded bias would be lost, and a new one is no factor."""
    for section in ("fresh_lora.bias", "lora.bias"):
        one = recipe(**{"alora.start": "merged", section: "all", "methods": "alora"})
        with pytest.raises(ALoRAError, match="bias=.all. trains biases .*leave it out of lora and fresh_lora"):
            run_recipe(one, output_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_meter_sees_what_was_held_and_let_go() -> None:
    from alora_trainer.basics.cost_meter import Meter

    with Meter() as before:
        pass
    with Meter() as meter:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        del block
    if not torch.cuda.is_available():
        assert meter.cost.peak_bytes - before.cost.peak_bytes > 48 << 20
    assert meter.cost.seconds > 0
    assert meter.cost == meter.cost


def test_the_meter_where_the_kernel_keeps_no_resettable_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from alora_trainer.basics import cost_meter as memory

    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    with memory.Meter() as meter:
        time.sleep(0.1)
    assert meter.cost.peak_bytes > 10 << 20
