"""The rise that a curvature map predicts: recovered from the penalty, calibrated by a probe, and the final pull by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAError
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.strength.budget import STEPS, BudgetController, Rise
from alora_trainer.penalty.strength.final_pull import FinalPull
from alora_trainer.penalty.strength.prediction import RisePrediction
from alora_trainer.weights.adapted import adapted_weights
from tests.dense_metric import dense_metric
from tests.penalty.test_in_basis_penalty import KINDS, map_in_basis
from tests.tiny_training import move_factors


def dense_rise(model: Any, importance: Any) -> float:
    """1/2 sum_l <D, M D> in float64, each M written out."""
    total = 0.0
    for weight in adapted_weights(model):
        there = importance.reference[weight.name]
        drift = weight.scaling * weight.b.double() @ weight.a.double()
        drift = (drift - there.scaling * there.b.double() @ there.a.double()).flatten()
        total += 0.5 * float(drift @ dense_metric(importance.stored(weight.name)) @ drift)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layer_weights", ["none", "l2", {"q_proj": 3.0, "v_proj": 0.0}])
def test_it_is_recovered_whatever_the_penalty_weighs(
    lora_model: Any, kind: str, normalize: bool, layer_weights: Any
) -> None:
    """Of the same pass as the penalty's value, also where a layer's weight is zero, and of the decoupled update."""
    model = lora_model(moved=True)
    importance = map_in_basis(model, kind)
    move_factors(model, 0.1)
    penalty = QuadraticPenalty(
        adapted_weights(model), importance, lam=0.7, layer_weights=layer_weights, normalize=normalize
    )
    expected = dense_rise(model, importance)
    assert float(penalty.evaluate().literal) / 2 == pytest.approx(expected, rel=1e-4)
    penalty.lam = 0.0
    assert float(penalty.evaluate().literal) / 2 == pytest.approx(expected, rel=1e-4)
    penalty.lam = 1e-3
    before = penalty.pull({id(p): 0.1 for weight in penalty.weights for p in weight.parameters})
    assert float(before.literal) / 2 == pytest.approx(expected, rel=1e-4)
    assert dense_rise(model, importance) < expected


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ({"estimator": "kronecker"}, True),
        ({"estimator": "ekfac"}, True),
        ({"estimator": "covariance"}, True),
        ({"estimator": "fisher_true"}, False),
        ({"estimator": "shuffled (control, from kronecker)"}, False),
        ({"estimator": "kronecker", "earlier_tasks": ({"estimator": "kronecker"},)}, False),
        ({}, False),
    ],
)
def test_which_maps_predict_nats(facts: dict[str, Any], known: bool) -> None:
    assert ImportanceInfo(**facts).is_curvature_by_token is known


def test_a_clear_rise_calibrates_and_noise_does_not() -> None:
    prediction = RisePrediction()
    prediction.start = 0.01  # the training started away from where the penalty pulls to
    assert prediction.calibrated(0.03) is None and prediction.bound is None
    prediction.add(0.02)
    logs = prediction.calibrate(0.03, Rise(0.001, 0.002), start_loss=4.0)
    assert logs == {"predicted_rise": 0.03, "measured_rise": pytest.approx(0.004)}
    assert prediction.factor is None
    # What steers is the bound, calibrated on the step's own prediction.
    assert prediction.bound == (pytest.approx(0.001 + 1.28 * 0.002), 0.0)
    logs = prediction.calibrate(0.03, Rise(0.01, 0.002), start_loss=4.0)
    assert logs["calibration"] == prediction.factor == pytest.approx(0.04 / 0.02)
    assert prediction.calibrated(0.05) == pytest.approx(0.1)
    prediction.add(0.03)
    assert prediction.bound == (pytest.approx(2 * 0.01256), pytest.approx(0.01256))
    # A fall says nothing of the factor: the earlier one stays.
    prediction.calibrate(0.03, Rise(-0.01, 0.002), start_loss=4.0)
    assert prediction.factor == pytest.approx(2.0) and prediction.bound == (
        pytest.approx(2 * 0.01256),
        pytest.approx(0.01256),
    )


def test_its_state_is_kept_to_the_bit() -> None:
    prediction = RisePrediction()
    prediction.start = 0.1
    for step in range(STEPS + 5):
        prediction.add(0.1 + step / 3)
    prediction.calibrate(1 / 7, Rise(1 / 3, 1 / 11), start_loss=4.1)
    again = RisePrediction()
    again.load_state_dict(json.loads(json.dumps(prediction.state_dict())))
    assert vars(again) == vars(prediction)
    again.add(9.0), prediction.add(9.0)
    assert again.bound == prediction.bound
    for damage in ({"recent": None}, {"start": float("nan")}, {"factor": "x"}):
        with pytest.raises(ALoRAError, match="state of the predicted rise"):
            RisePrediction().load_state_dict(prediction.state_dict() | damage)


def test_ten_steps_move_lambda_as_one_probe_does() -> None:
    """Where the rise stays as it is, whoever says so."""
    for value in (0.001, 0.0085, 0.012, 0.5):
        probed, followed = BudgetController(0.01, 2.0), BudgetController(0.01, 2.0)
        probed.update(Rise(value, 0.0))
        start = probed.lam
        probed.update(Rise(value, 0.0))  # the second, which sees no change
        for _ in range(STEPS):
            followed.follow(value, 0.0)
        assert followed.lam / 2.0 == pytest.approx(probed.lam / start)


class Toy:
    """A penalty whose weights have moved, and a rise that is `truth` times its value to the power of `power`."""

    def __init__(self, model: Any, power: float = 1.0) -> None:
        importance = map_in_basis(model, "kronecker")
        move_factors(model, 0.1)
        self.penalty = QuadraticPenalty(adapted_weights(model), importance, lam=0.0, layer_weights="none", pulls=True)
        self.power, self.measured = power, 0
        self.start = self.rise().value

    def predict(self) -> float:
        return float(self.penalty.evaluate().literal) / 2

    def rise(self) -> Rise:
        self.measured += 1
        return Rise(3.0 * self.predict() ** self.power, 0.0)


@pytest.mark.parametrize("power", [1.0, 0.7, 1.4])
def test_the_final_pull_by_prediction_takes_few_probes(lora_model: Any, power: float) -> None:
    """Also where the rise is not quite proportional to it; and the budget is used."""
    toy = Toy(lora_model(moved=True), power)
    budget = toy.start / 5
    toy.measured = 0
    logs = FinalPull(toy.penalty, budget, toy.predict).keep_budget(Rise(toy.start, 0.0), toy.rise)
    taken = toy.measured
    assert 0.8 * budget < logs["probe_rise"] <= budget
    assert toy.rise().value == pytest.approx(logs["probe_rise"])  # the weights are those that are told of
    assert taken <= (2 if power == 1.0 else 5)
    blind = Toy(lora_model(moved=True), power)
    blind.measured = 0
    FinalPull(blind.penalty, budget).keep_budget(Rise(blind.start, 0.0), blind.rise)
    assert taken < blind.measured


def test_a_prediction_that_misleads_leaves_it_to_the_probe(lora_model: Any) -> None:
    toy = Toy(lora_model(moved=True))
    budget = toy.start / 5
    for useless in (lambda: 1.0, lambda: 0.0, lambda: -toy.predict()):
        toy.penalty.lam = 0.0
        before = [p.detach().clone() for w in toy.penalty.weights for p in w.parameters]
        logs = FinalPull(toy.penalty, budget, useless).keep_budget(Rise(toy.start, 0.0), toy.rise)
        assert 0 < logs["probe_rise"] <= budget
        for p, left in zip((p for w in toy.penalty.weights for p in w.parameters), before, strict=True):
            p.data.copy_(left)


def test_maps_in_a_basis_say_nothing_of_nats_unless_they_were_estimated_so(lora_model: Any) -> None:
    importance = map_in_basis(lora_model(moved=True), "kronecker")
    assert not importance.info.is_curvature_by_token
    assert importance.with_info(estimator="kronecker").info.is_curvature_by_token
    assert torch.equal(
        importance[next(iter(importance))], importance.with_info(estimator="ekfac")[next(iter(importance))]
    )
