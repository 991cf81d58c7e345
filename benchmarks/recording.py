"""What recording costs: step time and memory beside plain LoRA and beside the naive way, and how both grow.

    python benchmarks/recording.py [--device cuda] [--quick] [--output_dir results/benchmarks]

All figures are ratios or bytes measured side by side in one process: plain and recorded steps take turns, so that a noisy
machine disturbs both alike. Writes recording-DEVICE.json, and recording-growth-DEVICE.svg where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from measuring import machine, peak_bytes, seconds, spread
from models import ATTENTION, CPU_SHAPE, GPT_J, LINEAR, LLAMA_3B, QV_WEIGHTS, lora_model
from peft import LoraConfig, get_peft_model

from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.trained_weight import learning_rates


class Training:
    """A LoRA training loop whose optimizer step can be plain, recorded, or recorded the naive way."""

    def __init__(
        self, shape: dict[str, int], batch: int, length: int, rank: int, targets: list[str], device: str
    ) -> None:
        self.model = lora_model(shape, length=length, rank=rank, targets=targets, device=device)
        self.weights = adapted_weights(self.model)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.ids = torch.randint(0, 4096, (batch, length), device=device)
        self.device = device

    def gradients(self) -> None:
        self.optimizer.zero_grad()
        self.model(input_ids=self.ids, labels=self.ids).loss.backward()

    def step(self, recorder: Recorder | NaiveRecorder | None) -> None:
        self.gradients()
        self.optimize(recorder)

    def optimize(self, recorder: Recorder | NaiveRecorder | None) -> None:
        if recorder is not None:
            pairs = {w.name: (_gradient(w.parameter_a), _gradient(w.parameter_b)) for w in self.weights}
            recorder.before_step(pairs, learning_rates(self.optimizer))
        self.optimizer.step()
        if recorder is not None:
            recorder.after_step()


class NaiveRecorder:
    """The way that one writes first: dense B A before and after, a dense gradient, fresh temporaries for all."""

    def __init__(self, weights: list[AdaptedWeight]) -> None:
        self.weights = weights
        self.w = {w.name: torch.zeros(w.shape, device=w.device) for w in weights}

    def before_step(self, gradients: Any, rates: dict[int, float]) -> None:
        self.dense, self.gradient = {}, {}
        for w in self.weights:
            ga, gb = gradients[w.name]
            self.dense[w.name] = w.scaling * (w.b.float() @ w.a.float())
            eta = rates[id(w.parameter_a)]
            self.gradient[w.name] = w.scaling * (gb @ w.a.float() + w.b.float() @ ga - eta * (gb @ ga))

    def after_step(self) -> None:
        for w in self.weights:
            movement = w.scaling * (w.b.float() @ w.a.float()) - self.dense[w.name]
            self.w[w.name] = self.w[w.name] - self.gradient[w.name] * movement


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.float().flatten(1).clone()


def step_overhead(
    shape: dict[str, int], *, batch: int, length: int, rank: int, targets: list[str], device: str, rounds: int,
    location: str = "device", fold_every: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Plain and recorded steps in turns; the ratio of their medians, and of a whole fold's share of a step."""
    training = Training(shape, batch, length, rank, targets, device)
    recorder = Recorder(training.weights, "projected", 1e-3, location=location, fold_every=fold_every)
    naive = NaiveRecorder(training.weights)
    for kind in (None, recorder, naive):
        training.step(kind)
    times: dict[str, list[float]] = {"plain": [], "recorded": [], "naive": []}
    optimizing: dict[str, list[float]] = {"plain": [], "recorded": [], "naive": []}
    for _ in range(rounds):
        # The forward and backward passes are the same for all three, so that one of them serves a round.
        forward = seconds(device, training.gradients)
        for name, kind in (("plain", None), ("recorded", recorder), ("naive", naive)):
            # With late folding a round is fold_every steps, so that every round folds once.
            repeats = fold_every if name == "recorded" else 1
            spent = seconds(device, lambda kind=kind, n=repeats: [training.optimize(kind) for _ in range(n)]) / repeats
            times[name].append(forward + spent)
            optimizing[name].append(spent)
    forward_median = statistics.median(t - o for t, o in zip(times["plain"], optimizing["plain"], strict=True))
    plain = forward_median + statistics.median(optimizing["plain"])
    recorded = forward_median + statistics.median(optimizing["recorded"])
    naive_step = forward_median + statistics.median(optimizing["naive"])
    return {
        "shape": shape, "batch": batch, "length": length, "rank": rank, "targets": targets, "location": location,
        "fold_every": fold_every, "adapted_elements": sum(w.shape[0] * w.shape[1] for w in training.weights),
        "recorded_over_plain": recorded / plain,
        "naive_over_plain": naive_step / plain,
        "whole_step_recorded_over_plain": statistics.median(times["recorded"]) / statistics.median(times["plain"]),
        "recording_seconds": spread([r - p for r, p in zip(optimizing["recorded"], optimizing["plain"], strict=True)]),
        "naive_seconds": spread([r - p for r, p in zip(optimizing["naive"], optimizing["plain"], strict=True)]),
        "plain_step_seconds": plain,
    }  # fmt: skip


