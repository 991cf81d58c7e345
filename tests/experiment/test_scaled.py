"""The finished adapter times a number, in a run: scored as variants of its method, and as a method of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.scaled import ScaledOptions
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.report.gather import by_task, read_runs
from alora_trainer.experiment.report.variant_rows import variant_rows
from alora_trainer.experiment.run.dependencies import result, training
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.whole_recipe import run_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all

SETTINGS = {
    "methods": "base,lora,scaled,osf",
    "evaluation.scales": "0.25,0.5",
    "tune.max_steps": "2",
    "tune.save_strategy": "no",
    "method_options.osf.effective_rank": "0.75",
}


def evaluate(model: Any, tokenizer: Any, **rest: Any) -> Score:
    """In the place of a perplexity: how far an adapter moves the weights."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    moved = sum(float(layer.get_delta_weight("default").detach().norm()) for layer in layers)
    return Score(GeneralScore(token_perplexity=1 + moved, subsets={}), {"sums": TaskScore(acc=0.5)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    make_collecting_cheap()
    recipe = write_all(tmp_path_factory.mktemp("scaled"))
    folder = recipe.parent / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", evaluate)
        run_recipe(load_recipe(recipe, SETTINGS), output_dir=folder)
    return recipe, folder


def test_every_scaled_adapter_is_an_entry(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    entries = json.loads((folder / "results.json").read_text())["methods"]
    assert list(entries) == [
        *("base", "lora", "lora@scale=0.25", "lora@scale=0.5", "scaled", "scaled@scale=0.25", "scaled@scale=0.5", "osf")
    ]  # the base model trains nothing, and OSF's adapter has no factors
    moved = {name: entry["general"]["token_perplexity"] - 1 for name, entry in entries.items()}
    assert moved["lora"] > 0
    for part in (0.25, 0.5):
        assert moved[f"lora@scale={part}"] == pytest.approx(part * moved["lora"], rel=1e-5)
        assert entries[f"lora@scale={part}"]["settings"]["scale"] == part
        assert entries[f"lora@scale={part}"]["train"] == entries["lora"]["train"]
    # The method is the same training, and halves its adapter by default.
    assert moved["scaled"] == pytest.approx(0.5 * moved["lora"], rel=1e-5)
    one = load_file(folder / "lora@scale=0.5" / "adapter" / "adapter_model.safetensors")
    other = load_file(folder / "scaled" / "adapter" / "adapter_model.safetensors")
    assert all((one[name] == other[name]).all() for name in one)


def test_the_report_has_them_as_variants(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    (comparison,) = by_task(read_runs([folder]))
    labels = [variant.label for variant in comparison.of("lora")]
    assert labels == ["lora (scale=0.25)", "lora (scale=0.5)", "lora (scale=1)"]
    rows = {row["label"]: row for row in variant_rows(comparison)}
    # Others are compared with plain LoRA as it was trained.
    assert rows["lora (scale=1)"]["perplexity_over_lora"] == 0
    assert rows["lora (scale=0.25)"]["perplexity_over_lora"] < 0


def test_what_is_finished_is_not_done_again_and_new_numbers_are(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = finished
    scored: list[int] = []

    def counting(model: Any, tokenizer: Any, **rest: Any) -> Score:
        scored.append(1)
        return evaluate(model, tokenizer, **rest)

    monkeypatch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", counting)
    more = SETTINGS | {"evaluation.scales": "0.25,0.5,0.9", "methods": "lora"}
    # What a process that was killed left is not taken for whole.
    (folder / "lora@scale=0.9" / "adapter").mkdir(parents=True)
    results = run_recipe(load_recipe(recipe, more), output_dir=folder)
    assert len(scored) == 1 and "lora@scale=0.9" in results.methods
    assert {"scaled", "scaled@scale=0.5"} <= set(results.methods)  # from before
    stamp = (folder / "lora@scale=0.9" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    run_recipe(load_recipe(recipe, more), output_dir=folder)
    assert len(scored) == 1
    assert (folder / "lora@scale=0.9" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_what_they_depend_on(finished: tuple[Path, Path]) -> None:
    path, _ = finished
    one, other = (load_recipe(path, SETTINGS | extra) for extra in ({}, {"evaluation.scales": "0.7"}))
    assert result(one, get_method("lora")).digest == result(other, get_method("lora")).digest
    stronger = load_recipe(path, SETTINGS | {"method_options.scaled.alpha": "0.7"})
    assert training(one, get_method("scaled")).digest != training(stronger, get_method("scaled")).digest
    run = Run(one, path.parent / "elsewhere", variant="lam=0.1")
    assert run.steps.place(get_method("lora"), 0.3) == "lora@lam=0.1,scale=0.3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation.scales": "0.5,1.5"}, "must be different numbers between 0"),
        ({"evaluation.scales": "0.5,0.5"}, "must be different numbers between 0"),
        ({"method_options.scaled.alpha": "1.5"}, "alpha=1.5 must lie above 0"),
    ],
)
def test_numbers_out_of_range(finished: tuple[Path, Path], settings: dict[str, str], message: str) -> None:
    with pytest.raises(ALoRAError, match=message):
        load_recipe(finished[0], SETTINGS | settings)
    assert ScaledOptions().alpha == 0.5


@pytest.mark.parametrize("method", ["lora", "scaled", "lora_ab"])
def test_an_adapter_that_cannot_be_scaled_is_refused_before_anything_is_trained(
    finished: tuple[Path, Path], method: str, tmp_path: Path
) -> None:
    settings = SETTINGS | {"methods": method, "lora.use_dora": "true"}
    if method == "scaled":
        settings["evaluation.scales"] = "[]"
    with pytest.raises(ALoRAError, match="cannot be scaled: use_dora=True"):
        run_recipe(load_recipe(finished[0], settings), output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / method).exists()


def test_several_domains_have_no_scales(finished: tuple[Path, Path]) -> None:
    path, _ = finished
    recipe = load_recipe(path, {})
    settings: dict[str, Any] = dict(recipe.written) | {"evaluation": {"scales": [0.5]}}
    first = settings.pop("domain")
    settings["domains"] = [first, first | {"task": first["task"] | {"name": "more"}}]
    with pytest.raises(ALoRAError, match=r"evaluation\.scales is for one domain"):
        build_recipe(settings, base=path.parent)
