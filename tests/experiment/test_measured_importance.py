"""Importance that is measured at the base weights: recorded by a command, held by the methods of its name, given to others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics.progress import ShownProgress
from alora_trainer.cli.command_line import main
from alora_trainer.data.domain import collator
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import measure
from alora_trainer.experiment.run.general_text import text_to_train
from alora_trainer.experiment.run.models import load_base, load_tokenizer, with_fresh_adapter
from alora_trainer.experiment.run.whole_recipe import record_recipe, tune_recipe
from alora_trainer.importance.kinds.factored import WideFactoredOmega
from alora_trainer.importance.kinds.kronecker import KroneckerOmega
from alora_trainer.importance.recording import curvature_passes
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.importance.recording.measured import MEASURED
from tests.dense_metric import dense_metric
from tests.launching import launch_two
from tests.tiny_recipe import write_all

COMMON = {"curvature.tokens": "100", "curvature.batch_size": "2", "curvature.keep": "4", "tune.max_steps": "2"}
COMMON |= {"tune.save_strategy": "no", "record.save_strategy": "no"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    path = write_all(tmp_path_factory.mktemp("measured"))
    return lambda **settings: load_recipe(path, COMMON | settings)


@pytest.fixture(scope="module")
def kronecker(recipe: Callable[..., Recipe]) -> Path:
    one = recipe(importance="kronecker")
    return record_recipe(one, output_dir=one.base / "recorded")


def test_a_record_without_training(recipe: Callable[..., Recipe], kronecker: Path) -> None:
    one = recipe()
    assert kronecker == one.base / "recorded" / "curvature_kronecker" / "map"
    assert not (one.base / "recorded" / "record").exists()
    made = ImportanceMap.from_pretrained(kronecker)
    assert (made.kind, made.storage, made.info.estimator) == ("kronecker", "kronecker", "kronecker")
    assert (made.info.labels, made.info.draws) == ("sampled", 1) and made.info.data["sources"]
    again = json.loads((kronecker.parent / "training.json").read_text())
    assert again["tokens"] == made.info.tokens >= 100 and again["steps"] == made.info.steps
    # The very same by the function that it stands on.
    tokenizer = load_tokenizer(one)
    rows = text_to_train(one, tokenizer, one.base / "elsewhere")
    model = with_fresh_adapter(load_base(one), one)
    batches = DataLoader(rows, batch_size=2, collate_fn=collator(tokenizer))
    estimate = estimate_curvature(model, batches, "kronecker", tokens=100, keep=4, seed=one.seed)
    assert set(estimate.importance) == set(made)
    for name, importance in estimate.importance.items():
        for part, values in importance.parts.items():
            assert torch.equal(values, made.stored(name).parts[part]), (name, part)


def test_text_shorter_than_asked_for_is_told_by_its_batches(
    recipe: Callable[..., Recipe], kronecker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tokens, which end before the number that was asked for, the time left would be too long."""
    told: list[tuple[int, str]] = []

    def noted(what: str, total: int, logger: Any, *, unit: str, **settings: Any) -> ShownProgress:
        told.append((total, unit))
        return ShownProgress(what, total, logger, unit=unit, **settings)

    monkeypatch.setattr(curvature_passes, "ShownProgress", noted)
    one = recipe(importance="kronecker", **{"curvature.tokens": "100000"})
    made = ImportanceMap.from_pretrained(record_recipe(one, output_dir=one.base / "short"))
    assert told == [(made.info.steps, "batches")] and 100 < made.info.tokens < 100_000


def test_no_measurement_is_kept_where_a_method_trains() -> None:
    """`ekfac` and `covariance` are the names of both; a second call would have found the one in the other's place."""
    kept = {f"{measured.folder}{whole}" for measured in MEASURED.values() for whole in ("", "_full")}
    kept |= {"record", "data", "overlap"}
    assert not kept & set(METHODS)


def test_a_second_call_finds_both_the_measurement_and_the_training(recipe: Callable[..., Recipe]) -> None:
    one = recipe()
    first = tune_recipe(one, get_method("covariance"), output_dir=one.base / "twice")
    before = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert tune_recipe(one, get_method("covariance"), output_dir=one.base / "twice") == first
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert (one.base / "twice" / "curvature_covariance" / "training.json").is_file()


def test_a_second_record_does_nothing_again(
    recipe: Callable[..., Recipe], kronecker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("alora_trainer.experiment.run.run.measure_importance", refuse)
    one = recipe(importance="kronecker")
    assert record_recipe(one, output_dir=one.base / "recorded") == kronecker
    with pytest.raises(AssertionError, match="measured again"):
        record_recipe(recipe(importance="covariance"), output_dir=one.base / "recorded")
    with pytest.raises(ALoRAError, match="with other settings"):
        other = recipe(importance="kronecker", **{"curvature.keep": "3"})
        record_recipe(other, output_dir=one.base / "recorded")


def test_a_map_that_is_given_holds_as_one_that_is_made(recipe: Callable[..., Recipe], kronecker: Path) -> None:
    one = recipe(**{"alora.lam": "5"})
    given = tune_recipe(one, get_method("kfac"), output_dir=one.base / "given", importance=kronecker)
    assert not (one.base / "given" / "curvature_kronecker").exists()
    made = tune_recipe(one, get_method("kfac"), output_dir=one.base / "made")
    assert (one.base / "made" / "curvature_kronecker" / "map").is_dir()
    free = tune_recipe(recipe(), get_method("lora"), output_dir=one.base / "given")
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (given, made, free)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert any(not torch.equal(adapters[0][name], adapters[2][name]) for name in adapters[0])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("alora", "is of kronecker importance, and alora takes one that was recorded in one"),
        ("ekfac", "is of kronecker importance, and ekfac takes one of ekfac importance"),
        ("lora", "method lora takes no importance map"),
        ("ewc_full", "method ewc_full takes no importance map"),
    ],
)
def test_a_map_for_another_method_is_refused(
    recipe: Callable[..., Recipe], kronecker: Path, method: str, message: str
) -> None:
    one = recipe()
    with pytest.raises(ALoRAError, match=message):
        tune_recipe(one, get_method(method), output_dir=one.base / "refused", importance=kronecker)
    assert not (one.base / "refused" / method).exists()


