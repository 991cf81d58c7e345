"""How many tokens curvature needs, and what keeping k directions a side does: judged by whole runs that it held.

    python benchmarks/curvature_study.py [--recipe recipes/study-sciq-passages.yaml] [--seeds 0] [--lam 0.01] [--validation]

For every seed, importance in a basis is estimated at the base model on the recipe's general text (labels sampled), from fewer
and more tokens and with fewer and more directions kept, and each holds a training of its own: a fresh adapter on the bare
base, held to the base, layer weights 1, importance divided by the mean of its diagonal, one strength for all. Measured are
general cross-entropy on the held-out text, and the cross-entropy over the choices and the accuracy on the domain's items.
Beside them the base itself and a training that nothing holds. Runs on one thread; what was finished in --work_dir is not done
again. Writes results/studies/curvature-RECIPE.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comparison import validation_overrides
from studies import spread
from torch.utils.data import DataLoader

from alora_trainer import ALoRAConfig, ALoRATrainer
from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.data.domain import collator, tokenize_domain
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.evaluation.runner import evaluate_model
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.general_text import text_to_train
from alora_trainer.experiment.run.models import load_base, with_fresh_adapter
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.train import train
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.weights.adapted import adapted_weights

ALL_TOKENS = 100_000
BATCH = 8


@dataclass(frozen=True)
class Case:
    """One training, by what holds it.

    Attributes:
        kind: of the importance; None for a training that nothing holds.
        tokens: that it is estimated from, at least.
        keep: directions on either side; None for all.
    """

    kind: str | None = None
    tokens: int | None = None
    keep: int | None = None

    @property
    def name(self) -> str:
        if self.kind is None:
            return "nothing"
        return f"{self.kind}, {self.tokens} tokens, {'all' if self.keep is None else self.keep} directions"


CASES = (
    Case(),
    *(Case("kronecker", tokens) for tokens in (ALL_TOKENS, 10_000, 1_000)),
    *(Case("kronecker", ALL_TOKENS, keep) for keep in (16, 64, 4)),
    *(Case(kind, ALL_TOKENS) for kind in ("ekfac", "covariance")),
)


class Seed:
    """The data of one seed, and the base model's own scores."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        run = Run(recipe, folder)
        self.tokenizer = run.tokenizer
        self.data = run.prepare_data()
        self.text = text_to_train(recipe, self.tokenizer, folder)

    def scores(self, model: Any, name: str) -> dict[str, Any]:
        """Of a model, and as `Case.name` calls it."""
        task, samples = get_task(self.recipe.domain.task), self.folder / "samples" / f"{name}.jsonl"
        samples.parent.mkdir(exist_ok=True)
        score = evaluate_model(
            model,
            self.tokenizer,
            general=self.data.general,
            tasks={task.name: self.data.test},
            task_specs=[task],
            config=self.recipe.evaluation,
            seed=self.recipe.seed,
            samples_path=samples,
            base=None if hasattr(model, "disable_adapter") else model,
        )
        return {
            "general_cross_entropy": score.general.token_cross_entropy,
            "kl_to_base": score.general.kl_to_base.nats_per_token if score.general.kl_to_base is not None else None,
            "choice_cross_entropy": choice_cross_entropy(row for row in read_lines(samples) if "task" in row),
            "accuracy": score.tasks[task.name].acc,
            "accuracy_stderr": score.tasks[task.name].acc_stderr,
            "items": score.tasks[task.name].items,
        }

    def estimate(self, model: Any, case: Case) -> tuple[ImportanceMap, dict[str, Any]]:
        """The importance that holds a case's training, and what it took."""
        assert case.kind is not None
        start = time.perf_counter()
        found = estimate_curvature(
            model,
            DataLoader(self.text, batch_size=BATCH, collate_fn=collator(self.tokenizer)),
            case.kind,
            tokens=case.tokens,
            keep=case.keep,
            seed=self.recipe.seed,
        )
        seconds = time.perf_counter() - start
        importance = map_at_present(model, adapted_weights(model), found.importance, ImportanceInfo())
        return importance, {"tokens": found.tokens, "recording_seconds": seconds, "bytes": importance.nbytes}

    def run(self, case: Case, lam: float) -> dict[str, Any]:
        """Estimate, train, score."""
        model = with_fresh_adapter(load_base(self.recipe), self.recipe, protected=True)
        importance, facts = self.estimate(model, case) if case.kind is not None else (None, {})
        domain = self.recipe.domain
        trainer = ALoRATrainer(
            model=model,
            args=self.recipe.training_arguments("tune", self.folder / "trainings" / case.name.replace(", ", "-")),
            importance=importance,
            alora=ALoRAConfig(start="bare", anchor="base", layer_weights="none", lam=lam) if importance else None,
            train_dataset=tokenize_domain(
                get_task(domain.task),
                self.data.train,
                self.tokenizer,
                max_length=domain.max_length,
                loss_on=domain.loss_on,
                too_long=domain.too_long,
            ),
            data_collator=collator(self.tokenizer),
        )
        outcome = train(trainer)
        moved = math.sqrt(sum(float((w.scaling * (w.b @ w.a)).square().sum()) for w in adapted_weights(model)))
        return facts | {"training_seconds": outcome["seconds"], "movement": moved} | self.scores(model, case.name)


