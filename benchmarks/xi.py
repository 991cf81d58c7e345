"""The paper's importance, given its chance: does another xi, or a path along other directions, beat shuffled importance?

    python benchmarks/xi.py [--seeds 0] [--variants 1e-3 10% ...] [--strengths 1] [--split validation]

A variant is how importance is recorded: eq. 15's xi as a number (1e-3, the paper's) or as a share of each layer's mean squared
movement (10%), and `kronecker:` before it for a path that is integrated along the eigenvectors of the base model's Kronecker
factors (12,288 general tokens, all directions, estimated before all else). One stage A a seed is recorded by all of them at
once. From its end the domain is learned without a penalty, and then held by each variant and, as a control, by the same with
its values put to random places within each layer.

Two things are measured. (1) Without any further training: movements of single weights, of equal norm (the leading singular
directions of what the unheld training did, and random ones of rank one), each by itself from theta*: Spearman's correlation,
within a weight, of the penalty R with the true KL on general text. A form that does not know which movements cost is at 0.
(2) Whole trainings, held at like strength: lambda is such that the penalty of one and the same movement, that of the unheld
training, is --strengths nats; KL(theta* || model) and the rise of cross-entropy on held-out general text in nats a token, and
the cross-entropy of held-out items' right answers in nats a token of theirs, which says how much was learned.

Writes results/studies/xi-RECIPE-SPLIT.json. What was finished in --runs is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from comparison import validation_overrides
from scipy.stats import spearmanr
from studies import spread
from torch.nn.functional import cross_entropy, log_softmax

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.artefact.provenance import base_facts, map_at_present
from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.data.domain import collator, prepare_domain, tokenize_domain
from alora_trainer.data.general import pack_general_text
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.models import load_base, load_tokenizer, with_fresh_adapter, with_saved_adapter
from alora_trainer.importance.controls import shuffled
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.penalty.quadratic import QuadraticPenalty
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.recording import Recording
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.model_weights import adapter_of

VARIANTS = ("1e-3", "10%", "kronecker:10%", "kronecker:1e-3", "1%", "100%")
BASIS_TOKENS = 12_288
WINDOW, WINDOWS = 256, 24
# Of the correlations: weights, windows of text, singular and random directions of each weight.
KL_WEIGHTS, KL_WINDOWS, SINGULAR, RANDOM = 14, 8, 7, 3
IGNORED_LABEL = -100
UNHELD = "lora_ab"


class Bench:
    """One seed: its data, stage A's maps, and the trainings from there.

    Args:
        path: the recipe.
        overrides: over it.
        folder: for maps and adapters.
        items: how many held-out items.
    """

    def __init__(self, path: Path, overrides: Mapping[str, str], folder: Path, items: int) -> None:
        self.recipe: Recipe = load_recipe(path, overrides)
        self.folder, self._items = folder, items
        self.tokenizer = load_tokenizer(self.recipe)
        self._predicted: list[torch.Tensor] = []

    @cached_property
    def _domain(self) -> tuple[Any, Any]:
        """Training rows and held-out rows."""
        recipe, task = self.recipe, get_task(self.recipe.domain.task)
        files = prepare_domain(recipe.domain, folder=self.folder / "domain", seed=recipe.seed, base=recipe.base)
        rows = [
            tokenize_domain(task, path, self.tokenizer, max_length=recipe.domain.max_length)
            for path in (files.train, files.test)
        ]
        return rows[0], rows[1].select(range(min(self._items, len(rows[1]))))

    @cached_property
    def _general(self) -> torch.Tensor:
        """Windows of held-out general text, (windows, tokens)."""
        blocks = pack_general_text(
            self.recipe.general.test,
            self.tokenizer,
            block_length=WINDOW,
            max_tokens=WINDOW * WINDOWS,
            base=self.recipe.base,
        )
        return torch.tensor(blocks["input_ids"])

    def _training_text(self, tokens: int) -> Any:
        general = self.recipe.general
        return pack_general_text(
            general.train,
            self.tokenizer,
            block_length=general.block_length,
            max_tokens=tokens,
            seed=self.recipe.seed,
            base=self.recipe.base,
        )

    def basis(self) -> Path:
        """The Kronecker factors of the base model, as a map."""
        folder = self.folder / "basis"
        if not folder.exists():
            model = with_fresh_adapter(load_base(self.recipe), self.recipe)
            ids = torch.tensor(self._training_text(BASIS_TOKENS)["input_ids"])
            estimate = estimate_curvature(model, [{"input_ids": part} for part in ids.split(16)])
            weights = adapted_weights(model)
            info = ImportanceInfo(
                **base_facts(model, adapter_of(weights)), estimator="kronecker", tokens=estimate.tokens
            )
            map_at_present(model, weights, estimate.importance, info).save_pretrained(folder)
        return folder

    def map_folder(self, variant: str) -> Path:
        return self.folder / "maps" / variant.replace("%", "-percent").replace(":", "-")

    def record(self, variants: Sequence[str]) -> None:
        """Stage A, once for all variants that are not there yet."""
        missing = [variant for variant in variants if not self.map_folder(variant).exists()]
        if not missing:
            return
        general = self.recipe.general
        assert general.train_tokens is not None
        parts = [Recording(self._config(variant)) for variant in missing]
        trainer = ALoRATrainer(
            with_fresh_adapter(load_base(self.recipe), self.recipe),
            self._arguments("record"),
            train_dataset=self._training_text(general.train_tokens),
            data_collator=collator(self.tokenizer),
            parts=parts,
        )
        trainer.train()
        for variant, part in zip(missing, parts, strict=True):
            assert part.recorded is not None
            part.recorded.save_pretrained(self.map_folder(variant))

    def _config(self, variant: str) -> ALoRAConfig:
        along, _, xi = variant.rpartition(":")
        return ALoRAConfig(record="projected", xi=xi, basis=str(self.basis()) if along else None)

    def _arguments(self, section: str) -> Any:
        arguments = self.recipe.training_arguments(section, self.folder / "checkpoints")
        return replace(arguments, save_strategy="no", disable_tqdm=True)

    def train(self, start: Path, importance: ImportanceMap | None, lam: float) -> Any:
        """The domain, from theta* of the map in `start`; the model."""
        model = with_saved_adapter(load_base(self.recipe), start, trainable=True)
        held = (
            {} if importance is None else {"importance": importance, "alora": ALoRAConfig(lam=lam, layer_weights="l2")}
        )
        trainer = ALoRATrainer(
            model,
            self._arguments("tune"),
            train_dataset=self._domain[0],
            data_collator=collator(self.tokenizer),
            **held,
        )
        trainer.train()
        return model

    def strength(self, importance: ImportanceMap, nats: float) -> float:
        """The lambda at which the movement of the unheld training would be penalised by so much."""
        model = with_saved_adapter(load_base(self.recipe), self.folder / UNHELD, trainable=True)
        penalty = QuadraticPenalty(adapted_weights(model), importance, lam=1.0)
        return nats / float(penalty.evaluate().value)

    @torch.no_grad()
    def scores(self, model: Any, start: Path) -> dict[str, float]:
        """What was forgotten of theta*, and how well held-out items are answered."""
        model.eval()
        divergence, losses, before = 0.0, 0.0, 0.0
        for ids, there in zip(self._general.split(10), self._before(start), strict=True):
            here = log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1)
            divergence += float((there.exp() * (there - here)).sum())
            picked = ids[:, 1:, None]
            losses -= float(here.gather(-1, picked).sum())
            before -= float(there.gather(-1, picked).sum())
        tokens = self._general[:, 1:].numel()
        return {
            "kl_nats": divergence / tokens,
            "rise_nats": (losses - before) / tokens,
            "domain_cross_entropy": self._domain_loss(model),
        }

    @torch.no_grad()
    def _before(self, start: Path) -> list[torch.Tensor]:
        """Log-probabilities of every next token of the held-out text at theta*."""
        if not self._predicted:
            model = with_saved_adapter(load_base(self.recipe), start, trainable=False).eval()
            self._predicted = [
                log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1) for ids in self._general.split(10)
            ]
        return self._predicted

    @torch.no_grad()
    def movements(self, start: Path) -> Iterator[tuple[str, list[torch.Tensor], list[float]]]:
        """Of some weights: movements of equal norm, and the KL on general text that each brings by itself."""
        weights = adapted_weights(with_saved_adapter(load_base(self.recipe), self.folder / UNHELD, trainable=True))
        before = {
            weight.name: weight.scaling * weight.b @ weight.a
            for weight in adapted_weights(with_saved_adapter(load_base(self.recipe), start, trainable=True))
        }
        model = with_saved_adapter(load_base(self.recipe), start, trainable=False).merge_and_unload().eval()
        text = self._general[:: max(1, len(self._general) // KL_WINDOWS)]
        there = log_softmax(model(input_ids=text).logits[:, :-1].float(), -1)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        for weight in weights[:: max(1, len(weights) // KL_WEIGHTS)]:
            whole = weight.scaling * weight.b @ weight.a - before[weight.name]
            u, _, v = torch.linalg.svd(whole, full_matrices=False)
            directions = [torch.outer(u[:, i], v[i]) for i in range(SINGULAR)]
            for _ in range(RANDOM):
                parts = (torch.randn(size, generator=generator) for size in weight.shape)
                directions.append(torch.outer(*(part / part.norm() for part in parts)))
            parameter = model.get_submodule(weight.name).weight
            kept, found = parameter.detach().clone(), []
            for direction in directions:
                parameter.copy_(kept + direction * whole.norm())
                here = log_softmax(model(input_ids=text).logits[:, :-1].float(), -1)
                found.append(float((there.exp() * (there - here)).double().sum()) / text[:, 1:].numel())
            parameter.copy_(kept)
            yield weight.name, directions, found

    def _domain_loss(self, model: Any) -> float:
        rows, total, tokens = self._domain[1], 0.0, 0
        collate = collator(self.tokenizer)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), 32):
            batch = collate([rows[i] for i in order[start : start + 32]])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:].flatten()
            total += float(cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED_LABEL, reduction="sum"))
            tokens += int((labels != IGNORED_LABEL).sum())
        return total / tokens


def run_seed(
    bench: Bench, variants: Sequence[str], held: Sequence[str], strengths: Iterable[float], controls: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All runs of one seed: what is unheld, variants, and controls; and the correlations of all variants."""
    bench.record(variants)
    start = bench.map_folder(variants[0])  # theta* is the same in all of them
    runs = [_once(bench.folder / "unheld.json", lambda: _unheld(bench, start))]
    print(json.dumps(runs[0]), flush=True)
    known = _once(bench.folder / "correlations.json", lambda: _correlations(bench, start, variants))
    print(json.dumps({key: value["mean"] for key, value in known.items() if key != "seconds"}), flush=True)
    known |= {"concentration": _once(bench.folder / "concentration.json", lambda: _concentrations(bench, variants))}
    for strength in strengths:
        for variant in dict.fromkeys((*held, *controls)):
            for control in [False] * (variant in held) + [True] * (variant in controls):
                name = f"{bench.map_folder(variant).name}-{'shuffled' if control else 'alora'}-{strength:g}.json"
                found = _once(
                    bench.folder / name, lambda v=variant, s=strength, c=control: _held(bench, start, v, s, c)
                )
                runs.append(found)
                print(json.dumps(found), flush=True)
    return runs, known


