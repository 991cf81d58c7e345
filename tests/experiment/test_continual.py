"""Several domains in a row, with real trainings and evaluations: importance adds up, nothing that was learned is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alora_trainer import ImportanceMap
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import tune
from alora_trainer.experiment.run.continual import ContinualRun, check_method
from alora_trainer.experiment.run.transfer import AccuracyMatrix
from alora_trainer.experiment.run.whole_recipe import record_recipe, run_recipe
from alora_trainer.weights.adapted import adapted_weights
from tests.tiny_recipe import make_collecting_cheap, write_all

STEPS = 3


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
    settings["map"] = {"storage": "float32"}  # sums are to be seen to the last digit
    for section in ("record", "tune"):
        settings[section] |= {"max_steps": STEPS, "save_strategy": "no"}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return lambda **overrides: load_recipe(path, overrides)


@pytest.fixture(scope="module")
def base(recipe: Callable[..., Recipe]) -> Callable[[], Any]:
    return lambda: AutoModelForCausalLM.from_pretrained(recipe().base / "model")


# All at once, to have one run: a divergence, a curve, a probe and a limit to what is recorded.
WATCHED = {
    "evaluation.kl_tokens": "32",
    "evaluation.curve_steps": "2",
    "general.train_tokens": "200",
    "general.probe_tokens": "64",
    "alora.budget": "0.05",
    "alora.lam": "0.5",
    "alora.record_tokens": "40",
}
# Of these, what stage A depends on.
RECORDED = {key: WATCHED[key] for key in ("general.train_tokens", "general.probe_tokens", "alora.record_tokens")}


@pytest.fixture(scope="module")
def whole(recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_recipe(recipe(**WATCHED), output_dir=folder)
    return folder


def movements(base: Callable[[], Any], adapter: Path) -> dict[str, torch.Tensor]:
    """``s B A`` of every weight that an adapter moves."""
    model = PeftModel.from_pretrained(base(), str(adapter), is_trainable=True)
    return {w.name: w.scaling * w.b.double() @ w.a.double() for w in adapted_weights(model)}


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
        assert len(set(continual["general_perplexity"])) == (1 if name == "base" else 4)
        assert entry["tasks"]["sums1"]["acc"] == continual["accuracy"][-1][1]
        assert entry["general"]["token_perplexity"] == continual["general_perplexity"][-1]
        assert (entry["train"]["seconds"] > 0) == (name != "base")
        assert ("record" in entry) == (name in ("alora", "ewclora"))
    table = (whole / "table.md").read_text()
    assert "| after | sums0 (%) | sums1 (%) | sums2 (%) | general perplexity |" in table


def test_what_one_domain_has_several_have_too(whole: Path) -> None:
    entries = json.loads((whole / "results.json").read_text())["methods"]
    assert entries["base"]["general"]["kl_to_base"]["nats_per_token"] == 0
    for name in ("lora", "alora", "ewclora"):
        assert entries[name]["general"]["kl_to_base"]["nats_per_token"] > 0
        trainings = entries[name]["continual"]["trainings"]
        assert [one["steps"] for one in trainings] == [STEPS] * 3  # the limit to recording is stage A's
        assert all(one["history"]["curve"]["step"] == [0, 2, 3] for one in trainings)
        assert all(set(one["drift"]) == set(trainings[0]["drift"]) != set() for one in trainings)
        probed = [[log["step"] for log in one.get("probe", ())] for one in trainings]
        assert probed == ([[]] * 3 if name == "lora" else [[STEPS]] * 3)
    assert entries["alora"]["settings"]["protecting.budget"] == 0.05
    assert entries["alora"]["layer_norms"]


def test_a_second_call_does_nothing_again(
    whole: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tune.train", "record.train", "evaluate.evaluate_model"):
        monkeypatch.setattr(f"alora_trainer.experiment.run.{name}", lambda *_, **__: pytest.fail("done again"))
    before = (whole / "results.json").read_text()
    run_recipe(recipe(**WATCHED), output_dir=whole)
    run_recipe(load_recipe(whole / "recipe.yaml"), output_dir=whole)
    assert json.loads((whole / "results.json").read_text())["methods"] == json.loads(before)["methods"]


def test_importance_adds_up(whole: Path, base: Callable[[], Any]) -> None:
    general = ImportanceMap.from_pretrained(whole / "general" / "record" / "map")
    first = ImportanceMap.from_pretrained(whole / "alora" / "1-sums0" / "map")
    second = ImportanceMap.from_pretrained(whole / "alora" / "2-sums1" / "map")
    assert len(first.info.earlier_tasks) == 1 and len(second.info.earlier_tasks) == 2
    end = movements(base, whole / "alora" / "2-sums1" / "adapter")
    for name, omega in general.items():
        assert bool((first[name] >= omega).all()) and bool((second[name] >= first[name]).all())
        assert bool((second[name] > first[name]).any())
        # theta* is where the last domain ended, and the next one starts from.
        there = second.reference[name]
        assert torch.equal(there.scaling * there.b.double() @ there.a.double(), end[name])
    # The last domain has nothing after it; the base's Fisher information stays what it is.
    assert not (whole / "alora" / "3-sums2" / "map").exists()
    assert not (whole / "ewclora" / "1-sums0" / "map").exists()


CASES = {
    "continue": ("alora", {}, ("q_proj", "v_proj")),
    "a new adapter over the merged base": (
        "alora",
        {"start": "merged", "missing": "uniform"},
        ("q_proj", "o_proj"),  # one that was recorded, and one that was not
    ),
    "a new adapter over the bare base": ("alora", {"start": "bare"}, ("q_proj",)),
    "Fisher information of the base": ("ewclora", {}, ("q_proj", "v_proj")),
    "the same over the merged base": ("ewclora", {"start": "merged"}, ("q_proj", "v_proj")),
}


@pytest.mark.parametrize("anchor", ["reference", "base"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_learned_is_kept_and_held_from_the_right_place(
    case: str,
    anchor: str,
    whole: Path,
    recipe: Callable[..., Recipe],
    base: Callable[[], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, settings, modules = CASES[case]
    overrides = {f"method_options.{name}.alora.{key}": value for key, value in {**settings, "anchor": anchor}.items()}
    if settings.get("start") in ("merged", "bare") and name == "alora":
        overrides |= {
            "alora.start": settings["start"],
            "fresh_lora.r": "3",
            "fresh_lora.target_modules": f"[{','.join(modules)}]",
        }
    tokens = torch.arange(5, 25)[None]
    trained: list[torch.Tensor] = []
    train = tune.train

    def watched(trainer: Any) -> Any:
        outcome = train(trainer)
        with torch.no_grad():
            trained.append(trainer.model.eval()(input_ids=tokens).logits)
        return outcome

    monkeypatch.setattr(tune, "train", watched)
    # What a model scores is of no matter here.
    scores = Score(GeneralScore(token_perplexity=1.0), {f"sums{number}": TaskScore(acc=0.5) for number in range(3)})
    monkeypatch.setattr("alora_trainer.experiment.run.continual.evaluate", lambda *_, **__: scores)
    shutil.copytree(whole / "general", tmp_path / "general")  # stage A is of the same settings
    shutil.copytree(whole / "data", tmp_path / "data")
    one = recipe(**RECORDED, **overrides)
    run, method = ContinualRun(replace(one, domains=one.domains[:2]), tmp_path), METHODS[name]
    importance = run.general.map_folder(method)
    assert importance is not None
    before = movements(base, importance)
    if name == "ewclora" or settings.get("start") == "bare":
        before = {}  # the first training starts on the bare base
    continual = run.method(method).continual
    assert continual is not None and continual.trainings is not None and len(trained) == 2
    for number, (logits, outcome) in enumerate(zip(trained, continual.trainings, strict=True), start=1):
        folder = run._folder(method, number)
        with torch.no_grad():
            saved = PeftModel.from_pretrained(base(), str(folder / "adapter")).eval()(input_ids=tokens).logits
        torch.testing.assert_close(saved, logits, rtol=1e-4, atol=1e-5)
        after = movements(base, folder / "adapter")
        held = [weight for weight in after if weight.endswith(modules)]
        zero = torch.zeros(())
        moved = {weight: after[weight] - before.get(weight, zero) for weight in after}
        # Learning went on from the domain before, of which nothing was lost ...
        assert {weight: float(moved[weight].norm()) for weight in held} == pytest.approx(outcome.drift, rel=1e-3)
        assert all(float(moved[weight].norm()) < 1e-5 for weight in after if weight not in held)
        # ... and the penalty was on the distance from its end, or from the base model.
        distance = sum(float((moved if anchor == "reference" else after)[weight].norm()) ** 2 for weight in held) ** 0.5
        assert outcome.history is not None
        assert outcome.history["training"]["drift"][-1] == pytest.approx(distance, rel=1e-3)
        if (folder / "map").exists():
            left = ImportanceMap.from_pretrained(folder / "map")
            left.check_model(PeftModel.from_pretrained(base(), str(folder / "adapter"), is_trainable=True))
            assert set(left) == set(after)
        before = after
    assert [(run._folder(method, n) / "map").exists() for n in (1, 2)] == [name == "alora", False]


def test_weights_that_a_new_adapter_leaves_keep_their_importance(
    whole: Path, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    shutil.copytree(whole / "general", tmp_path / "general")
    shutil.copytree(whole / "data", tmp_path / "data")
    settings = {key: value for key, value in WATCHED.items() if key.startswith("general") or "tokens" in key}
    settings |= {
        "alora.start": "merged",
        "fresh_lora.r": "2",
        "fresh_lora.target_modules": "[q_proj]",
        "methods": "alora",
    }
    run_recipe(recipe(**settings), output_dir=tmp_path)
    general = ImportanceMap.from_pretrained(tmp_path / "general" / "record" / "map")
    second = ImportanceMap.from_pretrained(tmp_path / "alora" / "2-sums1" / "map")
    assert set(second) == set(general)
    for name in general:
        assert torch.equal(second[name], general[name]) == name.endswith("v_proj")
    with pytest.raises(ALoRAError, match=r"1-sums0 was made with other settings \(fresh_lora.r was 2 and is 5\)"):
        run_recipe(recipe(**settings | {"fresh_lora.r": "5"}), output_dir=tmp_path)


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
    joined = {"alora.start": "merged", "fresh_lora.bias": "all"}
    with pytest.raises(ALoRAError, match="leave it out of lora and fresh_lora, or set alora.start to recorded or bare"):
        run_recipe(recipe(**joined), output_dir=tmp_path)
    ContinualRun(recipe(), tmp_path)
    assert not list(tmp_path.iterdir())
    assert [get.domain.task for get in recipe(domains="sciq, piqa,medmcqa").each_domain()] == [
        "sciq",
        "piqa",
        "medmcqa",
    ]
