"""`ALoRAConfig`: what was given stays visible, older spellings mean what they meant, and every field says who reads it."""

from __future__ import annotations

import dataclasses
import json
import typing
import warnings

import pytest

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.cards.tuning import TUNING_FILE, Tuning, read_tuning
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.estimators import ESTIMATORS
from alora_trainer.penalty.backends.choice import BACKENDS
from alora_trainer.trainer.config import PROTECTING
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom, with_start
from tests.basis_map import basis_map
from tests.penalty.test_penalty import made_map

OLDER = [
    ({"start": "continue"}, "recorded"),
    ({"start": "continue", "fresh_base": "bare"}, "recorded"),
    ({"start": "fresh"}, "merged"),
    ({"start": "fresh", "fresh_base": "merged"}, "merged"),
    ({"start": "fresh", "fresh_base": "bare"}, "bare"),
    ({"fresh_base": "bare"}, "recorded"),
]


def test_lambda_is_as_it_was_given_and_means_what_the_rest_says(lora_model):
    elementwise = made_map(lora_model(moved=True))
    curvature = basis_map("kronecker")

    def meant(importance: ImportanceMap | None, watched: bool = False, **given: typing.Any) -> tuple[object, object]:
        config = ALoRAConfig(**given).meant_for(importance, watched=watched)
        assert config.meant_for(importance, watched=watched) == config
        return config.lam, config.budget

    assert meant(None) == (None, None) and ALoRAConfig().resolved() == dataclasses.asdict(ALoRAConfig())
    # Where general text is watched, a budget; where it is not, a number by the kind of importance.
    assert meant(elementwise, watched=True) == meant(curvature, watched=True) == ("auto", 0.01)
    assert meant(elementwise) == (0.01, None) and meant(curvature) == (0.001, None)
    # What is given stands.
    assert meant(elementwise, watched=True, lam=0.5) == (0.5, None) and meant(curvature, lam=0) == (0, None)
    assert meant(curvature, budget=0.02) == ("auto", 0.02) and meant(curvature, lam=0.5, budget=0.02) == (0.5, 0.02)
    # A schedule is of a number, which a budget would undo.
    assert meant(elementwise, watched=True, lam_schedule="linear") == (0.01, None)
    assert tuple(ALoRAConfig().resolved_protecting()) == PROTECTING


@pytest.mark.parametrize(("given", "meant"), OLDER)
def test_older_spellings_of_the_start(given, meant):
    with pytest.warns(FutureWarning, match=f"older spelling: say start='{meant}'"):
        config = ALoRAConfig(**given)
    assert config == ALoRAConfig(start=meant) and config.start_from is StartFrom(meant)
    assert "fresh_base" not in dataclasses.asdict(config)
    assert with_start(given, quiet=True) == {"start": meant}


def test_todays_spelling_is_silent_and_copied():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in ("recorded", "merged", "bare"):
            config = dataclasses.replace(ALoRAConfig(start=start), lam=0.1)
            assert type(config.start) is str and config.start == start
        assert ALoRAConfig(start=StartFrom.BARE).start == "bare"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"start": "merged", "fresh_base": "bare"}, "start='merged' says all that fresh_base='bare' could say"),
        ({"start": "fresh", "fresh_base": "new"}, "fresh_base='new' is unknown, and an older spelling"),
        ({"start": ["bare"]}, r"start=\['bare'\] is unknown: use one of 'recorded', 'merged', 'bare'"),
        ({"storage": ["log8"]}, r"storage=\['log8'\] is unknown: .*use one of 'float32', "),
        ({"normalize": 1}, "normalize=1 must be true or false"),
        ({"full_parameters": True, "start": "bare"}, "start='bare' is for LoRA: .* start must be None or 'recorded'"),
        ({"full_parameters": True, "record": "exact"}, "record='exact' is for LoRA: .* must be None or 'projected'"),
    ],
)
def test_what_cannot_be_is_refused(given, error):
    with pytest.raises(ALoRAError, match=error):
        ALoRAConfig(**given)