def _correlations(bench: Bench, start: Path, variants: Sequence[str]) -> dict[str, Any]:
    """Spearman's correlation of R with KL within each weight: of every variant, of it shuffled, and of the basis itself."""
    maps = {variant: ImportanceMap.from_pretrained(str(bench.map_folder(variant))) for variant in variants}
    maps |= {f"{variant}, shuffled": shuffled(one, bench.recipe.seed) for variant, one in maps.items()}
    maps["the Kronecker factors themselves"] = ImportanceMap.from_pretrained(str(bench.basis()))
    found: dict[str, dict[str, float]] = {name: {} for name in maps}
    for weight, directions, divergences in bench.movements(start):
        for name, one in maps.items():
            penalties = [float((d * one.stored(weight).apply(d)).sum()) for d in directions]
            found[name][weight] = float(spearmanr(penalties, divergences).statistic)
        shown = {name: round(own[weight], 2) for name, own in found.items()}
        print(json.dumps({"weight": weight, "kl": divergences, **shown}), flush=True)
    return {
        name: {
            "mean": statistics.fmean(own.values()),
            "standard_error": statistics.stdev(own.values()) / math.sqrt(len(own)),
            "by_weight": own,
        }
        for name, own in found.items()
    }


def _once(path: Path, work: Any) -> dict[str, Any]:
    known = read_json(path)
    if isinstance(known, dict):
        return known
    began = time.perf_counter()
    found = work() | {"seconds": round(time.perf_counter() - began, 1)}
    write_json(path, found)
    return found


