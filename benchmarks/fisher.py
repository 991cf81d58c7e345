"""What Fisher information costs: ours by hooks, by sample and by batch, beside the official code's way.

    python benchmarks/fisher.py [--device cuda] [--quick] [--output_dir results/benchmarks]

The official way (compute_fisher_matrix.py of szxiangjn/world-model-for-language-model): all base weights require gradients,
every batch's gradients are brought to host memory, multiplied by the number of samples, squared and added up. `adapted_only`
is the same restricted to the adapted weights, and `one_by_one` an estimate by sample from batches of one. All take turns on the
same text in one process. Writes fisher-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import machine, peak_bytes, ratios, spread, take_turns
from models import ATTENTION, GPT_J, LLAMA_3B, lora_model

from alora_trainer.importance.recording.fisher import estimate_fisher
from alora_trainer.weights.adapted import adapted_weights

CPU_SHAPE = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1408}


class Case:
    """One model with LoRA, and one batch of text.

    Args:
        shape: of a Llama.
        samples: in the batch.
        length: of each, in tokens.
        device: "cpu" or "cuda".
    """

    def __init__(self, shape: dict[str, int], samples: int, length: int, device: str) -> None:
        self.model = lora_model(shape, length=length, rank=8, targets=ATTENTION, device=device)
        self.batch = {"input_ids": torch.randint(0, 4096, (samples, length))}
        self.batch["labels"] = self.batch["input_ids"]
        self.device = device
        self.names = {f"{w.name}.base_layer.weight" for w in adapted_weights(self.model)}

    def ours(self, kind: str) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for weight in self._all_factors():
            weight.requires_grad_(True)
        estimate_fisher(self.model, [self.batch], kind=kind)

    def official(self, *, adapted_only: bool, one_by_one: bool = False) -> None:
        parameters = {
            name.removeprefix("base_model.model."): p
            for name, p in self.model.named_parameters()
            if "lora_" not in name
        }
        for weight in self._all_factors():
            weight.requires_grad_(False)
        for name, parameter in parameters.items():
            parameter.requires_grad_(not adapted_only or name in self.names)
        total: dict[str, Any] = {}
        ids = self.batch["input_ids"]
        for rows in ids.split(1 if one_by_one else len(ids)):
            rows = rows.to(self.device)
            self.model(input_ids=rows, labels=rows).loss.backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    squared = (parameter.grad.detach().cpu() * len(rows)) ** 2
                    total[name] = total[name] + squared if name in total else squared
            self.model.zero_grad()

    def _all_factors(self) -> list[torch.nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if "lora_" in name]


def measure(shape: dict[str, int], samples: int, length: int, device: str, rounds: int) -> dict[str, Any]:
    """Seconds and peak bytes of one batch, each way."""
    case = Case(shape, samples, length, device)
    works: dict[str, Callable[[], None]] = {
        "sample": lambda: case.ours("sample"),
        "batch": lambda: case.ours("batch"),
        "official": lambda: case.official(adapted_only=False),
        "adapted_only": lambda: case.official(adapted_only=True),
        "one_by_one": lambda: case.official(adapted_only=True, one_by_one=True),
    }
    times = take_turns(device, rounds, works)
    return {
        "shape": shape,
        "samples": samples,
        "length": length,
        "seconds": {name: spread(values) for name, values in times.items()},
        "over_official": {name: ratios(values, times["official"]) for name, values in times.items()},
        "peak_bytes": {name: peak_bytes(device, work) for name, work in works.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="a small shape and few rounds, to see that it runs")
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    rounds = 2 if options.quick else 7
    if options.device == "cuda":
        cases = {
            "Llama-3.2-3B q,v": measure(LLAMA_3B, 8, 800, "cuda", rounds),
            "GPT-J-6B q,v": measure(GPT_J, 8, 800, "cuda", rounds),
        }
    else:
        length = 64 if options.quick else 256
        cases = {"hidden 512, 4 layers, q,v": measure(CPU_SHAPE, 2 if options.quick else 8, length, "cpu", rounds)}
    report = {"schema": 1, "machine": machine(options.device), "quick": options.quick, "cases": cases}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"fisher-{options.device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for name, case in cases.items():
        for way, value in case["seconds"].items():
            over = case["over_official"][way]["of_medians"]
            print(
                f"{name}: {way} {value['median']:.3f} s ({over:.2f} of official), {case['peak_bytes'][way] / 2**20:.1f} MiB"
            )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
