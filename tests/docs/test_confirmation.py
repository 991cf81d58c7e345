"""The benchmark that asks the boards' findings again reads its curves as the boards do."""

from __future__ import annotations

import importlib

import pytest

from tests.docs.pages import ROOT


def test_areas_and_comparisons_are_those_of_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    confirmed = importlib.import_module("first_directions_confirmed")

    def training(learned: float, rise: float) -> dict[str, object]:
        return {"learned": learned, "accuracy": 0.3, "rises": {"recorded": rise, "other": rise, "all": rise}}

    def of_seed(seed: int) -> dict[str, object]:
        plain = {"lora@learning_rate=0.001": training(0.2, 0.05), "lora@learning_rate=0.002": training(0.4, 0.1)}
        start = {"lora_natural@learning_rate=0.002": training(0.4, 0.04 + 0.001 * seed)}
        return {"base": {}} | plain | start | {"kfac_natural@learning_rate=0.002": training(0.2, 0.01)}

    own = confirmed.figures(of_seed(0))
    assert own["lora"] == {"area": pytest.approx(0.5), "rise_at_90": pytest.approx(0.09)}  # a straight line
    assert own["lora_natural"] == {"area": pytest.approx(0.8), "rise_at_90": pytest.approx(0.036)}
    assert own["kfac_natural"] == {"area": pytest.approx(0.5 * 0.95), "rise_at_90": None}  # it learned half as much
    found = confirmed.summary({"openbookqa": {str(seed): of_seed(seed) for seed in (10, 11, 12)}})
    (natural, _) = found["comparisons"]
    assert natural["row"] == "lora_natural" and natural["difference"] == pytest.approx(0.245)
    assert natural["p_holm"] == pytest.approx(4 * natural["p"])  # four are planned, also while one task is done
