"""How well a curvature map predicts the rise of general loss, and whether a budget can be steered by it: on real data.

    python benchmarks/predicted_rise.py [--recipe recipes/study-sciq-passages.yaml] [--seeds 3] [--budget 0.01] [--set K=V ...]

For every seed one Kronecker map of the base model, from general text; then fresh adapters on the base, held to it by that map:

- one with nothing held, and what the map predicts for it beside what it does to test text: for every sixth weight alone (as
  trained, and brought to a predicted rise of a thousandth of a nat) and for the whole adapter, scaled down in steps;
- one for each way of keeping the budget: lambda steered by probes alone, or by the prediction between them, with a probe every
  10 steps and every 40.

Test text is general text that neither the map nor a probe has seen; KL is of the base's predictions, in nats a token; the
domain's loss is that of the right answers to test questions. Writes results/studies/predicted-rise-RECIPE.json. What was
finished in runs/ is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from studies import spread

from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.provenance import base_facts, map_at_present
from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.data.domain import collator, prepare_domain, tokenize_domain
from alora_trainer.data.general import pack_general_text
from alora_trainer.data.probe import probe_text
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.models import load_base, load_tokenizer, with_fresh_adapter
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.weights.adapted import adapted_weights

SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)
SMALL = 1e-3  # nats a token that a small movement of one weight is predicted to cost
# How lambda is steered, and how many steps there are between two probes.
WAYS = (("prediction", 40), ("probes", 10), ("probes", 40), ("prediction", 10))
TEST_TOKENS, TEST_ITEMS, BATCH = 12_288, 300, 32
EVERY = 6  # of the weights, so many are one that is moved alone


class Setting:
    """Model, map and texts of one seed."""

    def __init__(self, recipe: Path, settings: dict[str, str], seed: int, tokens: int, folder: Path) -> None:
        self.seed, self.tokens, self.folder = seed, tokens, folder
        self.recipe = load_recipe(recipe, settings | {"seed": str(seed)})
        self.tokenizer = load_tokenizer(self.recipe)
        general, domain, base = self.recipe.general, self.recipe.domain, self.recipe.base
        common: dict[str, Any] = {"block_length": general.block_length, "base": base}
        self.read = pack_general_text(general.train, self.tokenizer, max_tokens=tokens, seed=seed, **common)
        test = pack_general_text(general.test, self.tokenizer, max_tokens=TEST_TOKENS, seed=0, excerpt=128, **common)
        self.test = torch.tensor(test["input_ids"])
        self.probe = probe_text(general, self.tokenizer, seed=seed, base=base)
        files = prepare_domain(domain, base=base, folder=folder / "domain", seed=seed)
        made = {"max_length": domain.max_length, "loss_on": domain.loss_on, "too_long": domain.too_long}
        task = get_task(domain.task)
        self.train = tokenize_domain(task, files.train, self.tokenizer, **made)
        questions = tokenize_domain(task, files.test, self.tokenizer, **made)
        self.questions = questions.select(range(min(TEST_ITEMS, len(questions))))

    def model(self) -> Any:
        """The base with a fresh adapter, always the same one."""
        return with_fresh_adapter(load_base(self.recipe).float(), self.recipe)

    @cached_property
    def importance(self) -> ImportanceMap:
        """The base's curvature, and how long it took (`seconds`)."""
        model = self.model()
        start = time.perf_counter()
        batches = [{"input_ids": ids} for ids in torch.tensor(self.read["input_ids"]).split(8)]
        found = estimate_curvature(model, batches, "kronecker", seed=self.seed)
        facts = {"estimator": "kronecker", "tokens": found.tokens, "cost": {"seconds": time.perf_counter() - start}}
        info = ImportanceInfo(**base_facts(model, "default"), **facts)
        return map_at_present(model, adapted_weights(model), found.importance, info)

    @cached_property
    def base_predictions(self) -> list[torch.Tensor]:
        return list(self._predictions(self.model()))

    def _predictions(self, model: Any) -> Iterator[torch.Tensor]:
        """The log-probabilities of every next token of the test text, batch by batch."""
        model.eval()
        with torch.no_grad():
            for ids in self.test.split(BATCH):
                yield torch.log_softmax(model(input_ids=ids).logits[:, :-1].float(), dim=-1)

    def measure(self, model: Any) -> dict[str, float]:
        """KL from the base's predictions and the rise of cross-entropy on test text, in nats a token."""
        kl = rise = 0.0
        for ids, base, own in zip(self.test.split(BATCH), self.base_predictions, self._predictions(model), strict=True):
            kl += float((base.exp() * (base - own)).sum(dtype=torch.float64))
            rise += float((base - own).gather(-1, ids[:, 1:, None]).sum(dtype=torch.float64))
        count = self.test[:, 1:].numel()
        return {"kl": kl / count, "rise": rise / count}

    @cached_property
    def base_loss(self) -> float:
        """Of the test text, in nats a token."""
        each = [
            -float(base.gather(-1, ids[:, 1:, None]).sum(dtype=torch.float64))
            for ids, base in zip(self.test.split(BATCH), self.base_predictions, strict=True)
        ]
        return sum(each) / self.test[:, 1:].numel()

    def domain_loss(self, model: Any) -> float:
        """Of the right answers to test questions, in nats a token."""
        model.eval()
        collate, total, count = collator(self.tokenizer), 0.0, 0
        rows = list(self.questions)
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                batch = collate([{k: row[k] for k in ("input_ids", "labels")} for row in rows[start : start + BATCH]])
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch).logits[:, :-1].float()
                total += float(
                    torch.nn.functional.cross_entropy(
                        logits.transpose(1, 2), labels, reduction="sum", ignore_index=-100
                    )
                )
                count += int((labels != -100).sum())
        return total / count

    def trained(self, name: str, importance: ImportanceMap, **alora: Any) -> tuple[Any, ALoRATrainer]:
        """A fresh adapter, trained on the domain and held by `importance` as `alora` says."""
        model = self.model()
        config = ALoRAConfig(start="bare", anchor="base", layer_weights="none", **alora)
        trainer = ALoRATrainer(
            model,
            self.recipe.training_arguments("tune", self.folder / name),
            train_dataset=self.train,
            data_collator=collator(self.tokenizer),
            importance=importance,
            alora=config,
            probe_dataset=self.probe,
        )
        trainer.train()
        return model, trainer


