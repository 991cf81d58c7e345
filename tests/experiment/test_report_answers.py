"""What a report says of its numbers: accuracy at equal forgetting, and the three answers at its top."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alora_trainer.experiment.report.gather import Comparison, by_task
from alora_trainer.experiment.report.matched import matched_accuracy
from alora_trainer.experiment.report.report_files import report_numbers
from alora_trainer.experiment.report.variant_rows import variant_rows
from alora_trainer.experiment.report.verdict import verdict
from tests.experiment.test_report import as_results
from tests.made_up_results import made_up_run


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    (found,) = by_task([as_results(made_up_run(seed)) for seed in range(3)])
    return found


class TestEqualForgetting:
    def test_a_curve_between_two_strengths(self, comparison: Comparison) -> None:
        """Both curves are read at the most that both forgot: the end of ours, and on a line between LoRA and the base."""
        rows, missing = matched_accuracy(comparison)
        assert missing == [] and [row["other"] for row in rows] == ["lora", "lora_ab"]
        rows_by = {row["label"]: row for row in variant_rows(comparison)}
        ours, plain, base = (rows_by[name] for name in ("alora (lam=0.01)", "lora", "base"))
        (row, _) = rows
        assert row["at"] == pytest.approx(ours["rise"]["mean"])
        assert (row["ours_between"], row["other_between"]) == (False, True)
        share = ours["rise"]["mean"] / plain["rise"]["mean"]
        read = base["accuracy"]["mean"] + share * (plain["accuracy"]["mean"] - base["accuracy"]["mean"])
        assert row["difference"] == pytest.approx(ours["accuracy"]["mean"] - read, abs=1e-9)
        assert row["low"] < row["difference"] < row["high"]

    def test_the_other_forgot_less_and_ours_is_read_between(self) -> None:
        methods = {
            "base": (40.0, 0.4, {}),
            "l2": (42.0, 0.5, {}),
            "alora@lam=0.1": (41.0, 0.48, {"protecting.lam": 0.1}),
            "alora@lam=0.01": (44.0, 0.56, {"protecting.lam": 0.01}),
        }
        run = made_up_run(0, methods=methods)
        (found,) = by_task([as_results(run)])
        ((row,), _) = matched_accuracy(found, resamples=99)
        rows = {one["label"]: one for one in variant_rows(found)}
        strong, weak, other = rows["alora (lam=0.1)"], rows["alora (lam=0.01)"], rows["l2"]
        want = np.interp(
            other["rise"]["mean"],
            [strong["rise"]["mean"], weak["rise"]["mean"]],
            [strong["accuracy"]["mean"], weak["accuracy"]["mean"]],
        )
        assert row["difference"] == pytest.approx(want - other["accuracy"]["mean"])
        assert (row["ours_between"], row["other_between"]) == (True, False)

    def test_answers_of_other_items_give_no_interval(self) -> None:
        run = made_up_run(0)
        run["methods"]["lora"]["tasks"]["sciq"]["items_digest"] = "others"
        (found,) = by_task([as_results(run)])
        rows, _ = matched_accuracy(found, resamples=99)
        assert [row["low"] is None for row in rows] == [True, False]
        assert math.isfinite(rows[0]["difference"])

    def test_who_forgot_nothing_is_named(self) -> None:
        methods = {"base": (40.0, 0.4, {}), "alora": (44.0, 0.5, {}), "osf": (30.0, 0.45, {})}
        (found,) = by_task([as_results(made_up_run(0, methods=methods))])
        rows, missing = matched_accuracy(found)
        assert rows == [] and len(missing) == 1 and "osf" in missing[0]


class TestVerdict:
    @staticmethod
    def said(**changes: tuple[float, float, dict[str, Any]]) -> dict[str, str]:
        methods = {"base": (38.0, 0.39, {}), "lora": (51.5, 0.57, {}), "alora": (40.6, 0.51, {})} | changes
        runs = [as_results(made_up_run(seed, methods=methods)) for seed in range(3)]
        return dict(verdict(report_numbers(runs)["comparisons"][0]))

    def test_it_forgot_and_learned(self) -> None:
        said = self.said()
        assert re.match(
            r"Yes: after alora general perplexity is \+\d\.\d % .*; after plain LoRA it is \+3\d",
            said["Did it forget?"],
        )
        assert re.match(
            r"Yes: after alora sciq accuracy is 5\d\.\d %, before it 3\d\.\d %; plain", said["Did it learn?"]
        )
        assert said["Can I trust it?"].startswith("As far as its seeds and items go: 3 seeds")
        assert "3 test items share a run of 13 words" in said["Can I trust it?"]

    def test_neither(self) -> None:
        said = self.said(alora=(37.75, 0.39, {}))
        assert said["Did it forget?"].startswith("No: ") and said["Did it learn?"].startswith("Not that it shows: ")
        assert "two standard errors over test items" in said["Did it learn?"]

    def test_one_seed_is_a_first_look(self) -> None:
        said = dict(verdict(report_numbers([as_results(made_up_run(0))])["comparisons"][0]))
        assert said["Can I trust it?"].startswith("As a first look only: one seed")
        assert "3 settings of ALoRA stand here" in said["Can I trust it?"]
        assert " to " in said["Did it forget?"] and "(lam=1)" in said["Did it forget?"]
        # The sign of one training is no finding about the method: it says neither yes nor no.
        assert said["Did it forget?"].startswith("One training alone says: general perplexity is from +")

    @pytest.mark.parametrize(
        ("rises", "answer"),
        [((2.0, 3.0, 4.0), "Yes"), ((1.0, 3.0, 5.0), "No"), ((2.0, 4.0), "No"), ((2.9, 3.1), "Yes")],
    )
    def test_few_seeds_need_more_than_two_standard_errors(self, rises: tuple[float, ...], answer: str) -> None:
        """By the t-test of scipy at 5 %: 3 +- 1.15 (three seeds) is not above zero, though it is by 2.6 errors."""
        assert (stats.ttest_1samp(rises, 0).pvalue < 0.05) == (answer == "Yes")
        numbers = report_numbers([as_results(made_up_run(seed)) for seed in range(3)])["comparisons"][0]
        table = [row for row in numbers["table"] if row["method"] in ("base", "lora")]
        (plain,) = (row for row in table if row["method"] == "lora")
        spread = {"mean": float(np.mean(rises)), "sd": float(np.std(rises, ddof=1)), "n": len(rises)}
        table = [{**row, "rise": spread} if row is plain else row for row in table]
        said = dict(verdict({**numbers, "table": table}))["Did it forget?"]
        assert said.startswith(f"{answer}: after lora general perplexity is +3.0 % (± ")

    def test_nothing_measured(self) -> None:
        run = as_results({"recipe": {}, "methods": {"lora": {"tasks": {"t": {"acc": 0.5}}}}})
        said = dict(verdict(report_numbers([run])["comparisons"][0]))
        assert said["Did it forget?"].startswith("That is not known") and said["Did it learn?"].startswith(
            "That is not known"
        )