def test_older_spellings_over_a_recipes_own():
    """What a method's options say is laid over the section, whichever of the two settings either of them has."""
    with pytest.warns(FutureWarning):
        assert with_start({"start": "fresh"}, {"fresh_base": "bare"}) == {"start": "bare"}
        assert with_start({"fresh_base": "bare"}, {"start": "fresh"}) == {"start": "bare"}
        assert with_start({"lam": 1, "start": "continue"}, {"start": "bare"}) == {"lam": 1, "start": "recorded"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_start({"lam": 1}, {"start": "fresh"}) == {"lam": 1}


def test_an_older_name_of_a_backend_is_read():
    with pytest.warns(FutureWarning, match="say backend='gram'"):
        config = ALoRAConfig(backend="factored")
    assert config.backend == "gram" and ALoRAConfig(backend="gram") == config


def test_check_model_reads_the_older_spelling(lora_model):
    model = lora_model(moved=True)
    importance = made_map(model)
    with pytest.warns(FutureWarning, match="say start='bare'"):
        importance.check_model(model, start="fresh", fresh_base="bare")
    assert isinstance(importance, ImportanceMap)


def test_a_tuning_file_of_an_earlier_version(tmp_path):
    tuning = Tuning("base", None, {}, {"lam": 0.3, "start": "fresh", "fresh_base": "bare"}, {})
    (tmp_path / TUNING_FILE).write_text(json.dumps({"schema_version": 1} | dataclasses.asdict(tuning)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_tuning(tmp_path).protection == {"lam": 0.3, "start": "bare"}


def test_every_field_says_who_reads_it():
    for each in dataclasses.fields(ALoRAConfig):
        assert each.metadata["help"].read_by in ("recording", "protecting", "both"), each.name
    assert {"lam", "start", "storage", "backend"} <= set(PROTECTING)
    assert not {"record", "xi", "full_parameters"} & set(PROTECTING)
    assert set(typing.get_type_hints(ALoRAConfig)) == {each.name for each in dataclasses.fields(ALoRAConfig)}


class Watched(ALoRAConfig):
    """Settings that note which of them are read."""

    read: typing.ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> typing.Any:
        Watched.read.add(name)
        return super().__getattribute__(name)


def test_the_parts_read_what_the_fields_say(lora_model, token_data, training_arguments):
    """While it trains, recording reads nothing that is said to be for protecting, nor the other way round.

    But for whether there is a recording at all, which the adapter's check asks.
    """
    names = {each.name: each.metadata["help"].read_by for each in dataclasses.fields(ALoRAConfig)}
    model = lora_model(moved=True)
    importance = made_map(model)
    for part, given, settings in (
        ("recording", None, {"record": "path"}),
        ("protecting", importance, {"lam": 0.1, "lam_schedule": "linear"}),
    ):
        trainer = ALoRATrainer(
            lora_model(moved=True), training_arguments(max_steps=2), train_dataset=token_data(),
            importance=given, alora=Watched(**settings),
        )  # fmt: skip
        Watched.read.clear()
        trainer.train()
        read = Watched.read & set(names) - {"record"}
        assert read and {names[name] for name in read} <= {part, "both"}, read


def test_choices_are_the_registries():
    choices = {each.name: each.metadata["help"].choices for each in dataclasses.fields(ALoRAConfig)}
    assert (choices["record"], choices["storage"], choices["backend"]) == (ESTIMATORS, FORMATS, BACKENDS)
    for name in ("record", "storage", "backend"):
        for choice in choices[name]:
            assert getattr(ALoRAConfig(**{name: choice}), name) == choice


def test_the_parameterization():
    assert ALoRAConfig().parameterization is Parameterization.ADAPTER
    assert ALoRAConfig(full_parameters=True).parameterization is Parameterization.FULL