def test_what_is_recorded_is_not_for_kfac(recipe: Callable[..., Recipe]) -> None:
    one = recipe()
    recorded = record_recipe(one, output_dir=one.base / "stage-a")
    with pytest.raises(ALoRAError, match="recorded in a training, and kfac takes one of kronecker importance"):
        tune_recipe(one, get_method("kfac"), output_dir=one.base / "refused", importance=recorded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance": "kronecke"}, "importance='kronecke' is unknown: use one of recorded, fisher"),
        ({"curvature.keep": "-1"}, "curvature.keep=-1 must be at least 0"),
        ({"curvature.tokens": "0"}, "curvature.tokens=0 must be at least 1"),
        ({"curvature.share": "1.5"}, "curvature.share=1.5 must lie between 0 and 1"),
        ({"curvature.labels": "drawn"}, "curvature.labels='drawn' is unknown: use one of sampled, text"),
        ({"curvature.storage": "log8"}, "curvature.storage='log8' is unknown: use one of float32, bfloat16"),
        ({"curvature.labels": "text", "curvature.draws": "2"}, "curvature.draws=2 is for labels that are sampled"),
        ({"curvature.kep": "3"}, "unknown key curvature.kep: did you mean curvature.keep"),
    ],
)
def test_settings_that_cannot_be(recipe: Callable[..., Recipe], settings: dict[str, str], message: str) -> None:
    with pytest.raises(ALoRAError, match=message):
        recipe(**settings)


def test_formats_of_other_kinds_are_for_other_methods(recipe: Callable[..., Recipe], kronecker: Path) -> None:
    """`alora.storage` and `alora.backend` are said of element-wise importance, and a recipe may compare both."""
    strong = {"alora.lam": "5"}
    settings = {
        "plain": {},
        "log8": {"alora.storage": "log8", "alora.backend": "blocked"},
        "half": {"method_options.kfac.alora.storage": "kronecker_bfloat16"},
    }
    found = {}
    for name, own in settings.items():
        one = recipe(**strong, **own)
        folder = tune_recipe(one, get_method("kfac"), output_dir=one.base / f"storage-{name}", importance=kronecker)
        found[name] = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(values, found["log8"][key]) for key, values in found["plain"].items())
    assert any(not torch.equal(values, found["half"][key]) for key, values in found["plain"].items())
    for key, values in found["plain"].items():
        torch.testing.assert_close(found["half"][key], values, rtol=0.1, atol=1e-3)


def test_ewclora_factored_takes_the_bytes_of_sixteen_directions() -> None:
    """But for the eigenvalues themselves."""
    for shape in ((256, 704), (3072, 3072)):
        factored, kept = WideFactoredOmega.made_bytes(shape), KroneckerOmega.stored_bytes(shape, 16)
        assert kept - factored == 2 * 17 * 4


def test_processes_do_not_share_a_stream(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Processes", lambda: SimpleNamespace(rank=0, count=2))
    one = recipe(importance="kronecker", **{"general.streaming": "true"})
    with pytest.raises(ALoRAError, match="set general.streaming to false, or use one process"):
        record_recipe(one, output_dir=one.base / "streamed")


def test_two_processes_measure_together(recipe: Callable[..., Recipe], kronecker: Path, tmp_path: Path) -> None:
    """Each has half of the blocks and of the tokens; labels of the text itself do not depend on who draws them."""
    path = str(recipe().base / "recipe.yaml")
    settings = COMMON | {"curvature.labels": "text", "curvature.batch_size": "1", "curvature.tokens": "null"}
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = ["record", path, "--importance", "kronecker", "--output_dir", str(tmp_path), *words]
    launch_two("alora_trainer.cli", *command)
    both = ImportanceMap.from_pretrained(tmp_path / "curvature_kronecker" / "map")
    whole = recipe(importance="kronecker", **{key: settings[key] for key in settings if key.startswith("curvature.")})
    one = ImportanceMap.from_pretrained(record_recipe(whole, output_dir=tmp_path / "one"))
    assert both.info.tokens == one.info.tokens and both.info.steps == one.info.steps
    assert not list((tmp_path / "curvature_kronecker").glob("*.safetensors"))
    for name in one:
        expected = dense_metric(one.stored(name))
        torch.testing.assert_close(
            dense_metric(both.stored(name)), expected, rtol=1e-3, atol=1e-4 * float(expected.norm())
        )


def test_the_command(
    recipe: Callable[..., Recipe], kronecker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(recipe().base / "recipe.yaml")
    settings = [word for key, value in COMMON.items() for word in (f"--{key}", value)]
    command = ["record", path, "--importance", "covariance", "--output_dir", str(tmp_path), *settings]
    assert main(command) == 0
    assert f"importance map: {tmp_path / 'curvature_covariance' / 'map'}" in capsys.readouterr().out
    assert ImportanceMap.from_pretrained(tmp_path / "curvature_covariance" / "map").kind == "covariance"
    assert main(["tune", path, "--method", "alora", "--importance", str(kronecker), "--output_dir", str(tmp_path)]) == 2
    assert "alora takes one that was recorded in one" in capsys.readouterr().err