def peak_memory(shape: dict[str, int], *, rank: int, targets: list[str], device: str) -> dict[str, float]:
    """Peak bytes of one optimizer step's recording beyond w itself, ours and the naive way, from the allocator's own count."""
    training = Training(shape, 1, 16, rank, targets, device)
    training.gradients()
    peaks = {}
    for name, recorder in (
        ("recorded", Recorder(training.weights, "projected", 1e-3)),
        ("naive", NaiveRecorder(training.weights)),
    ):
        training.optimize(recorder)
        training.gradients()
        peaks[name] = peak_bytes(device, lambda recorder=recorder: training.optimize(recorder))
    largest = max(w.shape[0] * w.shape[1] for w in training.weights) * 4
    total = sum(w.shape[0] * w.shape[1] for w in training.weights) * 4
    return {
        "recorded_bytes": peaks["recorded"],
        "naive_bytes": peaks["naive"],
        "largest_weight_bytes": largest,
        "w_bytes": total,
    }


def growth(device: str, quick: bool) -> dict[str, list[dict[str, float]]]:
    """Seconds of one fold, as width, layers, rank and K grow, each from the same middle."""
    middle = {"width": 1024, "layers": 4, "rank": 8, "fold_every": 1}
    ranges = {
        "width": [512, 1024, 2048] if quick else [512, 1024, 2048, 4096, 8192],
        "layers": [2, 4, 8] if quick else [2, 4, 8, 16, 32, 64],
        "rank": [4, 16] if quick else [4, 8, 16, 32, 64, 128],
        "fold_every": [1, 4] if quick else [1, 2, 4, 8, 16, 32, 64],
    }
    return {
        name: [fold_cost(device=device, **(middle | {name: value})) for value in values]
        for name, values in ranges.items()
    }


