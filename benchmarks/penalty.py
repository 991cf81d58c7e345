"""What the penalty costs: beside autograd through the dense difference, within a training step, and beside memory's own speed.

    python benchmarks/penalty.py [--device cuda] [--quick] [--sweep] [--output_dir results/benchmarks]

All figures are ratios or bytes measured side by side in one process: what is compared takes turns, so that a noisy machine
disturbs both alike. Writes penalty-DEVICE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import machine, peak_bytes, ratios, spread, take_turns
from models import ATTENTION, CPU_SHAPE, GPT_J, LINEAR, LLAMA_3B, QV_WEIGHTS, lora_model

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.importance.kinds.factored import FactoredOmega
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.recording import fold
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult
from alora_trainer.penalty.backends.choice import choose
from alora_trainer.penalty.backends.dense import dense_penalty
from alora_trainer.penalty.loss_term import penalty_loss
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.reference import Reference, no_movement
from alora_trainer.weights.steps import Factors, movement_factors
from alora_trainer.weights.theta import AdapterTheta

STORAGES = ("float32", "bfloat16", "log8", "factored")
SCALING = 4.0
LAM = 0.1


def made_omega(shape: tuple[int, int], storage: str, device: str) -> Importance:
    """Skewed importance in a format; a factored one is made of its factors, not fitted."""
    if storage == "factored":
        parts = {"rows": torch.rand(shape[0], 4, device=device), "columns": torch.rand(shape[1], 4, device=device)}
        return FactoredOmega(shape, parts)
    return store(torch.rand(shape, device=device).pow_(4), storage)


class Weight:
    """One adapted weight with its Omega, theta* and a theta not far from it."""

    def __init__(self, shape: tuple[int, int], rank: int, storage: str, device: str) -> None:
        (m, n), noise = shape, 0.01
        self.stored = made_omega(shape, storage, device)
        self.a_star, self.b_star = torch.randn(rank, n, device=device), torch.randn(m, rank, device=device)
        self.a = self.a_star + noise * torch.randn_like(self.a_star)
        self.b = self.b_star + noise * torch.randn_like(self.b_star)

    def drift(self) -> Factors:
        return movement_factors(self.a_star, self.b_star, self.a, self.b, SCALING)

    def run(self, backend: Callable[..., PenaltyResult], **settings: Any) -> PenaltyResult:
        return backend(self.stored, self.drift(), self.a, self.b, SCALING, **settings)


def dense_form(
    omega: torch.Tensor, a: torch.Tensor, b: torch.Tensor, a_star: torch.Tensor, b_star: torch.Tensor
) -> torch.Tensor:
    """The penalty as one writes it first."""
    return (omega * (SCALING * (b @ a) - SCALING * (b_star @ a_star)) ** 2).sum()


def dense_autograd(weight: Weight, omega: torch.Tensor, form: Callable[..., torch.Tensor] = dense_form) -> None:
    a, b = weight.a.clone().requires_grad_(), weight.b.clone().requires_grad_()
    form(omega, a, b, weight.a_star, weight.b_star).backward()


# ---- (a) one weight against autograd through the dense difference ----


def against_autograd(shape: tuple[int, int], rank: int, device: str, rounds: int) -> dict[str, Any]:
    """Time and temporaries of every storage format's own backend; autograd always has a dense float32 Omega."""
    report: dict[str, Any] = {"shape": shape, "rank": rank}
    for storage in STORAGES:
        weight = Weight(shape, rank, storage, device)
        backend = choose(weight.stored, device)
        omega = weight.stored.dense()
        works = {"dense": lambda w=weight, o=omega: dense_autograd(w, o), "ours": lambda w=weight, b=backend: w.run(b)}
        times = take_turns(device, rounds, works)
        report[storage] = {
            "backend": backend.name,
            "times_faster_than_autograd": ratios(times["dense"], times["ours"]),
            "seconds": spread(times["ours"]),
            "autograd_seconds": spread(times["dense"]),
            "temporary_bytes": peak_bytes(device, works["ours"]),
            "autograd_temporary_bytes": peak_bytes(device, works["dense"]),
            "omega_bytes": weight.stored.nbytes,
        }
    return report


