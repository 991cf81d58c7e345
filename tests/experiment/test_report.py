"""The report: its numbers against formulas written out, and that a page comes of them that needs nothing else."""

from __future__ import annotations

import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.integrate import trapezoid

from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.items import unpack_correct
from alora_trainer.experiment.methods import METHODS as ALL_METHODS
from alora_trainer.experiment.report.figures import FIGURES
from alora_trainer.experiment.report.gather import Comparison, by_task, read_runs
from alora_trainer.experiment.report.report_files import NUMBERS, report_numbers, write_report
from alora_trainer.experiment.report.results import RunResults
from alora_trainer.experiment.report.significance import paired_bootstrap, significance, welch
from alora_trainer.experiment.report.style import look
from alora_trainer.experiment.report.variant_rows import ablation_rows, summary, variant_rows
from alora_trainer.experiment.report.verdict import verdict
from tests.made_up_results import ITEMS, METHODS, made_up_run, weight_names, write_sweep

RESULTS = Path(__file__).resolve().parents[2] / "results"


def as_results(run: dict[str, Any]) -> RunResults:
    return RunResults.from_json(run, "a run")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    (found,) = by_task([as_results(made_up_run(seed)) for seed in range(3)])
    return found


def values(method: str, *path: str) -> list[float]:
    found = []
    for seed in range(3):
        value: Any = made_up_run(seed)["methods"][method]
        for key in path:
            value = value[key]
        found.append(value)
    return found


class TestGathering:
    def test_methods_their_variants_and_seeds(self, comparison: Comparison) -> None:
        labels = [variant.label for variant in comparison.variants]
        assert labels == ["base", "lora", "lora_ab", "alora (lam=0.01)", "alora (lam=0.1)", "alora (lam=1)"]
        assert comparison.seeds == [0, 1, 2]
        assert [variant.lam for variant in comparison.of("alora")] == [0.01, 0.1, 1.0]

    def test_from_folders_files_and_reports(self, tmp_path: Path) -> None:
        sweep = write_sweep(tmp_path / "sweep")
        write_sweep(tmp_path / "several" / "one", seeds=1)
        (tmp_path / "report.json").write_text(json.dumps({"schema": 1, "runs": [made_up_run(5)]}))
        assert [run.seed for run in read_runs([sweep])] == [0, 1, 2]
        assert len(read_runs([sweep / "seed-1", sweep / "seed-2" / "results.json"])) == 2
        assert len(read_runs([tmp_path / "several"])) == 1
        assert read_runs([tmp_path / "report.json"])[0].seed == 5

    def test_what_is_no_result(self, tmp_path: Path) -> None:
        for text, message in (
            ("{", "cannot be read as JSON"),
            ("[]", "holds no results"),
            ('{"a": 1}', "holds no results"),
            ('{"schema": 2, "methods": {}}', "schema 2, and this version reads 1"),
        ):
            (tmp_path / "x.json").write_text(text)
            with pytest.raises(ALoRAError, match=message):
                read_runs([tmp_path / "x.json"])
        (tmp_path / "empty").mkdir()
        with pytest.raises(ALoRAError, match="has no results.json"):
            read_runs([tmp_path / "empty"])
        with pytest.raises(ALoRAError, match="no run with a task"):
            by_task([as_results({"schema": 1, "methods": {"base": {}}, "recipe": {}})])

    def test_the_committed_results(self) -> None:
        """Written before entries had settings: two strengths of one seed are told apart by their recipes."""
        runs = read_runs([RESULTS / "small-sciq-seed0.json", RESULTS / "small-sciq-seed0-lam0.01.json"])
        (found,) = by_task(runs)
        assert [variant.label for variant in found.variants] == [
            "base", "lora", "lora_ab", "alora (lam=0.01)", "alora (lam=0.3)"
        ]  # fmt: skip
        numbers = report_numbers(runs)["comparisons"][0]
        assert numbers["significance"][0]["accuracy"] is None  # one seed
        assert numbers["significance"][0]["items"] is None  # no answers by item

    def test_tasks_apart(self) -> None:
        found = by_task([as_results(made_up_run(0)), as_results(made_up_run(0, task="piqa"))])
        assert [one.task for one in found] == ["sciq", "piqa"]


