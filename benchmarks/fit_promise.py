"""Whether `alora fit` keeps what it promises, on text that no part of it saw: data sets x budgets x seeds.

    python benchmarks/fit_promise.py [--seeds 3] [--budgets 0.005 0.01 0.02] [--tasks sciq openbookqa chat] [--minutes N]

Every cell is a fit of its own on base-5m: general text of three kinds is given, text of three others is told apart.
Afterwards the adapter is scored on the kinds' test files, which were given to no part: the true rise there, of the kinds that
were given (which the promise is about) and of the others. The chat file is made of the demo's questions on elements; of the
other tasks --items items are learned. The map of a seed and task is measured once, and the base model scored once. A cell
that is finished in --runs is not done again, and one that was stopped goes on; after --minutes none is begun. Runs on one
thread. On two cores start it twice, with the same --runs and other --tasks and --output, and then once with all of them and
--minutes 0, which brings together what is finished. Writes results/studies/fit-promise.json, and takes over the cells that
are in it, if they were made with the same settings and libraries; --quick is one short cell, on the demo's model and data.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from studies import report_head, spread, taken_over
from transformers import AutoTokenizer

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.data.sources import load_texts, read_lines, write_lines
from alora_trainer.experiment import demo
from alora_trainer.experiment.fit.guarantee import encoded_passages
from alora_trainer.experiment.fit.whole_fit import FitResult, fit
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.models import load_base, with_saved_adapter
from alora_trainer.penalty.strength.probe import Probe

GIVEN = ("books", "openstax_social", "wikipedia_boolq")
OTHERS = ("code_python", "docs_python", "docs_rust_git")
_BEFORE: dict[str, list[float]] = {}  # the base model's losses, by test file
_ASKED = ("max_steps", "items", "test_items", "general_tokens", "block_length")  # what all cells depend on
_LENGTHS = {"sciq": 192}  # tokens of an item, as in the recipes: the beginning of a longer passage is cut off
_PASSAGES = {True: 150, False: 40}  # of each kind that was given, and of each other one, of its test file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--tasks", nargs="+", default=["sciq", "openbookqa", "chat"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.005, 0.01, 0.02])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max_steps", type=int, default=120)
    parser.add_argument("--items", type=int, default=2000, help="to learn, of a task")
    parser.add_argument("--test_items", type=int, default=300)
    parser.add_argument("--general_tokens", type=int, default=100_000)
    parser.add_argument("--block_length", type=int, default=256, help="tokens of a passage of general text, at most")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after so many")
    parser.add_argument("--runs", type=Path, default=Path("runs/fit-promise"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/fit-promise.json"))
    parser.add_argument("--quick", action="store_true", help="one short cell on the demo's model and data")
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    cells = [_quick(options.runs)] if options.quick else list(cells_of(options))
    asked = {key: getattr(options, key) for key in _ASKED}
    here = environment() | {"threads": 1}
    report = {} if options.quick else taken_over(options.output, asked, here)
    earlier = {cell["name"]: cell for cell in report.get("cells", [])}
    done, start = [], time.monotonic()
    for cell in cells:
        if cell["name"] in earlier:
            done.append(earlier[cell["name"]])
        elif time.monotonic() - start < 60 * options.minutes or (options.runs / cell["name"] / "cell.json").exists():
            done.append(fitted(cell, options.runs))
    planned = {cell["name"] for cell in cells} | set(earlier)
    # Of other tasks, seeds and budgets than are asked for now: they are not thrown away.
    done += [cell for name, cell in earlier.items() if name not in {one["name"] for one in done}]
    report = {
        **report_head(here),
        "asked": asked,
        "fits": {"planned": len(planned), "done": len(done)},
        "summary": _summary(done),
    }
    if not options.quick:
        write_json(options.output, report | {"cells": done})
    print(format_table(report["summary"]))


def cells_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is fitted, least seed first: data, general text and settings of each."""
    general, tasks = options.shared / "data" / "general", options.shared / "data" / "tasks"
    for seed in range(options.seeds):
        for task in options.tasks:
            for budget in options.budgets:
                yield {
                    "name": f"{task}-{budget}-{seed}",
                    "map": f"{task}-{options.budgets[0]}-{seed}",
                    "task": task,
                    "seed": seed,
                    "budget": budget,
                    "model": str(options.shared / "models" / "base-5m"),
                    "data": _chat(options.runs)
                    if task == "chat"
                    else _some(tasks / task / "train.jsonl.gz", task, options),
                    "test": [] if task == "chat" else [str(tasks / task / "test.jsonl.gz")],
                    "given": {kind: str(general / kind / "train.jsonl.gz") for kind in GIVEN},
                    "others": {kind: str(general / kind / "train.jsonl.gz") for kind in OTHERS},
                    "tested": {kind: str(general / kind / "test.jsonl.gz") for kind in (*GIVEN, *OTHERS)},
                    "settings": {
                        "max_steps": options.max_steps,
                        "general_tokens": options.general_tokens,
                        "overrides": {
                            "domain.test_items": str(options.test_items),
                            "general.block_length": str(options.block_length),
                        }
                        | ({"domain.max_length": str(_LENGTHS[task])} if task in _LENGTHS else {}),
                    },
                }


