"""Does `alora fit` learn more where short trainings choose its rate? Probed fits beside a fixed rate, and beside the best one.

    python benchmarks/fit_probing.py [--tasks openbookqa sciq] [--seeds 0 1 2] [--minutes N] [--runs DIR]

Each cell is a fit of benchmarks/fit_promise.py at one budget, in several ways (WAYS): at the rate that goes by the model's size
(``fixed``), at the other rates that short trainings try (what choosing could win at best), with short trainings that take a
quarter of the training's steps or as many as it has, and at the fixed rate for as many steps as the training and the short ones
have together, which is what their time could have bought. All ways of a seed are held by one map. A cell that is finished in
--runs is not done again; after --minutes none is begun. Runs on one thread; on two cores start it twice, with the same --runs
and other --tasks and --output, and then once with all of them and --minutes 0. Writes results/studies/fit-probing.json, and
takes over what is in it, if it was made with the same settings and libraries.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from fit_promise import cells_of, fitted
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.fit.probing import FACTORS, PROBES
from alora_trainer.experiment.report.results import environment

STEPS, RATE = 120, 2e-3  # of the whole training, and the rate that goes by this model's size
_RATES = {f"rate_{factor:g}": {"overrides": {"tune.learning_rate": f"{RATE * factor:g}"}} for factor in FACTORS}
WAYS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "probed_25": {"probing": 0.25},
    "probed_100": {"probing": 1.0},
    **{name: settings for name, settings in _RATES.items() if name != "rate_1"},
    "longer_25": {"max_steps": STEPS * 5 // 4},
    "longer_100": {"max_steps": STEPS * 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--tasks", nargs="+", choices=["openbookqa", "sciq"], default=["openbookqa", "sciq"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after so many")
    parser.add_argument("--runs", type=Path, default=Path("runs/fit-probing"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/fit-probing.json"))
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    asked: dict[str, Any] = {
        "max_steps": STEPS,
        "items": 2000,
        "test_items": 300,
        "general_tokens": 100_000,
        "block_length": 256,
    }
    asked |= {"budgets": [0.01], "ways": WAYS}
    here = environment() | {"threads": 1}
    done = {cell["name"]: cell for cell in taken_over(options.output, asked, here).get("cells", [])}
    start = time.monotonic()
    for cell in _cells(options, asked):
        there = (options.runs / cell["name"] / "way.json").exists()
        if cell["name"] not in done and (there or time.monotonic() - start < 60 * options.minutes):
            done[cell["name"]] = _made(cell, options.runs)
    report: dict[str, Any] = {
        **report_head(here),
        "asked": asked,
        "summary": _summary(list(done.values())),
        "cells": sorted(done.values(), key=lambda cell: cell["name"]),
    }
    write_json(options.output, report)
    print(format_table(report["summary"]))


def _cells(options: argparse.Namespace, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for seed in options.seeds:
        plain = argparse.Namespace(**vars(options) | dict(asked) | {"seeds": seed + 1})
        for cell in cells_of(plain):
            if cell["seed"] == seed:
                yield from (_in_a_way(cell, way) for way in options.ways)


def _in_a_way(cell: Mapping[str, Any], way: str) -> dict[str, Any]:
    one = f"{cell['task']}-{cell['seed']}"
    overrides = {**cell["settings"]["overrides"], **WAYS[way].get("overrides", {})}
    settings = {**cell["settings"], **WAYS[way], "overrides": overrides}
    return {**cell, "name": f"{one}-{way}", "map": f"{one}-fixed", "way": way, "settings": settings}


def _made(cell: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    folder = runs / cell["name"]
    finished = read_json(folder / "way.json")
    if finished is not None:
        return dict(finished)
    begun = folder.exists()
    start = time.process_time()
    figures = fitted(cell, runs)
    rate = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["tune"]["learning_rate"]
    assert cell["way"] != "fixed" or rate == RATE, f"the rate of this model is {rate}"
    found = {"way": cell["way"], **figures}
    found["seconds"] = (
        None if begun else time.process_time() - start
    )  # of the processor; one that went on has only its end
    choice = read_json(folder / PROBES / "choice" / "choice.json")
    if choice is not None:
        found |= {"chosen": choice["best"], "tried": choice["tried"]}
    write_json(folder / "way.json", found)
    return found


def _summary(done: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for task in dict.fromkeys(one["task"] for one in done):
        fixed = {one["seed"]: one for one in done if one["task"] == task and one["way"] == "fixed"}
        for way in WAYS:
            own = [one for one in done if (one["task"], one["way"]) == (task, way) and one["seed"] in fixed]
            if own:
                rows.append({"task": task, "way": way, **_beside(own, fixed)})
    return rows


def _beside(own: Sequence[Mapping[str, Any]], fixed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What a way learned, and how much more than the fixed rate did with the same seed."""
    learned = {one["seed"]: one["choices_base"] - one["choices"] for one in own}
    usual = {seed: one["choices_base"] - one["choices"] for seed, one in fixed.items()}
    row: dict[str, Any] = {
        "kept": sum(one["kept"] for one in own),
        "held_on_test": sum(one["test_rise_given"] <= one["budget"] for one in own if one["kept"]),
        "choices_fell": spread(learned.values()),
        "more_than_fixed": spread(learned[seed] - usual[seed] for seed in learned),
        "accuracy_gained": spread(one["accuracy"] - one["accuracy_base"] for one in own),
        "rise_on_test": spread(one["test_rise_given"] for one in own),
    }
    if all(one["seconds"] for one in own):
        row["seconds"] = spread(one["seconds"] for one in own)
    if all("chosen" in one for one in own):
        row["chosen_rates"] = {str(one["seed"]): one["chosen"]["rate"] for one in own}
    return row


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown, a line a task and way; means over seeds, the spread over seeds behind what was more."""
    head = ("task", "way", "seeds", "rates chosen", "nats over choices", "more than fixed", "accuracy", "rise (%)")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in summary:
        more, rates = row["more_than_fixed"], row.get("chosen_rates", {})
        error = (
            ""
            if more["standard_deviation"] is None or row["way"] == "fixed"
            else f" ({more['standard_deviation']:.3f})"
        )
        told = (
            row["task"],
            row["way"],
            more["seeds"],
            ", ".join(f"{rate:g}" for rate in rates.values()),
            f"{row['choices_fell']['mean']:.3f}",
            "" if row["way"] == "fixed" else f"{more['mean']:+.3f}{error}",
            f"{100 * row['accuracy_gained']['mean']:+.1f}",
            f"{100 * row['rise_on_test']['mean']:.2f}",
        )
        lines.append("| " + " | ".join(map(str, told)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
