"""What importance in a basis costs while it protects: a held step over a plain one, and memory.

    python benchmarks/curvature.py [--quick] [--rounds 5] [--decoupled] [--output_dir results/benchmarks]

Kronecker, EK-FAC and covariance importance with k directions kept on either side, beside today's element-wise Omega in
float32 and beside plain LoRA: in a small model, and in single layers of Llama-3.2-3B's widths, 4 x 1024 tokens. A new adapter
is held to the base weights (the default of these kinds), and a recorded one to theta*. What is compared takes turns in one
process, and seconds are processor time of all threads, which other processes disturb least. Bases are random and scaled like
orthonormal ones, which costs the same. Writes curvature-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import machine, peak_bytes, processor_seconds, ratios, spread, take_turns
from models import ATTENTION, CPU_SHAPE, LINEAR
from peft import LoraConfig, get_peft_model
from penalty import Training, made_omega

from alora_trainer.importance.kinds.ekfac import OMEGA, EkfacOmega
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import INPUT_VALUES, OUTPUT_VALUES, CovarianceOmega, KroneckerOmega
from alora_trainer.weights.adapted import adapted_weights

KINDS = ("kronecker", "ekfac", "covariance")
KEPT: tuple[int | None, ...] = (16, 64, 256, None)
ELEMENTWISE = "element-wise float32"
LAYERS = [(3072, 3072), (1024, 3072), (8192, 3072), (3072, 8192)]
RANK = 8


def name_of(kind: str, keep: int | None) -> str:
    return f"{kind}, {'all' if keep is None else keep} directions"


def made_in_basis(shape: tuple[int, int], kind: str, keep: int | None) -> Importance:
    """Importance of a kind with `keep` directions on either side, or all; Omega skewed, and the rest far below it."""
    kept = [size if keep is None else min(keep, size) for size in shape]
    u, v = (torch.randn(size, count) / size**0.5 for size, count in zip(shape, kept, strict=True))
    outputs, inputs = (torch.rand(count + 1).pow_(4) for count in kept)
    if kind == "covariance":
        return CovarianceOmega(shape, {INPUT_VECTORS: v, INPUT_VALUES: inputs})
    vectors = {OUTPUT_VECTORS: u, INPUT_VECTORS: v}
    if kind == "ekfac":
        return EkfacOmega(shape, vectors | {OMEGA: torch.outer(outputs, inputs)})
    return KroneckerOmega(shape, vectors | {OUTPUT_VALUES: outputs, INPUT_VALUES: inputs})


class LayerTraining(Training):
    """A training of one linear layer (m, n): forward, backward to its input as within a model, and the optimizer's step."""

    def __init__(self, shape: tuple[int, int], *, batch: int, length: int) -> None:
        torch.manual_seed(0)
        (m, n), layer = shape, torch.nn.Module()
        layer.add_module("only", torch.nn.Linear(n, m, bias=False))
        layer.forward = lambda x: layer.only(x)  # type: ignore[method-assign]
        self.model = get_peft_model(layer, LoraConfig(r=RANK, lora_alpha=4 * RANK, target_modules=["only"]))  # type: ignore[arg-type]
        self.weights = adapted_weights(self.model)
        for weight in self.weights:
            weight.parameter_b.data.normal_(std=0.01)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-4)
        self.learning_rates = {id(p): 1e-4 for p in trainable}
        self.inputs = torch.randn(batch, length, n, requires_grad=True)
        self.upstream = torch.randn(batch, length, m)
        self.device = "cpu"

    def step(self, penalty: Any) -> None:
        assert penalty is None  # what a penalty adds is timed alone
        self.optimizer.zero_grad()
        self.inputs.grad = None
        self.model(self.inputs).backward(self.upstream)
        self.optimizer.step()


