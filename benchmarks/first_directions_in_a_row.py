"""Where a long training, or a second domain, should start: in directions chosen anew, or where the first ones were.

    python benchmarks/first_directions_in_a_row.py [--parts anew domains] [--seeds 0,1,2]

Beside benchmarks/first_directions.py, with its settings. `anew`: OpenBookQA in four legs of as many steps each, every leg on a
quarter of the items of its own. After a leg the adapter is merged into the weights, and the next leg begins with a fresh one;
PEFT's own start is beside the natural one, whose curvature is measured on the merged model. Four legs are as many steps as the
longer trainings of first_directions_questions.py; a leg's rate is constant, the mean of that quarter of their linear decay.
`domains`: SciQ with its passages, then OpenBookQA, in batches of four, one adapter learning both (`alora run` of a recipe with
`domains`): the first directions are chosen for SciQ. After each the model is measured on both and on general text, recorded and
other kinds apart.

One part and one seed are written when they are done, and what the report has is not done again, if it was made with the same
settings and libraries. Writes results/studies/first-directions-in-a-row.json and prints its tables; `--quick` makes few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from first_directions import BOARD, COMMON, QUICK, asked, grid, halves, measured, recorded
from peft import PeftModel
from studies import report_head, spread, taken_over
from transformers import AutoModelForCausalLM, AutoTokenizer

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.basics.scores import Score
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep import run_sweep
from alora_trainer.experiment.run.whole_recipe import run_recipe

LEGS = 4
TASK, DOMAINS = "openbookqa", ("sciq-passages", "openbookqa")
STARTS = {"default": "lora", "natural": "lora_natural"}
PARTS = ("anew", "domains")
# Of the longer trainings' rate, by leg.
SHARES = tuple(1 - (leg - 0.5) / LEGS for leg in range(1, LEGS + 1))
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora_natural": {},
    "lora_contrastive_frozen": {},
    "kfac": {"alora": {"lam": 0.001}},
    "kfac_natural": {"alora": {"lam": 0.001}},
}


def anew(board: Board, seed: int, work: Path, quick: bool) -> dict[str, dict[str, float]]:
    """By start and leg, e.g. "natural 2", what was learned and forgotten since the base model."""
    kinds, base = recorded(board), grid(board, TASK, seed, "anew-base", "base", {}, quick=quick)
    run_sweep([base], output_dir=work / "base")
    begun = measured(work / "base" / str(base.name) / f"seed-{seed}", "base", kinds)
    found = {}
    for start, method in STARTS.items():
        before: dict[str, str] = {}
        for leg in range(1, LEGS + 1):
            settings = before | _leg(board, seed, leg, work)
            one = grid(board, TASK, seed, f"anew-{start}-{leg}", method, {}, settings, quick=quick)
            folder = work / f"{start}-{seed}-{leg}"
            run_sweep([one], output_dir=folder)
            run = folder / str(one.name) / f"seed-{seed}"
            found[f"{start} {leg}"] = _since(measured(run, method, kinds), begun)
            merged = run / "merged"
            if not (merged / "config.json").exists():
                _merge(load_recipe(one.recipe, one.overrides).model.path, run / method / "adapter", merged)
            before = {"model": json.dumps({"path": str(merged.resolve())})}
    return found


def _leg(board: Board, seed: int, leg: int, work: Path) -> dict[str, str]:
    """Its rate, and its items, which no other leg has: of one file every leg would see the same ones, in the same order."""
    recipe = load_recipe({task.name: task for task in board.tasks}[TASK].recipe, {})
    items = work / f"items-{seed}" / f"{leg}.jsonl"
    if not items.exists():
        whole = list(read_lines(Path(str(recipe.domain.train))))
        random.Random(seed).shuffle(whole)
        write_lines(items, whole[leg - 1 :: LEGS])
    return {
        "tune.learning_rate": str(recipe.tune["learning_rate"] * SHARES[leg - 1]),
        "tune.lr_scheduler_type": "constant",
        "domain.train": str(items.resolve()),
    }


def _since(after: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    rises = {f"rise_{half}": after[half] - base[half] for half in ("recorded", "other")}
    return {**rises, "choices": after["choices"], "accuracy": after["accuracy"]}


def _merge(base: str, adapter: Path, folder: Path) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    model.merge_and_unload().save_pretrained(folder)


def domains(board: Board, seed: int, work: Path, quick: bool) -> dict[str, dict[str, float]]:
    """By method and number of domains learned, e.g. "kfac 2", general cross-entropy's rise and each domain's figures."""
    tasks = {task.name: task for task in board.tasks}
    settings = {**board.settings, **tasks[DOMAINS[0]].settings, **COMMON, **(QUICK if quick else {})}
    items = settings.pop("domain.test_items")
    sections = []
    for name in DOMAINS:
        own = load_recipe(tasks[name].recipe, tasks[name].settings).domain
        sections.append(
            {
                "task": own.task,
                "train": own.train,
                "test": own.test,
                "test_items": int(items),
                "max_length": own.max_length,
            }
        )
    (model,) = board.models.values()
    options = {f"method_options.{name}": json.dumps(one) for name, one in METHODS.items() if one}
    methods = {"methods": f"[{', '.join(METHODS)}]", "model": model, "seed": str(seed)}
    overrides = {**settings, **options, **methods, "domains": json.dumps(sections), "domain": "null"}
    folder = work / f"domains-{seed}"
    run_recipe(load_recipe(tasks[DOMAINS[0]].recipe, overrides), output_dir=folder)
    kinds = recorded(board)
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        steps = [_measured(folder / method / place, kinds) for place in ("0-start", "1-sciq", "2-openbookqa")]
        for number, step in enumerate(steps):
            rises = {f"rise_{half}": step[half] - steps[0][half] for half in ("recorded", "other")}
            found[f"{method} {number}"] = {
                **rises,
                **{key: step[key] for key in step if key not in ("recorded", "other")},
            }
    return found


def _measured(folder: Path, kinds: Sequence[str]) -> dict[str, float]:
    outcome = {key: value for key, value in (read_json(folder / "result.json") or {}).items() if "settings" not in key}
    score = Score.from_json(outcome, str(folder))
    found = halves(score.general.subsets or {}, kinds)
    for task, one in score.tasks.items():
        assert one.choice_cross_entropy is not None and one.acc is not None
        found |= {f"choices_{task}": one.choice_cross_entropy, f"accuracy_{task}": one.acc}
    return found


def summary(seeds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One entry a start and leg, or a method and number of domains, over the seeds that are done."""
    (first, *_) = seeds.values()
    return [
        {"name": name} | {key: spread(seed[name][key] for seed in seeds.values()) for key in figures}
        for name, figures in first.items()
    ]


