"""What estimating curvature costs in seconds per 100,000 tokens: beside stage A, the diagonal Fisher and the official EWCLoRA.

    python benchmarks/curvature_recording.py [--quick] [--rounds 3] [--output_dir results/benchmarks]

On base-5m where ../shared is, else on a random Llama of its shape; all linear layers, blocks of 128 tokens, 8 a batch:

    stage_a             a LoRA training step (AdamW) with the path integral recorded (`projected`)
    fisher              the diagonal Fisher information by sample
    official            all base weights' squared batch gradients, as the official code of EWCLoRA computes them
    kronecker, ekfac    labels sampled; `ekfac` passes twice
    covariance          the inputs' second moments, and the mean squared gradient for the scale

Each is timed over a few and over four times as many tokens: the slope is what a token costs, the rest is paid once
(eigenvectors above all). All take turns in one process; seconds are processor time, which other processes disturb least.
Writes curvature-recording-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import machine, processor_seconds, spread, take_turns
from models import LINEAR
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from alora_trainer.importance.recording.curvature import CURVATURES, estimate_curvature
from alora_trainer.importance.recording.fisher import estimate_fisher
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.trained_weight import learning_rates

BASE = Path(__file__).resolve().parent.parent.parent / "shared" / "models" / "base-5m"
SHAPE = {  # base-5m's
    "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 704,
}  # fmt: skip
BATCH, LENGTH = 8, 128
PER = 100_000


class Case:
    """One model with a LoRA adapter, and batches of random tokens: what they say costs nothing more or less."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        base: Any
        if BASE.is_dir():
            base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        else:
            base = LlamaForCausalLM(LlamaConfig(max_position_embeddings=LENGTH, **SHAPE))
        self.vocabulary = base.config.vocab_size
        self.model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, target_modules=LINEAR))
        self.weights = adapted_weights(self.model)
        self.factors = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.factors, lr=1e-6)
        self.recorder = Recorder(self.weights, "projected", 1e-3)

    def batches(self, tokens: int) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1)
        rows = torch.randint(2, self.vocabulary, (tokens // LENGTH, LENGTH), generator=generator)
        return [{"input_ids": ids, "labels": ids.clone()} for ids in rows.split(BATCH)]

    def stage_a(self, tokens: int) -> None:
        for batch in self.batches(tokens):
            self.optimizer.zero_grad()
            self.model(**batch).loss.backward()
            pairs = {w.name: (_gradient(w.parameter_a), _gradient(w.parameter_b)) for w in self.weights}
            self.recorder.before_step(pairs, learning_rates(self.optimizer))
            self.optimizer.step()
            self.recorder.after_step()

    def fisher(self, tokens: int) -> None:
        estimate_fisher(self.model, self.batches(tokens))

    def official(self, tokens: int) -> None:
        named = {name: p for name, p in self.model.named_parameters() if "lora_" not in name}
        for factor in self.factors:
            factor.requires_grad_(False)
        for parameter in named.values():
            parameter.requires_grad_(True)
        total: dict[str, torch.Tensor] = {}
        for batch in self.batches(tokens):
            self.model(**batch).loss.backward()
            for name, parameter in named.items():
                if parameter.grad is not None:
                    squared = (parameter.grad.detach().cpu() * len(batch["input_ids"])) ** 2
                    total[name] = total[name] + squared if name in total else squared
            self.model.zero_grad()
        for parameter in named.values():
            parameter.requires_grad_(False)
        for factor in self.factors:
            factor.requires_grad_(True)

    def curvature(self, kind: str, tokens: int) -> None:
        estimate_curvature(self.model, self.batches(tokens), kind)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.float().flatten(1).clone()


def measure(few: int, rounds: int) -> dict[str, Any]:
    """By way: processor seconds a hundred thousand tokens, and what of it is paid once."""
    case = Case()
    ways: dict[str, Callable[[int], None]] = {
        "stage_a": case.stage_a, "fisher": case.fisher, "official": case.official,
        **{kind: lambda tokens, kind=kind: case.curvature(kind, tokens) for kind in CURVATURES},
    }  # fmt: skip
    works = {(way, tokens): lambda w=work, t=tokens: w(t) for way, work in ways.items() for tokens in (few, 4 * few)}
    times = take_turns(
        "cpu", rounds, {f"{way} {tokens}": work for (way, tokens), work in works.items()}, processor_seconds
    )
    report = {}
    for way in ways:
        little, much = (statistics.median(times[f"{way} {tokens}"]) for tokens in (few, 4 * few))
        a_token = (much - little) / (3 * few)
        once = max(little - a_token * few, 0.0)
        report[way] = {
            "seconds_a_hundred_thousand_tokens": once + PER * a_token,
            "of_it_once": once,
            "measured": {str(tokens): spread(times[f"{way} {tokens}"]) for tokens in (few, 4 * few)},
        }
    for found in report.values():
        found["over_official"] = (
            found["seconds_a_hundred_thousand_tokens"] / report["official"]["seconds_a_hundred_thousand_tokens"]
        )
        found["over_stage_a"] = (
            found["seconds_a_hundred_thousand_tokens"] / report["stage_a"]["seconds_a_hundred_thousand_tokens"]
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few tokens and rounds, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    few = 1024 if options.quick else 2048
    config = AutoConfig.from_pretrained(BASE) if BASE.is_dir() else None
    report = {
        "schema": 1,
        "command": f"python benchmarks/curvature_recording.py --rounds {options.rounds}",
        "machine": machine("cpu"),
        "quick": options.quick,
        "model": "base-5m" if config is not None else "a random Llama of its shape",
        "shape": SHAPE if config is None else {name: getattr(config, name) for name in SHAPE},
        "ways": measure(few, 2 if options.quick else options.rounds),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "curvature-recording-cpu.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for way, found in report["ways"].items():
        print(
            f"{way}: {found['seconds_a_hundred_thousand_tokens']:.1f} s per {PER} tokens ({found['of_it_once']:.1f} once), "
            f"{found['over_official']:.2f} of the official way, {found['over_stage_a']:.2f} of stage A"
        )
    print(f"written: {path}")


if __name__ == "__main__":
    main()
