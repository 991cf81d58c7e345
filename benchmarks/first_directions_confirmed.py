"""Is what the boards found of first directions and curvature so on data that no part of it has seen?

    python benchmarks/first_directions_confirmed.py [--tasks sciq-passages openbookqa] [--seeds 10,11,12,13,14,15] [--workers 2]

The boards' rows were thought of on the seeds, general text and some of the items that the boards test them on. Here all is
fixed before anything is trained: plain LoRA, `lora_natural` and `kfac_natural` (lambda 0.0003), each at learning rates 0.001
and 0.002, first directions by 64 items; seeds that nothing was trained with; as test items 500 of the training file, which is
trained on without them; general text from documents that lie behind the first 60,000 bytes of every kind's test file, where
no study has read, and from a kind that no board has. Tasks and lengths of training are the small board's
(recipes/boards/small.yaml).

What is asked: is the area behind the curve (`board.equal_learning.area_behind`, in units of what LoRA learned and forgot at
0.002) larger than LoRA's? Two rows on two tasks, four comparisons, paired over seeds, corrected by Holm's method. The rise
where 90 % of LoRA's learning is reached stands beside. Writes results/studies/first-directions-confirmed.json after each task
and seed, goes on from it, and prints its table; `--quick` makes a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import ROOT, results_of
from first_directions import BOARD, grid, measured, recorded
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.data.sources import load_texts, write_lines
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.board.equal_learning import area_behind, forgotten_at
from alora_trainer.experiment.board.fronts import Point
from alora_trainer.experiment.board.paired import holm, paired_t
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep import Grid, run_sweep

PLAIN, ROWS = "lora", ("lora_natural", "kfac_natural")
RATES = ("0.001", "0.002")
SETTINGS = {"alora.init_items": "64", "alora.lam": "0.0003", "evaluation.kl_tokens": "null"}
FIELD = "question"  # by whose SHA-1 they are chosen
ITEMS, TASKS = 500, 2
# Studies have read so many bytes of each kind's test documents at most, in the order of their SHA-1.
READ = 60000
MORE_KINDS = ("openstax_science",)
SHARE = 0.9


def unseen_text(board: Board, folder: Path) -> dict[str, str]:
    """Write the documents of every kind that no study has read, a file a kind, and name them.

    Raises:
        ValueError: nothing is left of one.
    """
    known: dict[str, str] = json.loads(board.settings["general.test"])
    (first, path), *_ = known.items()
    more = {kind: path.replace(f"/{first}/", f"/{kind}/") for kind in MORE_KINDS}
    recipe = load_recipe(board.tasks[0].recipe, {"general.test": json.dumps(known | more)})
    found = {}
    for kind, source in recipe.general.test.items():
        texts = sorted(
            load_texts(source, base=recipe.base), key=lambda text: hashlib.sha1(text.encode("utf-8")).hexdigest()
        )
        read, left = 0, []
        for text in texts:
            if read >= READ:
                left.append(text)
            read += len(text.encode("utf-8"))
        if not left:
            raise ValueError(f"all documents of {kind} have been read")
        write_lines(folder / f"{kind}.jsonl", ({"text": text} for text in left))
        found[kind] = str((folder / f"{kind}.jsonl").resolve())
    return found


def grids(board: Board, task: str, seed: int, text: Mapping[str, str], quick: bool) -> dict[str, Grid]:
    """What is trained of one task with one seed, a group a method."""
    items = {
        "domain.source": {one.name: one for one in board.tasks}[task]
        .validation["domain.test"]
        .replace("validation", "train"),
        "domain.holdout": json.dumps({"by": FIELD, "items": ITEMS}),
        "domain.train": "null",
        "domain.test": "null",
        "domain.test_items": "null",
        "general.test": json.dumps(dict(text)),
    }
    settings = SETTINGS | items | ({"domain.test_items": "20"} if quick else {})
    over = {"tune.learning_rate": RATES}
    made = {"base": grid(board, task, seed, "base", "base", {}, settings, quick=quick)}
    for method in (PLAIN, *ROWS):
        made[method] = grid(board, task, seed, method, method, over, settings, quick=quick)
    return made


def trained(work: Path, made: Mapping[str, Grid], kinds: Sequence[str]) -> dict[str, Any]:
    """What every training of one task and seed learned and forgot (nats), and how accurate it is."""
    runs = {group: work / str(one.name) / f"seed-{one.seeds[0]}" for group, one in made.items()}
    base = _measured(runs["base"], "base", kinds)
    found: dict[str, Any] = {"base": base}
    for group in (PLAIN, *ROWS):
        for name in results_of(runs[group]):
            if name == "base":
                continue
            one = _measured(runs[group], name, kinds)
            rises = {half: one[half] - base[half] for half in ("recorded", "other", "all")}
            found[name] = {"learned": base["choices"] - one["choices"], "accuracy": one["accuracy"], "rises": rises}
    return found


def _measured(run: Path, name: str, kinds: Sequence[str]) -> dict[str, float]:
    return measured(run, name, kinds) | {"all": results_of(run)[name].general.token_cross_entropy}


def curve(trainings: Mapping[str, Any], method: str) -> list[Point]:
    """(learned, forgotten) of a method's trainings, over all text."""
    own = {name: one for name, one in trainings.items() if name.partition("@")[0] == method}
    return [(one["learned"], one["rises"]["all"]) for one in own.values()]


