"""Bytes of importance in a basis for whole models, from the formats' own types: what is stored once counts once.

python benchmarks/curvature_bytes.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.kinds.in_basis import InBasis

KEPT: tuple[int | None, ...] = (16, 64, 256, None)
KINDS = ("kronecker", "ekfac", "covariance")
DTYPES = {"float32": "", "bfloat16": "_bfloat16"}
# What arXiv 2501.13669 says of its own importance of q_proj and v_proj, and of EWCLoRA's, in GB.
PUBLISHED = {"Llama-3.2-3B": {"paper, ALoRA": 1.3, "paper, EWCLoRA": 11.97}}


@dataclass(frozen=True)
class Llama:
    """The shapes of a Llama's linear layers.

    Attributes:
        hidden: width.
        layers: how many.
        keys: width of the keys' and of the values' projections.
        inner: width of the multilayer perceptron.
    """

    hidden: int
    layers: int
    keys: int
    inner: int

    def inputs(self) -> dict[str, dict[str, tuple[int, int]]]:
        """By the input that they share, the layers of one block with their (m, n)."""
        d = self.hidden
        return {
            "attention": {"q_proj": (d, d), "k_proj": (self.keys, d), "v_proj": (self.keys, d)},
            "heads": {"o_proj": (d, d)},
            "perceptron": {"gate_proj": (self.inner, d), "up_proj": (self.inner, d)},
            "inner": {"down_proj": (d, self.inner)},
        }


MODELS = {
    "Llama-3.2-3B": Llama(hidden=3072, layers=28, keys=1024, inner=8192),
    "Llama-3.1-8B": Llama(hidden=4096, layers=32, keys=1024, inner=14336),
}
TARGETS = {
    "q,v": ("q_proj", "v_proj"),
    "all linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def model_bytes(model: Llama, targets: Iterable[str], format: type[InBasis], keep: int | None) -> dict[str, int]:
    """All weights of a model: with vectors of its own for each, and with those of a shared input once."""
    alone = shared = 0
    for group in model.inputs().values():
        shapes = [shape for name, shape in group.items() if name in targets]
        alone += sum(format.stored_bytes(shape, keep) for shape in shapes)
        shared += sum(format.stored_bytes(shape, keep, inputs_shared=number > 0) for number, shape in enumerate(shapes))
    return {"each_its_own": alone * model.layers, "shared_once": shared * model.layers}


def bytes_of_models() -> dict[str, Any]:
    """By model and targets: bytes of element-wise importance, and of each kind by directions and dtype of the vectors."""
    report: dict[str, Any] = {}
    for model_name, model in MODELS.items():
        for targets_name, targets in TARGETS.items():
            shapes = [shape for group in model.inputs().values() for name, shape in group.items() if name in targets]
            elementwise = {
                name: model.layers * sum(FORMATS[name].made_bytes(shape) for shape in shapes)
                for name in ("float32", "bfloat16", "log8")
            }
            rows = []
            for kind in KINDS:
                for keep in KEPT:
                    row: dict[str, Any] = {"kind": kind, "keep": keep}
                    for dtype, ending in DTYPES.items():
                        format = FORMATS[kind + ending]
                        assert issubclass(format, InBasis)
                        row[dtype] = model_bytes(model, targets, format, keep)
                    rows.append(row)
            report[f"{model_name}, {targets_name}"] = {
                "element-wise": elementwise, "in_basis": rows,
                "published_gigabytes": PUBLISHED.get(model_name, {}) if targets_name == "q,v" else {},
            }  # fmt: skip
    return report


def print_bytes(report: dict[str, Any]) -> None:
    """As Markdown tables, in GB (1e9 bytes), shared vectors once."""
    for name, case in report.items():
        beside = {f"element-wise {key}": value / 1e9 for key, value in case["element-wise"].items()}
        print(
            f"\n{name}, GB; " + ", ".join(f"{k} {v:.2f}" for k, v in {**beside, **case["published_gigabytes"]}.items())
        )
        print("\n| kind, vectors | " + " | ".join(f"k {'all' if k is None else k}" for k in KEPT) + " |")
        print("|---|" + "---|" * len(KEPT))
        for kind in KINDS:
            for dtype in DTYPES:
                cells = [row[dtype]["shared_once"] / 1e9 for row in case["in_basis"] if row["kind"] == kind]
                print(f"| {kind}, {dtype} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    report = {"schema": 1, "command": "python benchmarks/curvature_bytes.py", "models": bytes_of_models()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "curvature-bytes.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print_bytes(report["models"])
    print(f"written: {path}")


if __name__ == "__main__":
    main()