class TestNumbers:
    def test_the_table(self, comparison: Comparison) -> None:
        rows = {row["label"]: row for row in variant_rows(comparison)}
        perplexities = values("lora", "general", "token_perplexity")
        assert rows["lora"]["perplexity"]["mean"] == pytest.approx(statistics.fmean(perplexities), rel=1e-12)
        assert rows["lora"]["perplexity"]["sd"] == pytest.approx(statistics.stdev(perplexities), rel=1e-12)
        rises = [100 * (value / 38 - 1) for value in perplexities]
        assert rows["lora"]["rise"]["mean"] == pytest.approx(statistics.fmean(rises), rel=1e-12)
        accuracy = {name: 100 * statistics.fmean(values(name, "tasks", "sciq", "acc")) for name in METHODS}
        ours = rows["alora (lam=0.1)"]
        assert ours["accuracy"]["mean"] == pytest.approx(accuracy["alora@lam=0.1"])
        assert ours["accuracy_over_base"] == pytest.approx(accuracy["alora@lam=0.1"] - accuracy["base"])
        assert ours["accuracy_over_lora"] == pytest.approx(accuracy["alora@lam=0.1"] - accuracy["lora"])
        assert ours["perplexity_over_lora"] == pytest.approx(
            100 * (ours["perplexity"]["mean"] / rows["lora"]["perplexity"]["mean"] - 1)
        )
        assert ours["seconds_before"]["mean"] == 60 and rows["lora"]["seconds_before"]["mean"] == 0
        best = {label for label, row in rows.items() if "perplexity" in row["best"]}
        assert best == {"alora (lam=1)"}  # and not the base model, which learned nothing
        most = max((row for row in rows.values()), key=lambda row: row["accuracy"]["mean"])
        assert "accuracy" in most["best"]

    def test_one_seed_has_no_spread(self) -> None:
        assert summary([2.0]) == {"mean": 2.0, "sd": None, "n": 1}
        assert summary([]) is None

    def test_the_ablation(self, comparison: Comparison) -> None:
        rows = ablation_rows(variant_rows(comparison))
        assert [row["what"] for row in rows] == ["whole"] * 3 + ["- layer, element (no penalty)"]
        (alone,) = by_task([as_results(made_up_run(0, methods={"alora": (40.0, 0.5, {})}))])
        assert ablation_rows(variant_rows(alone)) == []

    def test_welch_against_its_formula(self) -> None:
        ours, other = [57.1, 58.3, 56.6, 57.9], [54.2, 55.9, 51.0]
        found = welch(ours, other)
        assert found is not None
        variances = [statistics.variance(side) / len(side) for side in (ours, other)]
        t = (statistics.fmean(ours) - statistics.fmean(other)) / math.sqrt(sum(variances))
        df = sum(variances) ** 2 / sum(v**2 / (len(side) - 1) for v, side in zip(variances, (ours, other), strict=True))
        assert (found["t"], found["df"]) == (pytest.approx(t), pytest.approx(df))
        # The two-sided p by integrating Student's density.
        grid = np.linspace(abs(t), abs(t) + 2000, 4_000_001)
        density = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
        tail = trapezoid(density * (1 + grid**2 / df) ** (-(df + 1) / 2), grid)
        assert found["p"] == pytest.approx(2 * tail, rel=1e-3)
        assert welch([1.0], other) is None
        flat = welch([1.0, 1.0], [2.0, 2.0])
        assert flat is not None and (flat["difference"], flat["p"]) == (-1.0, None)

    def test_the_bootstrap_against_the_normal_limit(self) -> None:
        chance = np.random.default_rng(0)
        differences = chance.choice([-100.0, 0.0, 100.0], size=3000, p=[0.1, 0.75, 0.15])
        found = paired_bootstrap(differences, resamples=4999)
        error = differences.std() / math.sqrt(len(differences))
        assert found["difference"] == pytest.approx(differences.mean())
        assert found["low"] == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
        assert found["high"] == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
        assert found["p"] < 0.001
        assert paired_bootstrap(np.zeros(50), resamples=99)["p"] == 1.0

    def test_items_are_paired(self, comparison: Comparison) -> None:
        rows = {(row["ours"], row["other"]): row for row in significance(comparison)}
        assert len(rows) == 3 * 3
        found = rows["alora (lam=0.1)", "lora"]["items"]
        answers = {
            name: np.mean([unpack_correct(text, ITEMS) for text in values(name, "tasks", "sciq", "correct")], axis=0)
            for name in ("alora@lam=0.1", "lora")
        }
        difference = 100 * (answers["alora@lam=0.1"] - answers["lora"])
        assert found["difference"] == pytest.approx(difference.mean())
        # Pairing is what makes the interval narrow: unpaired, both means' variances would add up.
        unpaired = 100 * math.sqrt(sum(one.var() for one in answers.values()) / ITEMS)
        assert found["high"] - found["low"] < 2 * 1.96 * unpaired * 0.8
        other_items = made_up_run(1)
        for entry in other_items["methods"].values():
            entry["tasks"]["sciq"]["items_digest"] = "others"
        (mixed,) = by_task([as_results(made_up_run(0)), as_results(other_items)])
        assert all(row["items"] is None for row in significance(mixed))

    def test_what_the_figures_draw(self, comparison: Comparison) -> None:
        numbers = {module.NAME: module.numbers(comparison) for module in FIGURES}
        assert all(numbers.values())
        assert [point["lam"] for point in numbers["strength"]["curves"]["alora"]] == [0.01, 0.1, 1.0]
        logs = numbers["importance"]["log_norms"]
        assert list(logs) == weight_names() and logs[weight_names()[2]] == pytest.approx(0.4 - 3)
        (curve,) = [one for one in numbers["losses"]["curves"] if one["label"] == "alora (lam=1)"]
        history = [made_up_run(seed)["methods"]["alora@lam=1.0"]["train"]["history"]["training"] for seed in range(3)]
        assert curve["total"][3] == pytest.approx(statistics.fmean(one["loss"][3] for one in history))
        assert curve["total"][3] == pytest.approx(curve["task"][3] + curve["penalty"][3])
        assert {row["method"] for row in numbers["cost"]["rows"]} == {"lora", "lora_ab", "alora"}
        drift = {one["label"]: one["weights"] for one in numbers["drift"]["curves"]}
        assert drift["lora"][weight_names()[1]] == pytest.approx(1.2)
        assert "note" not in numbers["drift"]
        (bare,) = by_task([as_results({"recipe": {}, "methods": {"lora": {"tasks": {"t": {"acc": 0.5}}}}})])
        assert [module.numbers(bare) for module in FIGURES] == [None] * len(FIGURES)