def against_plain(training: Training, *, rounds: int, at_the_base: bool, decoupled: bool) -> dict[str, Any]:
    """By what holds: the penalty's seconds as a share of a plain step, in turns; what it holds and what it needs beside."""
    torch.manual_seed(1)
    made: dict[str, Callable[[tuple[int, int]], Importance]] = {ELEMENTWISE: lambda s: made_omega(s, "float32", "cpu")}
    for kind in KINDS:
        for keep in KEPT:
            made[name_of(kind, keep)] = lambda s, kind=kind, keep=keep: made_in_basis(s, kind, keep)
    penalties = {
        name: training.held_by({w.name: make(w.shape) for w in training.weights}, at_the_base=at_the_base)
        for name, make in made.items()
    }
    works: dict[str, Callable[[], Any]] = {"plain": lambda: training.step(None)}
    works |= {name: lambda p=penalty: training.penalty_alone(p) for name, penalty in penalties.items()}
    if decoupled:
        works |= {f"pull {name}": lambda p=p: p.pull(training.learning_rates) for name, p in penalties.items()}
    times = take_turns("cpu", rounds, works, processor_seconds)
    plain = statistics.median(times["plain"])
    report: dict[str, Any] = {"plain_step_seconds": spread(times["plain"]), "held_by": {}}
    for name, penalty in penalties.items():
        report["held_by"][name] = {
            "held_over_plain": 1 + statistics.median(times[name]) / plain,
            "over_element_wise": ratios(times[name], times[ELEMENTWISE])["of_medians"],
            "penalty_seconds": spread(times[name]),
            "importance_bytes": sum(importance.nbytes for importance in map(made[name], shapes_of(training))),
            "temporary_bytes": peak_bytes("cpu", lambda p=penalty: p.evaluate()),
        }
        if decoupled:
            seconds = times[f"pull {name}"]
            report["held_by"][name] |= {"decoupled_over_plain": 1 + statistics.median(seconds) / plain}
    return report


def shapes_of(training: Training) -> list[tuple[int, int]]:
    return [weight.shape for weight in training.weights]


def cases(quick: bool) -> Iterator[tuple[dict[str, Any], Training]]:
    """What is measured, and the training: single layers of true widths, and the small model of benchmarks/penalty.py."""
    batch = {"batch": 4, "length": 64 if quick else 1024}
    model = CPU_SHAPE | ({"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4} if quick else {})
    square, narrow, *wide = [(256, 256), (128, 256)] if quick else LAYERS
    for layer in (square, narrow):
        yield {"layer": layer, "held_to": "base"}, LayerTraining(layer, **batch)
    for targets in (ATTENTION, LINEAR):
        yield (
            {"model": model, "targets": targets, "held_to": "base"},
            Training(model, targets=targets, device="cpu", **batch),
        )
    yield {"layer": square, "held_to": "theta*"}, LayerTraining(square, **batch)
    for layer in wide:
        yield {"layer": layer, "held_to": "base"}, LayerTraining(layer, **batch)


def print_case(case: dict[str, Any]) -> None:
    what = " x ".join(map(str, case["layer"])) if "layer" in case else f"model, {len(case['targets'])} kinds of layers"
    print(f"{what}, held to {case['held_to']}: plain {case['plain_step_seconds']['median']:.3f} s", flush=True)
    for name, found in case["held_by"].items():
        print(
            f"  {name}: held/plain {found['held_over_plain']:.4f}; "
            f"{found['importance_bytes'] / 1e6:.2f} MB and {found['temporary_bytes'] / 1e6:.2f} MB beside",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds, to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoupled", action="store_true", help="the decoupled update, too")
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    torch.manual_seed(0)
    settings = {"rounds": 2 if options.quick else options.rounds, "decoupled": options.decoupled}
    command = f"python benchmarks/curvature.py --rounds {settings['rounds']}{' --decoupled' * options.decoupled}"
    report: dict[str, Any] = {
        "schema": 1, "command": command, "machine": machine("cpu"), "quick": options.quick,
        "batch": 4, "length": 64 if options.quick else 1024, "cases": [],
    }  # fmt: skip
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "curvature-cpu.json"
    for what, training in cases(options.quick):
        report["cases"].append(what | against_plain(training, at_the_base=what["held_to"] == "base", **settings))
        path.write_text(json.dumps(report, indent=2) + "\n")  # so that what is measured is kept, should the rest fail
        print_case(report["cases"][-1])
    print(f"written: {path}")


if __name__ == "__main__":
    main()
