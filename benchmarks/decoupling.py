"""The penalty in the loss against the decoupled one, on real data: strengths x seeds, general text against the task.

    python benchmarks/decoupling.py [--recipe recipes/study-sciq.yaml] [--seeds 5] [--workers 2]

For every seed a stage A, and from it: LoRA with nothing held, and ALoRA with either application at several lambdas. The two
scales of lambda are not the same (AdamW rescales the gradient of the one), so that what is compared is the curve: accuracy at
like rise of general cross-entropy, interpolated between neighbouring lambdas. Writes
results/studies/decoupling-RECIPE.json. What was finished in runs/ is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies import Case, Study, rise, run_study, spread, write_report

LAMBDAS = {"coupled": (0.003, 0.03, 0.3), "decoupled": (0.3, 3.0, 30.0)}
# Rises of general cross-entropy at which the accuracies are compared.
RISES = (0.005, 0.01, 0.02)


def cases_of(seeds: int, lambdas: dict[str, Sequence[float]]) -> list[Case]:
    cases = []
    for seed in range(seeds):
        cases.append(Case("lora_ab", seed, "lora_ab"))
        for application, values in lambdas.items():
            for lam in values:
                settings = {"alora.lam": str(lam), "alora.application": application}
                cases.append(Case(f"{application}-lam-{lam}", seed, "alora", settings))
    return cases


def summarize(entries: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        group = [entry for entry in entries if entry["name"] == name]
        rows.append(
            {
                "name": name,
                "rise": spread(map(rise, group)),
                "perplexity": spread(entry["perplexity"] for entry in group),
                "accuracy": spread(entry["accuracy"] for entry in group),
                "seconds": spread(entry["seconds"] for entry in group),
            }
        )
    return {"cases": rows, "at_like_rise": [at_rise(entries, value) for value in RISES]}


def at_rise(entries: list[dict[str, Any]], value: float) -> dict[str, Any]:
    """Both applications' accuracy at one rise, seed by seed, and their difference where both curves reach it."""
    found: dict[str, dict[int, float]] = {"coupled": {}, "decoupled": {}}
    for application, accuracies in found.items():
        for seed in sorted({entry["seed"] for entry in entries}):
            own = [e for e in entries if e["seed"] == seed and e["settings"].get("alora.application") == application]
            accuracy = interpolate([(rise(e), e["accuracy"]) for e in own], value)
            if accuracy is not None:
                accuracies[seed] = accuracy
    both = sorted(found["coupled"].keys() & found["decoupled"].keys())
    return {
        "rise": value,
        **{name: spread(values.values()) if values else None for name, values in found.items()},
        "decoupled_minus_coupled": (
            spread(found["decoupled"][seed] - found["coupled"][seed] for seed in both) if both else None
        ),
    }


def interpolate(points: list[tuple[float, float]], at: float) -> float | None:
    """Linear between the two neighbouring points; None outside of them."""
    ordered = sorted(points)
    for (x0, y0), (x1, y1) in zip(ordered, ordered[1:], strict=False):
        if x0 <= at <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq.yaml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--coupled", type=float, nargs="*", default=list(LAMBDAS["coupled"]), help="lambdas")
    parser.add_argument("--decoupled", type=float, nargs="*", default=list(LAMBDAS["decoupled"]), help="lambdas")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--test_items", type=int, default=500)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    # One folder for all studies of a recipe: they share stage A and LoRA with nothing held.
    study = Study(options.recipe, {"domain.test_items": str(options.test_items)}, options.runs / options.recipe.stem)
    cases = cases_of(options.seeds, {"coupled": options.coupled, "decoupled": options.decoupled})
    entries = run_study(study, cases, options.workers)
    command = f"python benchmarks/decoupling.py --recipe {options.recipe} --seeds {options.seeds}"
    write_report(
        options.output_dir / f"decoupling-{options.recipe.stem}.json",
        study,
        command,
        {"summary": summarize(entries), "runs": entries},
    )


if __name__ == "__main__":
    main()
