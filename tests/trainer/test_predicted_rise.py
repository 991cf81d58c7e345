"""A training that a curvature map holds: the predicted rise in its log, checkpoints and card, and a budget steered by it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.cards.adapter_card import RISES
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.strength.budget import CONFIDENCE, BudgetController, Rise
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.schedule import looks
from alora_trainer.trainer.publishing import describe_tuning
from alora_trainer.weights.adapted import adapted_weights
from tests.penalty.test_budget import logged
from tests.penalty.test_in_basis_penalty import map_in_basis
from tests.penalty.test_penalty import made_map
from tests.penalty.test_predicted_rise import dense_rise
from tests.tiny_training import move_factors, quiet_arguments, tiny_llama, token_rows, with_lora

OURS = {"predicted_rise", "calibrated_rise", "measured_rise", "calibration"}


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """`held(model, importance, alora, probe=..., **arguments)`: a trainer that protects."""

    def build(model: Any, importance: ImportanceMap, alora: dict[str, Any], probe: Any = None, **arguments: Any) -> Any:
        return ALoRATrainer(
            model,
            quiet_arguments(str(tmp_path / "out"), **arguments),
            train_dataset=token_rows(40),
            importance=importance,
            alora=ALoRAConfig(**({"layer_weights": "none"} | alora)),
            probe_dataset=probe,
        )

    return build


def kronecker(model: Any, estimator: str | None = "kronecker") -> ImportanceMap:
    return map_in_basis(model, "kronecker").with_info(estimator=estimator)


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
@pytest.mark.parametrize("layer_weights", ["none", "l2"])
def test_the_log_has_the_mean_over_steps(lora_model: Any, held: Any, application: str, layer_weights: str) -> None:
    """Of a dense reference at the weights of every step, whatever the accumulation; the rise is from the reference."""
    model = lora_model(moved=True)
    importance = kronecker(model)
    move_factors(model, 0.05)
    expected: list[float] = []
    original = QuadraticPenalty.pull if application == "decoupled" else QuadraticPenalty.evaluate

    def spy(self: Any, *args: Any) -> Any:
        expected.append(dense_rise(model, importance))
        return original(self, *args)

    settings = {"lam": 0.3, "application": application, "layer_weights": layer_weights}
    trainer = held(model, importance, settings, max_steps=4, gradient_accumulation_steps=2, logging_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuadraticPenalty, original.__name__, spy)
        trainer.train()
    assert len(expected) == 4 and min(expected) > 0
    means = [sum(expected[i : i + 2]) / 2 for i in (0, 2)]
    assert logged(trainer, "predicted_rise") == pytest.approx(means, rel=1e-4)
    assert not logged(trainer, "calibrated_rise") and not logged(trainer, "measured_rise")


@pytest.mark.parametrize(("budget", "calibrates"), [(None, False), (10.0, True)])
def test_a_training_looks_at_general_text_as_often_as_is_planned(
    lora_model: Any, held: Any, monkeypatch: pytest.MonkeyPatch, budget: float | None, calibrates: bool
) -> None:
    """The budget here is kept without a pull at the end, which looks further times."""
    seen: list[Any] = []
    original = Probe.evaluate
    monkeypatch.setattr(Probe, "evaluate", lambda self, *args: seen.append(None) or original(self, *args))
    monkeypatch.setattr("alora_trainer.trainer.config.check_rise", lambda *_: None)
    model = lora_model(moved=True)
    settings = {"lam": 0.5, "probe_steps": 5, "budget": budget}
    held(model, kronecker(model), settings, token_rows(6, 10, seed=12), max_steps=12).train()
    assert len(seen) == looks(12, 5, calibrates=calibrates) == (5 if calibrates else 4)


@pytest.mark.parametrize("budget", [None, 0.002])
def test_what_is_no_curvature_says_nothing_and_is_steered_by_probes(
    lora_model: Any, held: Any, budget: float | None
) -> None:
    """Lambda is the one that the controller finds from the probes that were logged, and nothing else."""
    base = lora_model(moved=True)
    probe = token_rows(6, 10, seed=12)
    for importance in (made_map(base), kronecker(base, None)):
        settings = {"lam": 0.5, "budget": budget, "probe_steps": 3}
        trainer = held(copy.deepcopy(base), importance, settings, probe, max_steps=12)
        trainer.train()
        lines = trainer.state.log_history
        assert not any(OURS & set(line) for line in lines)
        probed = [line for line in lines if "probe_rise" in line]
        assert [line["step"] for line in probed] == [3, 6, 9, 12]
        if budget is not None:
            controller = BudgetController(budget, 0.5)
            for line in probed[:-1]:
                assert line["lam"] == controller.update(Rise(line["probe_rise"], line["probe_rise_error"]))


def test_a_prediction_leaves_no_trace_where_no_budget_is_kept(lora_model: Any, held: Any) -> None:
    base = lora_model(moved=True)
    models = []
    for estimator in ("kronecker", None):
        models.append(copy.deepcopy(base))
        settings = {"lam": 0.5, "probe_steps": 2}
        held(models[-1], kronecker(base, estimator), settings, token_rows(6, 10, seed=12), max_steps=5).train()
    for (name, p), (_, q) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.fixture(scope="module")
def learned() -> tuple[Any, ImportanceMap, Any]:
    """A model that knows something of a text, with a fresh adapter; its curvature on that text; and the text."""
    general, base = token_rows(16, 8, seed=21), tiny_llama()
    optimizer = torch.optim.Adam(base.parameters(), lr=0.01)
    ids = torch.tensor(general["input_ids"])
    for _ in range(15):
        optimizer.zero_grad()
        base(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model = with_lora(base, target_modules="all-linear", r=4)
    found = estimate_curvature(model, [{"input_ids": ids}], "kronecker")
    info = ImportanceInfo(estimator="kronecker", tokens=found.tokens)
    return model, map_at_present(model, adapted_weights(model), found.importance, info), general


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_a_budget_is_kept_with_few_probes(learned: Any, held: Any, application: str) -> None:
    model, importance, general = learned
    settings = {"start": "bare", "anchor": "base", "application": application, "probe_steps": 15}
    arguments = {"max_steps": 30, "learning_rate": 0.003}
    free = held(copy.deepcopy(model), importance, settings | {"lam": 0.0}, general, **arguments)
    free.train()
    budget = logged(free, "probe_rise")[-1] / 4
    assert budget > 0
    trainer = held(copy.deepcopy(model), importance, settings | {"budget": budget}, general, **arguments)
    trainer.train()
    probed = [line for line in trainer.state.log_history if "probe_rise" in line]
    assert [line["step"] for line in probed] == [3, 15, 30]  # the first where lambda is found
    assert all({"predicted_rise", "measured_rise", "calibration"} <= set(line) for line in probed)
    # What is published of the training has the last of them.
    facts = describe_tuning(trainer.publication(), importance).training
    assert {key: facts[key] for key in RISES} == {key: probed[-1][key] for key in RISES}
    # Between them lambda moves at every step.
    lams = [line["lam"] for line in trainer.state.log_history if "loss" in line]
    assert len(set(lams[3:-1])) > 20
    last = probed[-1]
    assert 0.2 * budget < last["probe_rise"] + CONFIDENCE * last["probe_rise_error"] <= budget
    # What was measured and predicted is of the weights that were left.
    assert last["predicted_rise"] == pytest.approx(dense_rise(trainer.model, importance), rel=1e-3)
    ids, labels = torch.tensor(general["input_ids"]), torch.tensor(general["labels"])
    with torch.no_grad():
        now = trainer.model.eval()(input_ids=ids, labels=labels).loss - model.eval()(input_ids=ids, labels=labels).loss
    assert last["measured_rise"] == pytest.approx(float(now), rel=1e-3, abs=1e-6)
    assert last["calibration"] == pytest.approx(last["measured_rise"] / last["predicted_rise"], rel=1e-6)


def test_a_resumed_training_goes_on_with_its_calibration(learned: Any, held: Any, tmp_path: Path) -> None:
    model, importance, general = learned
    settings = {"start": "bare", "anchor": "base", "budget": 0.01, "probe_steps": 8}
    arguments = {"max_steps": 20, "learning_rate": 0.003, "save_strategy": "steps", "logging_steps": 3}
    whole = held(copy.deepcopy(model), importance, settings, general, save_steps=1, **arguments)
    whole.train()
    assert len(logged(whole, "calibrated_rise")) > 3
    for checkpoint in (1, 7, 12):  # before, between, and after probes
        again = held(copy.deepcopy(model), importance, settings, general, save_steps=100, **arguments)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{checkpoint}"))
        for key in ("lam", *OURS):
            assert logged(again, key) == logged(whole, key), key
        for (name, p), (_, q) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
            assert torch.equal(p, q), name