def test_who_has_no_drift_is_named() -> None:
    run = made_up_run(0)
    del run["methods"]["lora"]["train"]["drift"]
    run["methods"]["lora"]["train"]["steps"] = 50
    (comparison,) = by_task([as_results(run)])
    numbers = next(module for module in FIGURES if module.NAME == "drift").numbers(comparison)
    assert numbers["note"].endswith(": lora.")


def test_no_two_methods_look_alike() -> None:
    looks = [look(name, list(ALL_METHODS)) for name in ALL_METHODS]
    assert len(set(looks)) == len(looks) == len(ALL_METHODS) >= 20


@pytest.mark.parametrize(("options", "weight"), [({}, 1.0), ({"replay": {"weight": 0.25}}, 0.25)])
def test_the_loss_on_general_text_is_not_the_tasks(options: dict[str, Any], weight: float) -> None:
    run = made_up_run(0, methods={"replay": (40.0, 0.5, {})})
    history = run["methods"]["replay"]["train"]["history"]["training"]
    history.pop("ce_loss", None), history.pop("penalty", None)
    history["general_loss"] = [3.0 for _ in history["loss"]]
    run["recipe"]["method_options"] = options
    (comparison,) = by_task([as_results(run)])
    numbers = next(module for module in FIGURES if module.NAME == "losses").numbers(comparison)
    (curve,) = numbers["curves"]
    assert curve["total"] == history["loss"] and curve["penalty"] == [3.0 * weight] * len(history["loss"])
    assert curve["task"] == pytest.approx([value - 3.0 * weight for value in history["loss"]])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main(["report", str(write_sweep(folder / "sweep")), "--output_dir", str(folder / "out")]) == 0
    return folder / "out"


