"""Free answers and conversations in everything that is made of results: their loss a token, and never an accuracy of zero."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.basics.scores import GeneralScore, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.runner import answer_losses
from alora_trainer.experiment.report.comparison_table import format_comparison
from alora_trainer.experiment.report.drawing.chart import Chart
from alora_trainer.experiment.report.figures import lambda_curves, pareto
from alora_trainer.experiment.report.gate import run_gate
from alora_trainer.experiment.report.gather import by_task, read_runs
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.page_tables import main_table
from alora_trainer.experiment.report.page_text import findings
from alora_trainer.experiment.report.variant_rows import variant_rows
from tests.made_up_results import METHODS, made_up_run, write_sweep

LOSSES = dict(zip(METHODS, (2.0, 1.0, 1.01, 1.1, 1.3, 1.8), strict=True))


@pytest.fixture
def comparison(tmp_path: Path) -> Any:
    """A sweep over lambda on a task of free answers."""
    import json

    folder = write_sweep(tmp_path / "sweep", seeds=2)
    for seed in (0, 1):
        content = made_up_run(seed)
        for name, entry in content["methods"].items():
            (score,) = entry["tasks"].values()
            score |= {"acc": 0.0, "answer_loss": LOSSES[name] + seed / 100, "answer_tokens": 100}
            score["answer_perplexity"] = math.exp(score["answer_loss"])
            score.pop("acc_norm", None)
        (folder / f"seed-{seed}" / "results.json").write_text(json.dumps(content))
    (found,) = by_task(read_runs([folder]))
    return found


def test_tables_show_the_loss_and_no_accuracy(comparison: Any) -> None:
    rows = variant_rows(comparison)
    table = main_table(rows)
    assert "answer loss (nats a token)" in table.header and "answer perplexity" in table.header
    assert not any("accuracy" in one for one in table.header)
    place = table.header.index("answer loss (nats a token)")
    assert table.rows[1][place] == "1.005 ± 0.007"
    best = [table.rows[row][0] for row, column in table.bold if column == place]
    assert best == ["lora"]  # the least, not the most
    assert "answer loss (nats a token)" in format_comparison(comparison)
    (first, *_) = findings({"table": rows})
    assert "answer loss 1.105 nats a token" in first and "accuracy" not in first


def test_figures_are_drawn_over_the_loss(comparison: Any) -> None:
    data = pareto.numbers(comparison)
    assert data is not None and data["measure"] == "free_loss"
    assert [point["free_loss"]["mean"] for point in data["points"][:2]] == [pytest.approx(2.005), pytest.approx(1.005)]
    (chart,) = pareto.draw(data)
    assert isinstance(chart, Chart) and chart.axes[chart.y].downwards
    assert "answer loss (nats a token)" in chart.svg() and "accuracy" not in chart.svg()
    curves = lambda_curves.numbers(comparison)
    assert curves is not None
    assert any("answer loss" in drawing.svg() for drawing in lambda_curves.draw(curves))


def test_with_choices_everything_is_as_it_was(tmp_path: Path) -> None:
    (comparison,) = by_task(read_runs([write_sweep(tmp_path / "sweep", seeds=2)]))
    data = pareto.numbers(comparison)
    assert data is not None and "measure" not in data and "accuracy" in data["points"][0]
    assert "accuracy (%)" in main_table(variant_rows(comparison)).header


def test_one_per_cent_is_of_general_loss_everywhere(comparison: Any) -> None:
    """The budget's measure: of a mean negative log-likelihood. Perplexity rises by another share."""
    rises = comparison.loss_rises(comparison.of("lora")[0])
    runs = {run.seed: run.methods for run in comparison.runs}
    for seed, rise in rises.items():
        after, before = (math.log(runs[seed][name].general.token_perplexity) for name in ("lora", "base"))
        assert rise == pytest.approx(100 * (after / before - 1))
    base, tuned = GeneralScore(token_cross_entropy=4.0), GeneralScore(token_cross_entropy=4.04)
    methods = {"base": MethodResult(base), "alora": MethodResult(tuned)}
    (check,) = run_gate(methods, "alora", max_general_rise=0.0101)
    assert check.passed and str(check) == "gate passed: general loss's rise over base is 1 %, wanted <= 1.01 %"
    (check,) = run_gate(methods, "alora", max_general_rise=0.0099)
    assert not check.passed


def test_the_gate_on_free_answers() -> None:
    methods = {"alora": MethodResult(tasks={"chat": TaskScore(acc=0.0, answer_loss=1.25)})}
    with pytest.raises(ALoRAError, match="the answers of chat are free text: use --max-answer-loss"):
        run_gate(methods, "alora", min_accuracy=0.5)
    (check,) = run_gate(methods, "alora", max_answer_loss=1.2)
    assert not check.passed
    assert str(check) == "gate FAILED: chat answer loss is 1.25 nats a token, wanted <= 1.2 nats a token"
    with pytest.raises(ALoRAError, match="no task has any: use --min-accuracy"):
        run_gate({"alora": MethodResult(tasks={"sciq": TaskScore(acc=0.5)})}, "alora", max_answer_loss=1.2)


def test_what_is_to_be_kept_is_wanted_at_least() -> None:
    scores = {"base": 0.5, "alora": 0.48}
    methods = {
        name: MethodResult(
            GeneralScore(token_cross_entropy=3.0, tasks={"arc": {"acc": acc}}), tasks={"t": TaskScore(acc=0.9)}
        )
        for name, acc in scores.items()
    }
    said = [
        str(one) for one in run_gate(methods, "alora", max_general_rise=0.01, min_accuracy=0.8, keep={"arc": -0.01})
    ]
    assert said == [
        "gate passed: general loss's rise over base is 0 %, wanted <= 1 %",
        "gate passed: t accuracy is 90 %, wanted >= 80 %",
        "gate FAILED: arc acc's change over base is -2 %, wanted >= -1 %",
    ]


def test_the_loss_is_pooled_over_tokens_not_items() -> None:
    rows = [{"log_likelihoods": [-10.0], "tokens": 1}, {"log_likelihoods": [-20.0], "tokens": 29}]
    found = answer_losses(rows)
    assert found["answer_loss"] == 1.0 and found["answer_perplexity"] == pytest.approx(math.e)
    assert answer_losses([{"log_likelihoods": [-1e6], "tokens": 2}])["answer_perplexity"] == math.inf