def format_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown: nats, mean and standard deviation over seeds; accuracies are in the JSON alone."""
    keys = [key for key in entries[0] if key != "name" and not key.startswith("accuracy")]
    said = {"rise_recorded": "rise, recorded kinds", "rise_other": "rise, other kinds", "choices": "over choices"}
    named = [said.get(key, key.replace("choices_", "over choices of ")) for key in keys]
    lines = [f"| after | seeds | {' | '.join(named)} |", "|" + "---|" * (len(keys) + 2)]
    for entry in entries:
        cells = [entry["name"], str(entry[keys[0]]["seeds"])]
        for key in keys:
            mean, deviation = entry[key]["mean"], entry[key]["standard_deviation"]
            cells.append(f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions-in-a-row"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/first-directions-in-a-row.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    board = read_board(BOARD)
    path = options.work_dir / "first-directions-in-a-row.json" if options.quick else options.output
    here = environment() | {"threads": 1}
    wanted = asked(board) | {"legs": SHARES, "starts_of_legs": STARTS, "methods": METHODS, "domains": DOMAINS}
    done: dict[str, Any] = {} if options.quick else taken_over(path, wanted, here).get("trainings", {})

    def write() -> None:
        report = {
            **report_head(here),
            "asked": wanted,
            "summary": {name: summary(seeds) for name, seeds in done.items()},
            "trainings": done,
        }
        write_json(path, report)

    for seed in options.seeds.split(",")[: 1 if options.quick else None]:
        for part in options.parts:
            if seed in done.get(part, {}):
                continue
            if part == "domains":
                found = domains(board, int(seed), options.work_dir, options.quick)
            else:
                found = anew(board, int(seed), options.work_dir, options.quick)
            done[part] = done.get(part, {}) | {seed: found}
            write()
    write()
    for name, seeds in done.items():
        print(f"{name}\n{format_table(summary(seeds))}\n")
    print(f"{(time.monotonic() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