class TestPages:
    def test_the_page_needs_nothing_else(self, report: Path) -> None:
        text = (report / "report.html").read_text()
        page = _Page()
        page.feed(text)
        assert page.sources == [] and "link" not in page.tags
        assert (
            "http" not in text.replace("http://www.w3.org/2000/svg", "")
            and "@import" not in text
            and "url(" not in text
        )
        drawn = re.findall(r"<svg viewBox.*?</svg>", text, re.S)
        figures = [one for one in drawn if 'aria-label="' in one]
        assert len(figures) >= len(FIGURES) == len(re.findall('<div class="figures">', text))
        for one in drawn:
            ElementTree.fromstring(one)
        assert all(len(ElementTree.fromstring(one).attrib["aria-label"]) > 40 for one in figures)

    def test_the_figures_are_files_of_their_own(self, report: Path) -> None:
        names = {f"sciq-small-{module.NAME}.svg" for module in FIGURES}
        assert {path.name for path in (report / "figures").iterdir()} == names
        for path in (report / "figures").iterdir():
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        markdown = (report / "report.md").read_text()
        assert all((report / link).is_file() for link in re.findall(r"\]\((figures/[^)]+)\)", markdown))
        assert markdown.count("](figures/") == len(FIGURES)

    def test_what_is_filtered_is_named(self, report: Path) -> None:
        """Every method has a box, and what is drawn of it, or said of it in a table, is hidden by that box."""
        text = (report / "report.html").read_text()
        boxes = set(re.findall(r'<input type="checkbox" data-row="([^"]+)"', text))
        assert boxes == {"base", "lora", "lora_ab", "alora"} == set(re.findall(r'data-row="([^"]+)"', text))

    def test_the_pages_say_what_the_numbers_say(self, report: Path) -> None:
        numbers = json.loads((report / NUMBERS).read_text())["comparisons"][0]
        ours = next(row for row in numbers["table"] if row["label"] == "alora (lam=0.1)")
        cell = f"{ours['accuracy']['mean']:.1f} ± {ours['accuracy']['sd']:.1f}"
        best = next(row for row in numbers["table"] if "perplexity" in row["best"])
        bold = f"{best['perplexity']['mean']:.2f} ± {best['perplexity']['sd']:.2f}"
        html, markdown = ((report / f"report.{kind}").read_text() for kind in ("html", "md"))
        assert f">{cell}</td>" in html and f"| {cell} |" in markdown
        assert re.search(f'<td class="best" data-value="[^"]+">{bold}</td>', html) and f"**{bold}**" in markdown
        for question, answer in verdict(numbers):
            assert question in html and answer in html and f"**{question}** " in markdown
        assert "share of the items whose right choice is the likeliest" in html
        assert "| 0 | 400 | 120 | 3 |" in markdown

    def test_rendered_again_from_its_own_numbers(self, report: Path, tmp_path: Path) -> None:
        write_report([report / NUMBERS], tmp_path)
        for path in report.rglob("*"):
            if path.is_file():
                assert (tmp_path / path.relative_to(report)).read_bytes() == path.read_bytes(), path.name

    def test_what_is_missing_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ALoRAError, match="has no results.json"):
            write_report([tmp_path], tmp_path / "out")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ALoRAError, match=r"pip install scipy .*in a clone.* '\.\[report\]'"):
            write_report([tmp_path], tmp_path / "out")


def test_the_committed_study_is_rendered_again(tmp_path: Path) -> None:
    study = RESULTS / "small-study.json"
    if not study.is_file():
        pytest.skip("the study's results are not committed yet")
    numbers = json.loads(study.read_text())
    again = [json.loads(json.dumps(variant_rows(comparison))) for comparison in by_task(read_runs([study]))]
    for table, committed in zip(again, numbers["comparisons"], strict=True):
        for row, before in zip(table, committed["table"], strict=True):
            assert set(before["best"]) <= set(row["best"])  # measures that came later are beside those
            assert rounded({key: row[key] for key in before if key != "best"}) == rounded(
                {k: v for k, v in before.items() if k != "best"}
            )


def rounded(value: Any) -> Any:
    """JSON whose numbers have twelve digits: Python 3.10 computes the last ones of a standard deviation another way."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.12g}") if isinstance(value, float) else value