def predictions(setting: Setting) -> dict[str, Any]:
    """Predicted and measured rises of an adapter that nothing held: of each weight alone, and of all of it."""
    model, _ = setting.trained("nothing-held", setting.importance, lam=0.0, probe_steps=10_000)
    weights = adapted_weights(model)
    penalty = QuadraticPenalty(weights, setting.importance, lam=0.0, layer_weights="none")
    trained = {weight.name: weight.b.clone() for weight in weights}

    def moved(factors: dict[str, float]) -> dict[str, float]:
        for weight in weights:
            weight.b.copy_(trained[weight.name] * factors.get(weight.name, 0.0))
        predicted = float(penalty.evaluate().literal) / 2
        return {"predicted": predicted, **setting.measure(model)}

    whole = [{"scale": scale, **moved(dict.fromkeys(trained, scale))} for scale in SCALES]
    single = []
    for name in list(trained)[::EVERY]:
        as_trained = moved({name: 1.0})
        factor = (SMALL / as_trained["predicted"]) ** 0.5
        single.append({"weight": name, "as_trained": as_trained, "small": moved({name: factor})})
    moved(dict.fromkeys(trained, 1.0))
    return {"whole": whole, "single": single, "domain_loss": setting.domain_loss(model)}


@contextmanager
def counted_probes() -> Iterator[Callable[[], int]]:
    """How often the probe is evaluated inside."""
    count, evaluate = 0, Probe.evaluate

    def counting(self: Probe, *args: Any) -> list[float]:
        nonlocal count
        count += 1
        return evaluate(self, *args)

    Probe.evaluate = counting  # type: ignore[method-assign]
    try:
        yield lambda: count
    finally:
        Probe.evaluate = evaluate  # type: ignore[method-assign]