def _quick(runs: Path) -> dict[str, Any]:
    files = runs / "demo-data"
    demo.prepare(files)
    return {
        "name": "quick",
        "map": "quick",
        "task": "elements",
        "seed": 0,
        "budget": 0.01,
        "model": str(demo.MODEL),
        "data": [str(files / "elements_train.jsonl")],
        "test": [],
        "given": {"docstrings": str(files / "docstrings_train.jsonl")},
        "others": {"code": str(files / "code_train.jsonl")},
        "tested": {kind: str(files / f"{kind}_test.jsonl") for kind in ("docstrings", "code")},
        "settings": {"max_steps": 30, "general_tokens": 60_000, "overrides": {"domain.test_items": "50"}},
    }


def _some(path: Path, task: str, options: argparse.Namespace) -> list[str]:
    """A file with the first items of a task, under its name."""
    own = options.runs / "items" / f"{task}.jsonl"
    if not own.exists():
        write_lines(own, itertools.islice(read_lines(path), options.items))
    return [str(own)]


def _chat(runs: Path) -> list[str]:
    """A chat file of our own: the demo's questions on elements, asked and answered in several ways."""
    path = runs / "chat.jsonl"
    if not path.exists():
        files = runs / "demo-data"
        demo.prepare(files)
        asked = ("{}", "Can you tell me: {}", "A question on chemistry. {}", "Please answer briefly. {}")
        told = ("{}", "It is {}.", "The answer is {}.", "That would be {}.")
        rows = []
        for number, row in enumerate(read_lines(files / "elements_train.jsonl")):
            answer = row["choices"][row["answer"]] if isinstance(row["answer"], int) else row["answer"]
            user, assistant = asked[number % 4].format(row["question"]), told[number // 4 % 4].format(answer)
            rows.append({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]})
        write_lines(path, rows)
    return [str(path)]