def figures(trainings: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """By method the area behind its curve, and the rise where 90 % of plain LoRA's learning is reached."""
    top = trainings[max(name for name in trainings if name.partition("@")[0] == PLAIN)]  # at the higher rate
    learned, forgotten = top["learned"], top["rises"]["all"]
    found = {}
    for method in (PLAIN, *ROWS):
        points = curve(trainings, method)
        usable = learned > 0 and forgotten > 0
        area = area_behind([(gain / learned, rise / forgotten) for gain, rise in points]) if usable else None
        found[method] = {"area": area, "rise_at_90": forgotten_at(points, SHARE * learned)}
    return found


def summary(done: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By task and method area and rise over seeds; and the planned comparisons of areas."""
    by = {task: {seed: figures(one) for seed, one in seeds.items()} for task, seeds in done.items()}
    table: dict[str, Any] = {}
    for task, seeds in by.items():
        for method in (PLAIN, *ROWS):
            each = {key: [one[method][key] for one in seeds.values()] for key in ("area", "rise_at_90")}
            table.setdefault(task, {})[method] = {
                key: spread(value for value in values if value is not None) if None not in values else None
                for key, values in each.items()
            }
    pairs = [(task, method) for task in by for method in ROWS]
    tests = [
        paired_t(*({int(seed): one[name]["area"] for seed, one in by[task].items()} for name in (method, PLAIN)))
        for task, method in pairs
    ]
    corrected = holm([None if test is None else test["p"] for test in tests], planned=len(ROWS) * TASKS)
    comparisons = [
        {"task": task, "row": method, "against": PLAIN, "measure": "area", **(test or {}), "p_holm": p}
        for (task, method), test, p in zip(pairs, tests, corrected, strict=True)
    ]
    return {"table": table, "comparisons": comparisons}


def format_table(found: Mapping[str, Any]) -> str:
    """One row a task and method in Markdown: mean and standard deviation over seeds, and the comparison of areas."""
    lines = ["| task | row | seeds | area | rise at 90 % | area beside LoRA's | P | P (Holm) |", "|" + "---|" * 8]
    tested = {(one["task"], one["row"]): one for one in found["comparisons"]}
    for task, methods in found["table"].items():
        for method, one in methods.items():
            area, rise, test = one["area"], one["rise_at_90"], tested.get((task, method), {})
            cells = [task, f"`{method}`", str(area["seeds"]) if area else "", _shown(area, 3), _shown(rise, 4)]
            if test.get("p") is None:
                cells += ["", "", ""]
            else:
                interval = f"{test['difference']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f})"
                cells += [interval, f"{test['p']:.4f}", f"{test['p_holm']:.4f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(one: Mapping[str, Any] | None, digits: int) -> str:
    if one is None:
        return "-"
    deviation = one["standard_deviation"]
    return f"{one['mean']:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def asked(board: Board) -> dict[str, Any]:
    """What the figures depend on, beside seed and task."""
    files = [BOARD, *(Path(task.recipe) for task in board.tasks)]
    return {
        "rows": [PLAIN, *ROWS],
        "rates": RATES,
        "settings": SETTINGS,
        "items": ITEMS,
        "read": READ,
        "more_kinds": MORE_KINDS,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions-confirmed"))
    board = read_board(BOARD)
    known = [task.name for task in board.tasks]
    parser.add_argument("--tasks", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", default="10,11,12,13,14,15")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    name = "first-directions-confirmed.json"
    path = (options.work_dir if options.quick else ROOT / "results" / "studies") / name
    here, wanted, kinds = environment() | {"threads": 1}, asked(board), recorded(board)
    done: dict[str, Any] = {} if options.quick else taken_over(path, wanted, here).get("trainings", {})
    text = unseen_text(board, options.work_dir / "text")
    for seed in options.seeds.split(",")[: 1 if options.quick else None]:
        for task in options.tasks:
            if seed in done.get(task, {}):
                continue
            made = grids(board, task, int(seed), text, options.quick)
            run_sweep(list(made.values()), output_dir=options.work_dir, workers=options.workers)
            done[task] = done.get(task, {}) | {seed: trained(options.work_dir, made, kinds)}
            report = {**report_head(here), "asked": wanted, "recorded": kinds, **summary(done), "trainings": done}
            write_json(path, report)
    print(format_table(summary(done)))
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