def fold_cost(*, width: int, layers: int, rank: int, fold_every: int, device: str) -> dict[str, float]:
    """Seconds a step that recording adds, without any model: bare LoRA factors of square weights."""
    layer = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers))).to(device)
    model = get_peft_model(layer, LoraConfig(r=rank, target_modules=[str(i) for i in range(layers)]))  # type: ignore[arg-type]
    weights = adapted_weights(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    recorder = Recorder(weights, "projected", 1e-3, fold_every=fold_every)
    pairs = {w.name: (torch.randn_like(w.a), torch.randn_like(w.b)) for w in weights}
    rates = learning_rates(optimizer)

    def record() -> None:
        for _ in range(fold_every):
            recorder.before_step(pairs, rates)
            recorder.after_step()

    record()
    rounds = max(3, min(10, int(2e8 / (width * width * layers * fold_every))))
    spent = statistics.median(seconds(device, record) / fold_every for _ in range(rounds))
    elements = width * width * layers
    return {
        "width": width, "layers": layers, "rank": rank, "fold_every": fold_every, "seconds_a_step": spent,
        "nanoseconds_an_element": spent / elements * 1e9,
    }  # fmt: skip


def draw_growth(rows: dict[str, list[dict[str, float]]], path: Path) -> Path:
    """Seconds a step against width, layers, rank and K, both axes logarithmic; the dotted lines grow as the cost model says."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    titles = {"width": "width (m = n)", "layers": "adapted weights", "rank": "rank r", "fold_every": "steps a fold, K"}
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    for axes, (name, points) in zip(figure.subplots(1, len(rows), sharey=True), rows.items(), strict=True):
        values, times = [p[name] for p in points], [1e3 * p["seconds_a_step"] for p in points]
        axes.loglog(values, times, "o-", color="#0072b2")
        power = {"width": 2, "layers": 1}.get(name)
        if power is not None:
            axes.loglog(values, [times[0] * (v / values[0]) ** power for v in values], ":", color="#555555")
        axes.set_xticks(values, [str(value) for value in values], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(titles[name])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("recording, ms a step")
    middle = next(iter(rows.values()))[0]
    figure.suptitle(
        f"recording's cost; elsewhere {middle['layers']} weights of 1024 x 1024, rank {middle['rank']}, K 1", fontsize=9
    )
    figure.savefig(path, metadata={"Date": None})
    return path


def artefact_bytes() -> dict[str, dict[str, float]]:
    """GiB of Omega for the paper's models, q and v adapted, from the formats' own arithmetic."""
    sizes: dict[str, dict[str, float]] = {}
    for model, weights in QV_WEIGHTS.items():
        sizes[model] = {
            name: sum(FORMATS[name].made_bytes(shape) for shape in weights) / 2**30
            for name in ("float32", "bfloat16", "log8", "factored")
        }
    published = {"Llama-3.2-3B q,v": (1.3, 11.97), "GPT-J-6B q,v": (3.5, 22.65)}
    for model, (paper, ewc) in published.items():
        sizes[model] |= {"published ALoRA": paper, "published EWCLoRA": ewc}
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds, to see that it runs")
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    device, rounds = options.device, 3 if options.quick else 7
    settings: dict[str, Any] = {"rank": 8, "device": device, "rounds": rounds}
    if device == "cuda":
        cases = {
            "Llama-3.2-3B q,v": step_overhead(LLAMA_3B, batch=20, length=512, targets=ATTENTION, **settings),
            "GPT-J-6B q,v": step_overhead(GPT_J, batch=20, length=512, targets=ATTENTION, **settings),
            "Llama-3.2-3B all linear": step_overhead(LLAMA_3B, batch=20, length=512, targets=LINEAR, **settings),
            "Llama-3.2-3B q,v host": step_overhead(
                LLAMA_3B, batch=20, length=512, targets=ATTENTION, location="cpu", fold_every=16, **settings
            ),
        }
    else:
        batch, length = (2, 64) if options.quick else (8, 256)
        cases = {
            "hidden 1024, 4 layers, q,v": step_overhead(
                CPU_SHAPE, batch=batch, length=length, targets=ATTENTION, **settings
            ),
            "hidden 1024, 4 layers, q,v, K 8": step_overhead(
                CPU_SHAPE, batch=batch, length=length, targets=ATTENTION, fold_every=8, **settings
            ),
            "hidden 1024, 4 layers, all linear": step_overhead(
                CPU_SHAPE, batch=batch, length=length, targets=LINEAR, **settings
            ),
        }
    report = {
        "schema": 1,
        "machine": machine(device),
        "quick": options.quick,
        "steps": cases,
        "peak_memory": peak_memory(CPU_SHAPE, rank=8, targets=ATTENTION, device=device),
        "growth": growth(device, options.quick),
        "artefact_gibibytes": artefact_bytes(),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"recording-{device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for name, case in cases.items():
        print(f"{name}: recorded/plain {case['recorded_over_plain']:.4f}, naive/plain {case['naive_over_plain']:.4f}")
    print(f"peak memory: {report['peak_memory']}")
    print(f"written: {path}")
    picture = draw_growth(report["growth"], options.output_dir / f"recording-growth-{device}.svg")
    print(f"written: {picture}")


if __name__ == "__main__":
    main()