def budgeted(setting: Setting, way: str, every: int, budget: float) -> dict[str, Any]:
    """One training with a budget, and what it came to on test text."""
    # A map that does not say how it was estimated is steered by probes alone, as every map but a curvature is.
    importance = setting.importance if way == "prediction" else setting.importance.with_info(estimator=None)
    start = time.perf_counter()
    with counted_probes() as probes:
        model, trainer = setting.trained(f"{way}-{every}", importance, budget=budget, probe_steps=every)
    seconds, history = time.perf_counter() - start, trainer.state.log_history
    kept = (
        "step",
        "predicted_rise",
        "calibrated_rise",
        "measured_rise",
        "calibration",
        "lam",
        "probe_rise",
        "final_pull",
    )
    last = [line for line in history if "probe_rise" in line][-1]
    return {
        "way": way,
        "every": every,
        "probes": probes(),
        "probe_rise": last["probe_rise"],
        "probe_rise_error": last["probe_rise_error"],
        "final_pull": last["final_pull"],
        **setting.measure(model),
        "domain_loss": setting.domain_loss(model),
        "seconds": seconds,
        "history": [{key: line[key] for key in kept if key in line} for line in history if "lam" in line],
    }


def remembered(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, from `path` if it was done before."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    result = work()
    write_json(path, result)
    return result


def summary_of_predictions(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Measured over predicted rise: of whole adapters by scale, and of single weights (quartiles over weights and seeds)."""
    whole = {
        str(scale): {
            what: spread(run["whole"][i][what] / run["whole"][i]["predicted"] for run in found)
            for what in ("kl", "rise")
        }
        for i, scale in enumerate(SCALES)
    }
    single = {}
    for size in ("small", "as_trained"):
        ratios = torch.tensor(
            [one[size]["kl"] / one[size]["predicted"] for run in found for one in run["single"]], dtype=torch.float64
        )
        quartiles = ratios.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)).tolist()
        sums = [
            sum(one[size]["kl"] for one in run["single"]) / sum(one[size]["predicted"] for one in run["single"])
            for run in found
        ]
        single[size] = {
            "kl": dict(zip(("least", "lower", "median", "upper", "largest"), quartiles, strict=True)),
            "of_sums": spread(sums),
        }
    return {"whole": whole, "single": single}


def summary_of_budgets(runs: list[dict[str, Any]], budget: float) -> list[dict[str, Any]]:
    rows = []
    for way, every in WAYS:
        own = [run for run in runs if (run["way"], run["every"]) == (way, every)]
        if not own:
            continue
        shares = [run["rise"] / run["base_loss"] for run in own]
        rows.append(
            {
                "way": way,
                "every": every,
                "probes": spread(run["probes"] for run in own),
                "rise": spread(shares),
                "off": spread(abs(share - budget) / budget for share in shares),
                "kept": sum(share <= budget for share in shares),
                "probe_rise": spread(run["probe_rise"] for run in own),
                "pulled": sum(run["final_pull"] > 0 for run in own),
                "kl": spread(run["kl"] for run in own),
                "domain_loss": spread(run["domain_loss"] for run in own),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq-passages.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--tokens", type=int, default=12_288, help="of general text that the map is made from")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings over the recipe's")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    configure_output()
    settings = dict(each.split("=", 1) for each in options.set)
    found, runs = [], []
    for seed in range(options.seeds):
        folder = options.runs / f"predicted-rise-{options.recipe.stem}" / f"seed-{seed}"
        setting = Setting(options.recipe, settings, seed, options.tokens, folder)
        found.append({"seed": seed, **remembered(folder / "predictions.json", partial(predictions, setting))})
        for way, every in WAYS:
            work = partial(budgeted, setting, way, every, options.budget)
            run = remembered(folder / f"budget-{options.budget}-{way}-{every}.json", work)
            runs.append({"seed": seed, "base_loss": setting.base_loss, **run})
            write_report(options, settings, found, runs)


def write_report(
    options: argparse.Namespace, settings: dict[str, str], found: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> None:
    """Write what there is so far: a study that was stopped leaves a report of what it has done."""
    command = (
        f"python benchmarks/predicted_rise.py --recipe {options.recipe} --seeds {options.seeds} --budget {options.budget} "
        f"--tokens {options.tokens}"
    )
    report = {
        "schema": 1,
        "command": command + (f" --set {' '.join(options.set)}" if settings else ""),
        "recipe": options.recipe.name,
        "settings": settings,
        "environment": environment() | {"threads": torch.get_num_threads()},
        "summary": {"predictions": summary_of_predictions(found), "budgets": summary_of_budgets(runs, options.budget)},
        "predictions": found,
        "budgets": runs,
    }
    write_json(options.output_dir / f"predicted-rise-{options.recipe.stem}.json", report)
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