def block_sizes(shape: tuple[int, int], rank: int, rounds: int) -> dict[str, float]:
    """Seconds of the blocked backend by the number of elements in a block, over those of the size that it uses."""
    weight = Weight(shape, rank, "float32", "cpu")
    backend = choose(weight.stored, "cpu", "blocked")
    used = fold.BLOCK_ELEMENTS

    def work(elements: int) -> None:
        fold.BLOCK_ELEMENTS = elements
        try:
            weight.run(backend)
        finally:
            fold.BLOCK_ELEMENTS = used

    sizes = sorted({used, *(1 << power for power in range(15, 22))})
    times = take_turns("cpu", rounds, {str(size): lambda size=size: work(size) for size in sizes})
    return {size: ratios(values, times[str(used)])["of_medians"] for size, values in times.items()}


# ---- (b) a whole training step ----


class Training:
    """A LoRA training loop on random tokens whose step can be plain or held by the penalty."""

    def __init__(self, shape: dict[str, int], *, batch: int, length: int, targets: list[str], device: str) -> None:
        self.model = lora_model(shape, length=length, rank=8, targets=targets, device=device)
        self.weights = adapted_weights(self.model)
        for weight in self.weights:
            weight.parameter_b.data.normal_(std=0.01)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=1e-4)
        self.learning_rates = {id(p): 1e-4 for p in trainable}
        self.ids = torch.randint(0, 4096, (batch, length), device=device)
        self.device = device

    def penalty(self, storage: str, *, streamed: bool = False) -> QuadraticPenalty:
        where = "cpu" if streamed else self.device
        omega = {w.name: made_omega(w.shape, storage, where) for w in self.weights}
        return self.held_by(omega, streamed=streamed)

    def held_by(
        self, omega: Mapping[str, Importance], *, at_the_base: bool = False, streamed: bool = False
    ) -> QuadraticPenalty:
        """What holds the weights by `omega`, at where they are now or at the base weights."""
        references = {
            w.name: no_movement(w.shape) if at_the_base else Reference(w.a.clone(), w.b.clone(), w.scaling)
            for w in self.weights
        }
        importance = ImportanceMap(omega, AdapterTheta(references))
        return QuadraticPenalty(self.weights, importance, lam=LAM, streamed=streamed)

    def held_loss(self, penalty: QuadraticPenalty, loss: torch.Tensor) -> torch.Tensor:
        return loss + penalty_loss(self.weights, penalty.evaluate(), loss.dtype, loss.device)

    def step(self, penalty: QuadraticPenalty | None) -> None:
        self.optimizer.zero_grad()
        if penalty is not None:
            penalty.begin()
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        if penalty is not None:
            loss = self.held_loss(penalty, loss)
        loss.backward()
        self.optimizer.step()

    def penalty_alone(self, penalty: QuadraticPenalty) -> None:
        """Everything that a held step does and a plain one does not."""
        self.held_loss(penalty, torch.zeros((), device=self.device, requires_grad=True)).backward()


def training_step(
    shape: dict[str, int], *, batch: int, length: int, targets: list[str], device: str, rounds: int
) -> dict[str, Any]:
    """Plain and held steps in turns, and the penalty's own seconds in each round, which are less noisy than a difference."""
    training = Training(shape, batch=batch, length=length, targets=targets, device=device)
    penalties = {storage: training.penalty(storage) for storage in STORAGES}
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: training.step(None),
        "held": lambda: training.step(penalties["float32"]),
    }
    works |= {name: lambda p=penalty: training.penalty_alone(p) for name, penalty in penalties.items()}
    works |= {f"pull {name}": lambda p=p: p.pull(training.learning_rates) for name, p in penalties.items()}
    times = take_turns(device, rounds, works)
    plain = statistics.median(times["plain"])
    plain_bytes = peak_bytes(device, works["plain"])
    return {
        "shape": shape, "batch": batch, "length": length, "targets": targets,
        "adapted_elements": sum(w.shape[0] * w.shape[1] for w in training.weights),
        "held_over_plain": {name: 1 + statistics.median(times[name]) / plain for name in STORAGES},
        "whole_step_held_over_plain": ratios(times["held"], times["plain"]),
        "penalty_seconds": {name: spread(times[name]) for name in STORAGES},
        "plain_step_seconds": spread(times["plain"]),
        "decoupled_over_plain": {name: 1 + statistics.median(times[f"pull {name}"]) / plain for name in STORAGES},
        "temporary_bytes": {
            name: peak_bytes(device, lambda p=penalty: p.evaluate()) for name, penalty in penalties.items()
        },
        # Omega itself was there before, in both.
        "peak_bytes_over_plain_without_omega": {
            name: peak_bytes(device, lambda p=penalty: training.step(p)) - plain_bytes for name, penalty in penalties.items()
        },
        "omega_bytes": {
            name: sum(made_omega(w.shape, name, device).nbytes for w in training.weights) for name in STORAGES
        },
    }  # fmt: skip


