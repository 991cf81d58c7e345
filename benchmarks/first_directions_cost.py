"""What choosing an adapter's first directions costs: time and memory beside PEFT's own LoRA-GA, EVA and CorDA.

    python benchmarks/first_directions_cost.py [--quick] [--rounds 3] [--output_dir results/benchmarks]

On base-5m and its general text (../shared); LoRA of rank 8 on all linear layers, all ways from the same rows of 128 tokens, in
batches of 8:

    natural_gradient         ours; gradients kept whole, as PEFT's LoRA-GA keeps them
    natural_gradient sketch  ours; thin products, in twice the passes
    contrastive              ours; no backward pass
    lora_ga, eva, corda      PEFT's, by the functions that its documentation names (CorDA knowledge-preserved, a row at a time)

Ours need a map of general curvature besides, which is measured once for a base model and then serves every domain: what that
takes from as many tokens stands beside them (`map kronecker`, `map covariance`). Every way begins with a copy of the base that
nothing has touched, whose making is not timed. Seconds are processor time, memory is the allocator's peak beyond the model.
EVA alone takes as many passes as its directions need to stand still (PEFT sets no limit; here it is given up after 20, and the
report says so: its seconds are then those of 20 passes). Writes first-directions-cost-cpu.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import machine, peak_bytes, processor_seconds, spread
from models import LINEAR
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import AutoModelForCausalLM, AutoTokenizer

from alora_trainer import ImportanceMap, initialize_adapter
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.data.sources import read_lines
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.weights.adapted import adapted_weights

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
BATCH, LENGTH, RANK, KEEP = 8, 128, 8, 32
EVA_PASSES = 20

Batches = list[dict[str, torch.Tensor]]


class GivenUp(Exception):
    """EVA's directions have not stood still after so many passes."""


def text_batches(rows: int) -> Batches:
    """So many rows of real text, in batches."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "base-5m")
    ids: list[int] = []
    for line in read_lines(SHARED / "data" / "general" / "books" / "train.jsonl.gz"):
        ids += tokenizer(line["text"])["input_ids"]
        if len(ids) >= rows * LENGTH:
            break
    blocks = torch.tensor(ids[: rows * LENGTH]).view(rows, LENGTH)
    return [{"input_ids": block, "labels": block.clone()} for block in blocks.split(BATCH)]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=4 * RANK, target_modules=LINEAR, **settings)


class Ways:
    """Each way to begin, from a copy of the base model.

    Args:
        base: the base model.
        batches: what all ways look at.
    """

    def __init__(self, base: Any, batches: Batches) -> None:
        self.base, self.batches = base, batches
        self.given_up: set[str] = set()
        model = get_peft_model(copy.deepcopy(base), lora())
        self.maps = {kind: self.map_of(model, kind) for kind in ("kronecker", "covariance")}

    def map_of(self, model: Any, kind: str) -> ImportanceMap:
        found = estimate_curvature(model, self.batches, kind, keep=KEEP)
        return map_at_present(model, adapted_weights(model), found.importance, ImportanceInfo())

    def ours(self, base: Any, kind: str, general: str, memory: str = "device") -> None:
        model = get_peft_model(base, lora())
        initialize_adapter(model, self.maps[general], self.batches, kind, memory=memory)

    def lora_ga(self, base: Any) -> None:
        config = lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

        def sum_gradients() -> None:
            for batch in self.batches:
                base(**batch, use_cache=False).loss.backward()

        preprocess_loraga(base, config, train_step=sum_gradients)
        get_peft_model(base, config)

    def eva(self, base: Any) -> None:
        model = get_peft_model(base, lora(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)))
        forwards = 0

        def forward(model: Any, batch: dict[str, torch.Tensor]) -> Any:
            nonlocal forwards
            forwards += 1
            if forwards > EVA_PASSES * len(self.batches):
                raise GivenUp
            return model(**batch, use_cache=False)

        try:
            initialize_lora_eva_weights(model, self.batches, forward_fn=forward, show_progress_bar=False)
        except GivenUp:
            self.given_up.add("eva")

    def corda(self, base: Any) -> None:
        config = lora(init_lora_weights="corda", corda_config=CordaConfig(corda_method="kpm"))

        def read_text() -> None:
            with torch.no_grad():
                for batch in self.batches:
                    for row in batch["input_ids"]:
                        base(input_ids=row[None])

        preprocess_corda(base, config, run_model=read_text)
        get_peft_model(base, config)

    def all(self) -> Mapping[str, Callable[[Any], None]]:
        """By name; each takes a base model of its own, which it may change."""
        return {
            "natural_gradient": lambda base: self.ours(base, "natural_gradient", "kronecker"),
            "natural_gradient sketch": lambda base: self.ours(base, "natural_gradient", "kronecker", "sketch"),
            "contrastive": lambda base: self.ours(base, "contrastive", "covariance"),
            "lora_ga": self.lora_ga,
            "eva": self.eva,
            "corda": self.corda,
            "map kronecker": lambda base: self._measure(base, "kronecker"),
            "map covariance": lambda base: self._measure(base, "covariance"),
        }

    def _measure(self, base: Any, kind: str) -> None:
        self.map_of(get_peft_model(base, lora()), kind)


def measure(ways: Ways, rounds: int) -> dict[str, Any]:
    """By way: processor seconds of every round, after one to warm up, and the peak of memory."""
    times: dict[str, list[float]] = {name: [] for name in ways.all()}
    for each in range(rounds + 1):
        for name, way in ways.all().items():
            base = copy.deepcopy(ways.base)
            seconds = processor_seconds(lambda way=way, base=base: way(base))
            print(f"round {each}, {name}: {seconds:.2f} s", flush=True)
            if each:
                times[name].append(seconds)
    found = {}
    for name, way in ways.all().items():
        base = copy.deepcopy(ways.base)
        peak = peak_bytes("cpu", lambda way=way, base=base: way(base))
        found[name] = {"seconds": spread(times[name]), "peak_bytes": peak, "finished": name not in ways.given_up}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, once")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit("this benchmark needs real text and a model that has learned it: ../shared is not here")
    torch.set_num_threads(1)
    rows, rounds = (64, 1) if options.quick else (options.rows, options.rounds)
    base = AutoModelForCausalLM.from_pretrained(SHARED / "models" / "base-5m", dtype=torch.float32).eval()
    found = measure(Ways(base, text_batches(rows)), rounds)
    facts = {
        "eva_passes": EVA_PASSES,
        "rows": rows,
        "length": LENGTH,
        "batch": BATCH,
        "rank": RANK,
        "kept_directions": KEEP,
    }
    report = {
        "schema": 1,
        "command": shlex.join(["python", "benchmarks/first_directions_cost.py", *sys.argv[1:]]),
        **facts,
    }
    report |= {"machine": machine("cpu"), "ways": found}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "first-directions-cost-cpu.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    for name, each in found.items():
        more = "" if each["finished"] else ", not finished"
        print(f"{name}: {each['seconds']['median']:.2f} s, {each['peak_bytes'] / 2**20:.1f} MiB beyond the model{more}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
