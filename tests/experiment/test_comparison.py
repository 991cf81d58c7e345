"""The comparison's own logic: what is run, how a strength is chosen, what is reported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.reading import load_recipe
from benchmarks import comparison


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[comparison.Unit]:
    """Replaces every run by made-up scores: a larger lambda forgets less and learns less. The list has what was run."""
    ran: list[comparison.Unit] = []

    def run_unit(unit: comparison.Unit) -> dict[str, Any]:
        ran.append(unit)
        entries = {}
        for method in unit.methods:
            lam = float(unit.overrides.get(f"method_options.{method}.alora.lam", unit.overrides.get("alora.lam", 0)))
            held = lam if method in comparison.HELD else 0.0
            accuracy = 0.3 if method == "base" else 0.5 - held * (0.2 if method == "alora" else 1.0)
            scores = {"acc": accuracy + unit.seed / 1000, "acc_stderr": 0.02}
            entries[method] = {"general": {"token_perplexity": 50 - 10 * held}, "tasks": {unit.task: scores}}
        return {"methods": entries}

    monkeypatch.setattr(comparison, "run_unit", run_unit)
    return ran


def test_from_strengths_to_the_table(units: list[comparison.Unit], tmp_path: Path) -> None:
    lambdas = [0.01, 0.1, 1.0]
    with ThreadPoolExecutor(2) as pool:
        selection = comparison.select(pool, tmp_path, {"sciq": lambdas, "piqa": lambdas}, {})
        assert len(units) == 6 and {unit.seed for unit in units} == {comparison.SELECTION_SEED}
        assert sum(unit.shares is None for unit in units) == 2
        # At most one standard error (0.02) of accuracy may be lost: alora may take 0.1, the others 0.01.
        assert selection["sciq"]["chosen"] == {"l2": 0.01, "shuffled": 0.01, "ewclora": 0.01, "alora": 0.1}
        assert selection["sciq"]["at_the_edge"] == ["l2", "shuffled", "ewclora"]
        units.clear()
        table = comparison.final(pool, tmp_path, selection, [0, 1, 2], {})
    assert len(units) == 6 and all(unit.methods == comparison.METHODS for unit in units)
    assert table["piqa"]["alora"]["perplexity"]["each"] == [49.0, 49.0, 49.0]
    assert table["piqa"]["alora"]["accuracy"]["mean"] == pytest.approx(0.481)
    assert table["piqa"]["alora"]["accuracy"]["sd"] == pytest.approx(0.001)
    text = comparison.format_table({"selection": selection, "final": table})
    assert "| alora | 0.1 | 49.00 ± 0.00 | -2.0 % | 48.1 ± 0.1 |" in text


def test_where_nothing_keeps_the_accuracy_the_best_is_taken() -> None:
    curve = [{"lam": 1.0, "accuracy": 0.3, "perplexity": 1.0}, {"lam": 0.1, "accuracy": 0.4, "perplexity": 2.0}]
    assert comparison.choose(curve, {"accuracy": 0.5, "accuracy_stderr": 0.01}) == 0.1


@pytest.mark.parametrize("task", comparison.LAMBDAS)
def test_selection_never_sees_the_test_items(task: str, shared: Path) -> None:
    path = comparison.recipe_path(task)
    variables = {"ALORA_SHARED": str(shared)}
    final = load_recipe(path, {"methods": ",".join(comparison.METHODS)}, variables=variables).resolved()
    chosen = load_recipe(path, comparison.validation_overrides(task), variables=variables).resolved()
    assert not set(chosen["general"]["test"].values()) & set(final["general"]["test"].values())
    assert final["domain"]["test"] not in [chosen["domain"][key] for key in ("train", "test", "source")]
    assert all(Path(source).is_file() for source in chosen["general"]["test"].values())
    assert set(comparison.METHODS) <= set(METHODS)