def streamed_step(
    shape: dict[str, int], *, batch: int, length: int, targets: list[str], device: str, rounds: int
) -> dict[str, Any]:
    """Held steps with Omega in pinned host memory against plain ones, and against Omega on the GPU.

    The Omega of one weight travels while that of another is computed, and all of it beside the forward pass.
    """
    training = Training(shape, batch=batch, length=length, targets=targets, device=device)
    report: dict[str, Any] = {"shape": shape, "batch": batch, "length": length, "targets": targets}
    for storage in ("float32", "bfloat16", "log8"):
        resident, streamed = training.penalty(storage), training.penalty(storage, streamed=True)
        works: dict[str, Callable[[], Any]] = {
            "plain": lambda: training.step(None),
            "resident": lambda p=resident: training.step(p),
            "streamed": lambda p=streamed: training.step(p),
            "streamed alone": lambda p=streamed: p.evaluate(),
        }
        times = take_turns(device, rounds, works)
        staged = peak_bytes(device, lambda s=storage: training.penalty(s, streamed=True))
        report[storage] = {
            "streamed_over_plain": ratios(times["streamed"], times["plain"]),
            "streamed_over_resident": ratios(times["streamed"], times["resident"]),
            "streamed_alone_seconds": spread(times["streamed alone"]),
            "plain_step_seconds": spread(times["plain"]),
            "device_bytes": staged,
        }
        del resident, streamed, works
    return report


# ---- (c) the fused kernel against the GPU's memory and against torch.compile ----


