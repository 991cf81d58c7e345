"""Several domains in a row: importance adds up, the matrix is measured, what is finished is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alora_trainer import ImportanceMap
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.continual import check_method
from alora_trainer.experiment.run.transfer import AccuracyMatrix
from alora_trainer.experiment.run.whole_recipe import record_recipe, run_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """`recipe(**overrides)`: the tiny recipe over three domains of sums."""
    make_collecting_cheap()
    path = write_all(tmp_path_factory.mktemp("continual"))
    settings = yaml.safe_load(path.read_text())
    domain = settings.pop("domain")
    settings["domains"] = []
    for number in range(3):
        prompt = ("Sum {question} is", "{question} make", "We read {question} and have")[number]
        settings["domains"].append(domain | {"task": domain["task"] | {"name": f"sums{number}", "prompt": prompt}})
    settings["methods"] = ["base", "lora", "alora", "ewclora"]
    settings["alora"]["save_storage"] = "float32"  # sums are to be seen to the last digit
    for section in ("record", "tune"):
        settings[section] |= {"max_steps": 3, "save_strategy": "no"}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return lambda **overrides: load_recipe(path, overrides)


@pytest.fixture(scope="module")
def whole(recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    calls: list[int] = []

    def evaluate(model: Any, tokenizer: Any, *, tasks: Any, **rest: Any) -> Score:
        calls.append(len(tasks))
        scores = {task: TaskScore(acc=(len(calls) % 7 + place) / 10) for place, task in enumerate(tasks)}
        return Score(GeneralScore(token_perplexity=10.0 + len(calls), subsets={}), scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.evaluation.runner.evaluate_model", evaluate)
        run_recipe(recipe(), output_dir=folder)
        before = (folder / "results.json").read_text()
        assert calls == [3] * (1 + 3 * 4)
        run_recipe(
            load_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else recipe(), output_dir=folder
        )
        assert len(calls) == 13 and (folder / "results.json").read_text() == before
    return folder


def test_the_matrix() -> None:
    matrix = AccuracyMatrix(("a", "b", "c"), ((0.1, 0.2, 0.3), (0.9, 0.3, 0.3), (0.7, 0.8, 0.4), (0.6, 0.7, 0.9)))
    assert matrix.average == pytest.approx((0.6 + 0.7 + 0.9) / 3)
    assert matrix.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert matrix.forward_transfer == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    assert AccuracyMatrix(("a",), ((0.1,), (0.9,))).backward_transfer is None


def test_every_method_has_its_matrix(whole: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert list(results["methods"]) == ["base", "lora", "alora", "ewclora"]
    for name, entry in results["methods"].items():
        continual = entry["continual"]
        assert continual["tasks"] == ["sums0", "sums1", "sums2"]
        assert len(continual["accuracy"]) == len(continual["general_perplexity"]) == 4
        assert (continual["backward_transfer"] == 0) == (name == "base")
        assert entry["tasks"]["sums1"]["acc"] == continual["accuracy"][-1][1]
        assert (entry["train"]["seconds"] > 0) == (name != "base")
    table = (whole / "table.md").read_text()
    assert "| after | sums0 (%) | sums1 (%) | sums2 (%) | general perplexity |" in table


def test_importance_adds_up(whole: Path) -> None:
    general = ImportanceMap.from_pretrained(whole / "general" / "record" / "map")
    first = ImportanceMap.from_pretrained(whole / "alora" / "1-sums0" / "map")
    second = ImportanceMap.from_pretrained(whole / "alora" / "2-sums1" / "map")
    assert len(first.info.earlier_tasks) == 1 and len(second.info.earlier_tasks) == 2
    grown = 0
    for name, omega in general.items():
        assert bool((first[name] >= omega).all()) and bool((second[name] >= first[name]).all())
        grown += int((second[name] > first[name]).any())
        # theta* is where the last domain ended, and the next one starts from.
        adapter = load_file(whole / "alora" / "2-sums1" / "adapter" / "adapter_model.safetensors")
        assert torch.equal(second.reference[name].b, adapter[f"base_model.model.{name}.lora_B.weight"])
    assert grown == len(general)
    # The last domain has nothing after it; the base's Fisher information stays what it is.
    assert not (whole / "alora" / "3-sums2" / "map").exists()
    assert not (whole / "ewclora" / "1-sums0" / "map").exists()


def test_each_domain_goes_on_from_the_one_before(whole: Path) -> None:
    for method in ("lora", "alora", "ewclora"):
        folders = [whole / method / name / "adapter" for name in ("1-sums0", "2-sums1", "3-sums2")]
        weights = [load_file(folder / "adapter_model.safetensors") for folder in folders]
        for key in weights[0]:
            assert not torch.equal(weights[0][key], weights[1][key])
            assert (
                float((weights[1][key] - weights[0][key]).norm()) < 0.5 * float(weights[0][key].norm())
                or "lora_B" in key
            )


def test_what_it_refuses(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    for name in ("l2", "shuffled", "replay", "osf", "lora_pro"):
        with pytest.raises(ALoRAError, match=f"the method {name} is for one domain"):
            check_method(METHODS[name])
    with pytest.raises(ALoRAError, match="is run as a whole"):
        record_recipe(recipe(), output_dir=tmp_path)
    with pytest.raises(ALoRAError, match="two or more, in the place of domain"):
        recipe(domains="sciq")
    with pytest.raises(ALoRAError, match="there is no task 'sciqq'"):
        recipe(domains="sciqq,piqa")
    with pytest.raises(ALoRAError, match="domains has two tasks of one name"):
        run_recipe(recipe(domains="sciq,sciq"), output_dir=tmp_path)
    assert [get.domain.task for get in recipe(domains="sciq, piqa,medmcqa").each_domain()] == [
        "sciq",
        "piqa",
        "medmcqa",
    ]
