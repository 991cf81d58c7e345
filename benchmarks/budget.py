"""Whether a budget on general loss is kept, and what accuracy it costs: budgets x seeds on real data.

    python benchmarks/budget.py [--recipe recipes/study-sciq.yaml] [--seeds 5] [--workers 2] [--applications decoupled]

For every seed a stage A, and from it: LoRA with nothing held, and ALoRA with each budget, lambda found by itself. The rise is
that of the mean cross-entropy (nats a token) on the test text, which neither the recording nor the probe has seen, over theta*.
Writes results/studies/budget-RECIPE.json. What was finished in runs/ is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from studies import Case, Study, rise, run_study, spread, write_report

BUDGETS = (0.005, 0.01, 0.03)


def cases_of(seeds: int, budgets: list[float], applications: list[str]) -> list[Case]:
    cases = []
    for seed in range(seeds):
        cases.append(Case("lora_ab", seed, "lora_ab"))
        for application in applications:
            for budget in budgets:
                settings = {"alora.budget": str(budget), "alora.lam": "auto", "alora.application": application}
                cases.append(Case(f"{application}-budget-{budget}", seed, "alora", settings))
    return cases


def summarize(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    free = {entry["seed"]: entry for entry in entries if entry["name"] == "lora_ab"}
    rows = []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        group = [entry for entry in entries if entry["name"] == name]
        row: dict[str, Any] = {
            "name": name,
            "rise": spread(map(rise, group)),
            "accuracy": spread(entry["accuracy"] for entry in group),
        }
        if name != "lora_ab":
            budget = float(group[0]["settings"]["alora.budget"])
            row |= {
                "budget": budget,
                "kept": sum(rise(entry) <= budget for entry in group),
                "kept_on_probe": sum(entry["probe"][-1]["probe_rise"] <= budget for entry in group),
                "accuracy_minus_free": spread(entry["accuracy"] - free[entry["seed"]]["accuracy"] for entry in group),
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq.yaml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--applications", nargs="+", default=["decoupled"], choices=["coupled", "decoupled"])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--test_items", type=int, default=500)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    # One folder for all studies of a recipe: they share stage A and LoRA with nothing held.
    study = Study(options.recipe, {"domain.test_items": str(options.test_items)}, options.runs / options.recipe.stem)
    cases = cases_of(options.seeds, options.budgets, options.applications)
    entries = run_study(study, cases, options.workers)
    budgets, applications = " ".join(map(str, options.budgets)), " ".join(options.applications)
    command = (
        f"python benchmarks/budget.py --recipe {options.recipe} --seeds {options.seeds} --budgets {budgets} "
        f"--applications {applications}"
    )
    report = {"summary": summarize(entries), "runs": entries}
    write_report(options.output_dir / f"budget-{options.recipe.stem}.json", study, command, report)


if __name__ == "__main__":
    main()