def copy_bandwidth(rounds: int, gigabytes: float = 2.0) -> float:
    """Bytes a second, read and written, of a copy within the GPU."""
    source = torch.empty(int(gigabytes * 2**28), device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(take_turns("cuda", rounds, {"": lambda: target.copy_(source)})[""])


def captured(work: Callable[[], Any]) -> Callable[[], None]:
    """`work` as a CUDA graph: the kernels' own time, without Python between their launches."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def run_all(weights: list[Weight], backend: Backend | Callable[..., PenaltyResult], **settings: Any) -> None:
    """One pass over a model's weights: more bytes than any cache holds from one pass to the next."""
    for weight in weights:
        weight.run(backend, **settings)


def kernel_bandwidth(shapes: list[tuple[int, int]], rank: int, rounds: int) -> dict[str, Any]:
    """The Triton kernel over all weights of a model, by format, as a share of the measured copy bandwidth."""
    bandwidth = copy_bandwidth(rounds)
    compiled = torch.compile(dense_form, dynamic=False)
    report: dict[str, Any] = {"rank": rank, "weights": len(shapes), "copy_bytes_a_second": bandwidth}
    for storage in ("float32", "bfloat16", "log8"):
        weights = [Weight(shape, rank, storage, "cuda") for shape in shapes]
        backend = choose(weights[0].stored, "cuda", "triton")
        works: dict[str, Callable[[], Any]] = {
            "kernel": captured(lambda w=weights, b=backend: run_all(w, b)),
            "launched": lambda w=weights, b=backend: run_all(w, b),
        }
        if storage == "float32":
            works["compiled"] = lambda w=weights: [dense_autograd(x, x.stored.parts[""], compiled) for x in w]
            works["dense"] = lambda w=weights: [dense_autograd(x, x.stored.parts[""]) for x in w]
        times = take_turns("cuda", rounds, works)
        omega_bytes = sum(weight.stored.nbytes for weight in weights)
        report[storage] = {
            "share_of_copy_bandwidth": omega_bytes / statistics.median(times["kernel"]) / bandwidth,
            "share_with_launches": omega_bytes / statistics.median(times["launched"]) / bandwidth,
            "seconds": spread(times["kernel"]),
            "temporary_bytes": peak_bytes("cuda", works["launched"]),
        }
        for name in ("compiled", "dense"):
            if name in times:
                report[storage][f"times_faster_than_{name}"] = ratios(times[name], times["launched"])
                report[storage][f"{name}_temporary_bytes"] = peak_bytes("cuda", works[name])
        del weights, works
    return report


def sweep(shape: tuple[int, int], rank: int, rounds: int) -> list[dict[str, Any]]:
    """Tile sizes, warps, stages and precisions of the kernel, fastest first in each format, with its error."""
    import triton

    from alora_trainer.penalty.backends.triton_kernel import plan_launch, triton_penalty

    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    chosen = plan_launch(*shape, rank, 2 * rank, multiprocessors)
    changes: list[dict[str, int]] = [{}, {"block_n": 64}, {"block_m": 32}, {"block_m": 128, "warps": 8}, {"warps": 8}]
    changes += [{"stages": 2}, {"stages": 3}, {"block_m": 32, "block_n": 64}, {"groups": 2 * chosen.groups}]
    rows = []
    for storage in ("float32", "bfloat16", "log8"):
        weights = [Weight(shape, rank, storage, "cuda") for _ in range(16)]
        first, drift = weights[0], weights[0].drift()
        drift = Factors(drift.left.double(), drift.right.double())
        exact = dense_penalty(first.stored, drift, first.a.double(), first.b.double(), SCALING)
        for change in changes:
            for precision in ("tf32x3", "bf16x3", "ieee"):
                settings = {"plan": dataclasses.replace(chosen, **change), "precision": precision}
                row: dict[str, Any] = {"storage": storage, "precision": precision} | change
                try:
                    got = first.run(triton_penalty, **settings)
                    work = captured(lambda w=weights, s=settings: run_all(w, triton_penalty, **s))
                    row["seconds_a_weight"] = statistics.median(take_turns("cuda", rounds, {"": work})[""]) / 16
                    row["relative_error_of_b"] = float(
                        (got.gradient_b - exact.gradient_b).norm() / exact.gradient_b.norm()
                    )
                except triton.runtime.errors.OutOfResources as error:
                    row["does_not_fit"] = str(error)
                rows.append(row)
    return sorted(rows, key=lambda row: (row["storage"], row.get("seconds_a_weight", float("inf"))))


# ---- reports ----


def cpu_report(quick: bool) -> dict[str, Any]:
    rounds = 3 if quick else 9
    shape = (1024, 1024) if quick else (3072, 3072)
    batch, length = (1, 64) if quick else (8, 256)
    return {
        "one_weight": against_autograd(shape, 8, "cpu", rounds),
        "block_sizes": block_sizes(shape, 8, rounds),
        "steps": {
            "hidden 1024, 4 layers, q,v": training_step(
                CPU_SHAPE, batch=batch, length=length, targets=ATTENTION, device="cpu", rounds=3 if quick else 5
            )
        },
    }


def cuda_report(quick: bool, with_sweep: bool) -> dict[str, Any]:
    rounds = 3 if quick else 15
    report: dict[str, Any] = {
        "one_weight": against_autograd((3072, 3072), 8, "cuda", rounds),
        "kernel": {
            name: {f"rank {rank}": kernel_bandwidth(shapes, rank, rounds) for rank in (8, 64)}
            for name, shapes in QV_WEIGHTS.items()
        },
    }
    settings: dict[str, Any] = {"batch": 4 if quick else 20, "length": 512, "device": "cuda", "rounds": rounds}
    cases = {"Llama-3.2-3B q,v": (LLAMA_3B, ATTENTION), "GPT-J-6B q,v": (GPT_J, ATTENTION)}
    cases |= {"Llama-3.2-3B all linear": (LLAMA_3B, LINEAR)}
    report["steps"] = {
        name: training_step(shape, targets=targets, **settings) for name, (shape, targets) in cases.items()
    }
    report["streamed"] = {
        name: streamed_step(shape, targets=targets, **settings)
        for name, (shape, targets) in cases.items()
        if targets is ATTENTION
    }
    if with_sweep:
        report["sweep"] = sweep((3072, 3072), 8, rounds)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds, to see that it runs")
    parser.add_argument("--sweep", action="store_true", help="cuda: the kernel's tile sizes and precisions, too")
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    torch.manual_seed(0)
    figures = cpu_report(options.quick) if options.device == "cpu" else cuda_report(options.quick, options.sweep)
    report = {"schema": 1, "machine": machine(options.device), "quick": options.quick} | figures
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"penalty-{options.device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for storage in STORAGES:
        case = report["one_weight"][storage]
        print(
            f"{storage} ({case['backend']}): {case['times_faster_than_autograd']['of_medians']:.1f} times faster than "
            f"autograd, temporaries {case['temporary_bytes'] / 1e6:.1f} MB against "
            f"{case['autograd_temporary_bytes'] / 1e6:.1f} MB"
        )
    for name, case in report["steps"].items():
        print(f"{name}: held/plain {case['held_over_plain']}, decoupled {case['decoupled_over_plain']}")
    for name, ranks in report.get("kernel", {}).items():
        for rank, case in ranks.items():
            shares = {s: round(case[s]["share_of_copy_bandwidth"], 3) for s in ("float32", "bfloat16", "log8")}
            print(f"{name}, {rank}: share of copy bandwidth {shares}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