def fitted(cell: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """A cell's fit in its folder of `runs`, made unless it is finished there, and its figures."""
    folder = runs / cell["name"]
    finished = read_json(folder / "cell.json")
    if finished is not None:
        return dict(finished)
    first = runs / cell["map"] / "run"
    measured = first / "curvature_kronecker" / "map"
    if cell["name"] != cell["map"] and not (folder / "run").exists() and (first / "base" / "result.json").is_file():
        shutil.copytree(first / "base", folder / "run" / "base")
    result = fit(
        cell["model"],
        cell["data"],
        test=cell["test"],
        general=list(cell["given"].values()),
        unseen=list(cell["others"].values()),
        max_general_rise=cell["budget"],
        seed=cell["seed"],
        importance=str(measured) if cell["name"] != cell["map"] and measured.is_dir() else None,
        output_dir=folder,
        **cell["settings"],
    )
    found = {key: cell[key] for key in ("name", "task", "seed", "budget")} | _figures(cell, result)
    write_json(folder / "cell.json", found)
    return found


def _figures(cell: Mapping[str, Any], result: FitResult) -> dict[str, Any]:
    methods = result.results.methods
    shipped, base = methods["adapter"], methods["base"]
    (before,), (after,) = base.tasks.values(), shipped.tasks.values()
    rises = _rises(cell, result)
    given = [rises[kind] for kind in cell["given"]]
    return {
        "kept": result.kept,
        "scale": result.promise["scale"],
        "validation": result.promise["validation"],
        "promised_rise": result.promise["rise"]["rise"],
        "promised_limit": result.promise["rise"]["upper"],
        "test_rise_given": sum(one["rise"] for one in given) / len(given),
        "test_rise_others": sum(rises[kind]["rise"] for kind in cell["others"]) / len(cell["others"]),
        "test_kinds": rises,
        "accuracy_base": before.acc,
        "accuracy": after.acc,
        "answer_loss_base": before.answer_loss,
        "answer_loss": after.answer_loss,
        "choices_base": before.choice_cross_entropy,
        "choices": after.choice_cross_entropy,
        "items": after.items,
    }


def _rises(cell: Mapping[str, Any], result: FitResult) -> dict[str, Any]:
    """By kind of text, on its test file."""
    recipe = load_recipe(result.folder / "recipe.yaml")
    model: Any = with_saved_adapter(load_base(recipe), result.adapter, trainable=False)
    tokenizer, accelerator = AutoTokenizer.from_pretrained(recipe.model_source), Accelerator()
    found = {}
    for kind, path in cell["tested"].items():
        texts = load_texts(path)[: _PASSAGES[kind in cell["given"]]]
        rows = encoded_passages({kind: texts}, tokenizer, length=recipe.general.block_length, seed=0)
        probe = Probe([row for _, row in rows], 16)
        if path not in _BEFORE:
            with model.disable_adapter():
                _BEFORE[path] = probe.evaluate(model, accelerator)
        before = _BEFORE[path]
        bound = probe.bound(before, probe.evaluate(model, accelerator))
        found[kind] = {"rise": bound.rise, "error": bound.error, "passages": bound.sequences}
    return found


def _learned(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of questions with choices, accuracy gained and the fall of the cross-entropy over choices; of free answers, the nats a
    token that they have become likelier by."""
    if own[0]["answer_loss"] is not None:
        return {"answer_loss_fell": spread(one["answer_loss_base"] - one["answer_loss"] for one in own)}
    return {
        "accuracy_gained": spread(one["accuracy"] - one["accuracy_base"] for one in own),
        "choices_fell": spread(one["choices_base"] - one["choices"] for one in own),
    }


def _summary(done: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for task, budget in dict.fromkeys((one["task"], one["budget"]) for one in done):
        own = [one for one in done if (one["task"], one["budget"]) == (task, budget)]
        promised = [one for one in own if one["kept"]]
        rows.append(
            {
                "task": task,
                "budget": budget,
                "fits": len(own),
                "promised": len(promised),
                "held_on_test": sum(one["test_rise_given"] <= budget for one in promised),
                "rise_on_test": spread(one["test_rise_given"] for one in own),
                "rise_on_other_kinds": spread(one["test_rise_others"] for one in own),
                **_learned(own),
                "scale": spread(one["scale"] for one in own),
            }
        )
    return rows


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown, a line a task and budget; means over seeds."""
    head = (
        "task",
        "budget (%)",
        "fits",
        "promised",
        "held on test text",
        "rise there (%)",
        "on other kinds (%)",
        "learned",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in summary:
        rises = (f"{100 * row[key]['mean']:.2f}" for key in ("rise_on_test", "rise_on_other_kinds"))
        if "accuracy_gained" in row:
            nats = f"{row['choices_fell']['mean']:.3f} nats over choices"
            learned = f"{nats}, accuracy {100 * row['accuracy_gained']['mean']:+.1f} points"
        else:
            learned = f"answers {row['answer_loss_fell']['mean']:.3f} nats a token likelier"
        told = (
            row["task"],
            f"{100 * row['budget']:g}",
            row["fits"],
            row["promised"],
            row["held_on_test"],
            *rises,
            learned,
        )
        lines.append("| " + " | ".join(map(str, told)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