def choice_cross_entropy(rows: Iterable[Mapping[str, Any]]) -> float:
    """The mean over items of -log of the right choice's share in the softmax over the choices' log-likelihoods, in nats."""
    losses = []
    for row in rows:
        scores = torch.tensor(row["log_likelihoods"], dtype=torch.float64)
        losses.append(float(scores.logsumexp(0) - scores[row["target"]]))
    return math.fsum(losses) / len(losses)


def remembered(path: Path, work: Any) -> dict[str, Any]:
    """The JSON at `path`, or what `work` makes of it."""
    found = read_json(path)
    if found is None:
        found = work()
        write_json(path, found)
        print(json.dumps({path.stem: found}), flush=True)
    return found


def summarize(entries: list[dict[str, Any]], bases: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        group = [entry for entry in entries if entry["name"] == name]
        rise = spread(e["general_cross_entropy"] - bases[e["seed"]]["general_cross_entropy"] for e in group)
        row = {"name": name, "rise_of_general_cross_entropy": rise}
        for key in ("kl_to_base", "choice_cross_entropy", "accuracy", "movement"):
            row[key] = spread(entry[key] for entry in group)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq-passages.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lam", type=float, default=0.01)
    parser.add_argument("--test_items", type=int, default=250)
    parser.add_argument("--validation", action="store_true", help="the validation text and items instead of the test's")
    parser.add_argument("--cases", nargs="+", type=int, default=None, help="numbers of cases; default: all")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/curvature-study"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    settings = {
        "methods": "lora",
        "tune.save_strategy": "no",
        "evaluation.kl_tokens": "2000",
        "domain.test_items": str(options.test_items),
    }
    if options.validation:
        settings |= validation_overrides(options.recipe.stem.removeprefix("study-"))
    bases, entries = {}, []
    for seed in options.seeds:
        recipe = load_recipe(options.recipe, settings | {"seed": str(seed)})
        folder = options.work_dir / f"{'validation-' if options.validation else ''}seed-{seed}"
        one = Seed(recipe, folder)
        bases[seed] = remembered(folder / "base.json", lambda one=one: one.scores(load_base(one.recipe), "base"))
        for case in CASES if options.cases is None else [CASES[number] for number in options.cases]:
            path = folder / f"{case.name}{'' if case.kind is None else f', lam {options.lam:g}'}.json"
            found = remembered(path, lambda one=one, case=case: one.run(case, options.lam))
            entries.append({"name": case.name, "seed": seed} | {"settings": asdict(case)} | found)
    command = f"python benchmarks/curvature_study.py --seeds {' '.join(map(str, options.seeds))} --lam {options.lam:g}"
    report = {
        "schema": 1,
        "command": command + (" --validation" if options.validation else ""),
        "recipe": options.recipe.name,
        "settings": {key: value for key, value in settings.items() if "${" not in value},
        "lam": options.lam,
        "environment": environment() | {"threads": 1},
        "summary": summarize(entries, bases),
        "base": {str(seed): found for seed, found in bases.items()},
        "runs": entries,
    }
    path = options.output_dir / f"curvature-{options.recipe.stem}{'-validation' if options.validation else ''}.json"
    write_json(path, report)
    for row in report["summary"]:
        print(
            f"{row['name']}: rise {row['rise_of_general_cross_entropy']['mean']:.4f} nats, KL {row['kl_to_base']['mean']:.4f}, "
            f"choices {row['choice_cross_entropy']['mean']:.3f}, accuracy {row['accuracy']['mean']:.3f}"
        )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
