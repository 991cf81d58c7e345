"""The comparison's own logic: what is run, how a strength is chosen, what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from alora_trainer.basics.files import write_json
from alora_trainer.basics.scores import GeneralScore, TaskScore
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import RunResults, read_results
from alora_trainer.experiment.run.sweep import Cell, Grid, cells_of
from benchmarks import comparison


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Replaces every training by made-up scores: a larger lambda forgets less and learns less. The list has what was run."""
    cells: list[Cell] = []

    def run_sweep(grids: Sequence[Grid], *, output_dir: Path, workers: int) -> None:
        for grid in grids:
            for cell in cells_of(grid):
                cells.append(cell)
                recipe = load_recipe(cell.recipe, cell.overrides)
                known = output_dir / cell.folder / "results.json"
                methods = dict(read_results(known)[0].methods) if known.is_file() else {}
                for name in cell.methods:
                    lam = float(recipe.for_method(METHODS[name]).alora.lam) if name in comparison.HELD else 0.0
                    accuracy = 0.3 if name == "base" else 0.5 - lam * (0.2 if name == "alora" else 1.0)
                    task = TaskScore(acc=accuracy + recipe.seed / 1000, acc_stderr=0.02)
                    score = MethodResult(GeneralScore(token_perplexity=50 - 10 * lam), {"questions": task})
                    methods[name if cell.variant is None else f"{name}@{cell.variant}"] = score
                write_json(known, RunResults({}, methods).to_json())

    monkeypatch.setattr(comparison, "run_sweep", run_sweep)
    return cells


def test_from_strengths_to_the_table(worked: list[Cell], tmp_path: Path, shared: Path) -> None:
    lambdas = [0.01, 0.1, 1.0]
    selection = comparison.select(tmp_path, {"sciq-passages": lambdas, "piqa": lambdas}, {}, 2)
    assert [cell.methods for cell in worked] == [("lora_ab",), *[comparison.HELD] * 3] * 2
    assert {cell.overrides["seed"] for cell in worked} == {str(comparison.SELECTION_SEED)}
    # At most one standard error (0.02) of accuracy may be lost: alora may take 0.1, the others 0.01.
    assert selection["piqa"]["chosen"] == {"l2": 0.01, "shuffled": 0.01, "ewclora": 0.01, "alora": 0.1}
    assert selection["piqa"]["at_the_edge"] == ["l2", "shuffled", "ewclora"]
    worked.clear()
    table = comparison.final(tmp_path, selection, [0, 1, 2], {}, 2)
    assert len(worked) == 6 and all(cell.methods == comparison.METHODS for cell in worked)
    assert table["piqa"]["alora"]["perplexity"]["each"] == [49.0, 49.0, 49.0]
    assert table["piqa"]["alora"]["accuracy"]["mean"] == pytest.approx(0.481)
    assert table["piqa"]["alora"]["accuracy"]["sd"] == pytest.approx(0.001)
    text = comparison.format_table({"selection": selection, "final": table})
    assert "| alora | 0.1 | 49.00 ± 0.00 | -2.0 % | 48.1 ± 0.1 |" in text


def test_a_single_strength_that_is_the_recipes_own(worked: list[Cell], tmp_path: Path, shared: Path) -> None:
    own = load_recipe(comparison.recipe_path("piqa")).alora.lam
    assert own is not None
    selection = comparison.select(tmp_path, {"piqa": [float(own)]}, {}, 1)
    assert selection["piqa"]["chosen"] == dict.fromkeys(comparison.HELD, float(own))


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