def _unheld(bench: Bench, start: Path) -> dict[str, Any]:
    model = bench.train(start, None, 0.0)
    shutil.rmtree(bench.folder / UNHELD, ignore_errors=True)
    model.save_pretrained(str(bench.folder / UNHELD))
    before = with_saved_adapter(load_base(bench.recipe), start, trainable=False)
    return {
        "seed": bench.recipe.seed,
        "method": UNHELD,
        **bench.scores(model, start),
        "domain_cross_entropy_before": bench.scores(before, start)["domain_cross_entropy"],
    }


def _held(bench: Bench, start: Path, variant: str, strength: float, control: bool) -> dict[str, Any]:
    importance = ImportanceMap.from_pretrained(str(bench.map_folder(variant)))
    if control:
        importance = shuffled(importance, bench.recipe.seed)
    lam = bench.strength(importance, strength)
    model = bench.train(start, importance, lam)
    facts = {"seed": bench.recipe.seed, "method": "shuffled" if control else "alora", "variant": variant}
    return facts | {"strength": strength, "lam": lam, **concentration(importance), **bench.scores(model, start)}


def concentration(importance: ImportanceMap) -> dict[str, float]:
    """How unequal importance is within the layers: what the most important 1 % of the elements hold, the mean over layers."""
    shares = []
    for name in importance:
        stored = importance.stored(name)
        omega = stored.parts["omega"][:-1, :-1] if "omega" in stored.parts else stored.diagonal()
        values = omega.flatten().double()
        shares.append(float(values.topk(max(1, len(values) // 100)).values.sum() / values.sum()))
    return {"share_of_top_percent": sum(shares) / len(shares)}


def _concentrations(bench: Bench, variants: Sequence[str]) -> dict[str, Any]:
    maps = {variant: ImportanceMap.from_pretrained(str(bench.map_folder(variant))) for variant in variants}
    return {variant: concentration(one) for variant, one in maps.items()}


def summarize(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every method, variant and strength over the seeds."""
    keys = ("method", "variant", "strength")
    rows = []
    for key in dict.fromkeys(tuple(run.get(name) for name in keys) for run in runs):
        group = [run for run in runs if tuple(run.get(name) for name in keys) == key]
        measured = ("kl_nats", "rise_nats", "domain_cross_entropy", "share_of_top_percent")
        rows.append(
            dict(zip(keys, key, strict=True))
            | {name: spread(run[name] for run in group) for name in measured if name in group[0]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq-passages.yaml"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--held", nargs="*", default=["1e-3", "kronecker:10%", "10%"], help="those that hold trainings")
    parser.add_argument("--controls", nargs="*", default=["1e-3"], help="those that hold them shuffled")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--steps", type=int, default=30, help="of 8 items, on the domain")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs/xi"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    settings = {"tune.max_steps": str(options.steps), "domain.test_items": str(options.items)}
    settings |= validation_overrides("sciq-passages") if options.split == "validation" else {}
    runs: list[dict[str, Any]] = []
    correlations: dict[str, Any] = {}
    for seed in options.seeds:
        folder = options.runs / options.split / f"seed-{seed}"
        bench = Bench(options.recipe, settings | {"seed": str(seed)}, folder, options.items)
        own, correlations[str(seed)] = run_seed(
            bench, options.variants, options.held, options.strengths, options.controls
        )
        runs += own
    lists = {name: getattr(options, name) for name in ("seeds", "variants", "held", "controls", "strengths")}
    command = f"python benchmarks/xi.py --split {options.split} --steps {options.steps} --items {options.items} "
    report = {
        "schema": 1,
        "command": command + " ".join(f"--{name} {' '.join(map(str, value))}" for name, value in lists.items()),
        "recipe": options.recipe.name,
        "split": options.split,
        "steps": options.steps,
        "environment": environment() | {"threads": 1},
        "correlations": correlations,
        "summary": summarize(runs),
        "runs": runs,
    }
    path = options.output_dir / f"xi-{options.recipe.stem}-{options.split}.json"
    write_json(path, report)
    print(json.dumps(report["summary"], indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
