"""Everything that needs a GPU, in one command within a budget of seconds: what is right, what it costs, what it takes.

    python benchmarks/gpu.py [--seconds 420] [--device cuda|cpu] [--quick] [--parts NAME ...] [--resume] [--output FILE]

Run from anywhere; no network, and no package but torch, triton, transformers, peft, accelerate, safetensors and numpy (and
bitsandbytes, where there is one). Text is random tokens, made on the device; weights are random, of the models' true shapes.

The most important comes first. Every part is timed, and in the JSON as soon as it has ended, so that a run that is cut off
loses one part; ``--resume`` goes on with the rest, on the same card. What would not fit into what is left of the budget, by an
estimate, is skipped with that reason, and a part that fails is recorded with its error: then the command ends with 1.
``--parts`` takes names, or their beginnings. ``--device cpu --quick`` runs all of it on tiny shapes, to see that it runs.

Writes results/benchmarks/gpu-CARD.json.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before anything that reads it is imported
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(1, str(ROOT))  # the package need not be installed, and what is measured is what lies here

import psutil  # noqa: E402  (accelerate brings it)
import torch  # noqa: E402
from gpu_parts.bandwidth import bandwidth_shares  # noqa: E402
from gpu_parts.eight_billion import eight_billion  # noqa: E402
from gpu_parts.kernels import correct_kernels  # noqa: E402
from gpu_parts.memory import memory_over_plain  # noqa: E402
from gpu_parts.recorded import correct_recording  # noqa: E402
from gpu_parts.recording_cost import recording_costs  # noqa: E402
from gpu_parts.schedule import Budget, Part, Report, work_through  # noqa: E402
from gpu_parts.settings import GPT_J, LLAMA, Settings  # noqa: E402
from gpu_parts.side_by_side import many_runs  # noqa: E402
from gpu_parts.steps import step_costs  # noqa: E402
from gpu_parts.trained import correct_training  # noqa: E402
from gpu_parts.training import clear_up  # noqa: E402
from measuring import machine  # noqa: E402

from alora_trainer.basics.versions import software_versions  # noqa: E402

# Seconds past the budget after which a part that hangs in a call of the device is ended with the process.
GRACE = 30

# In order of importance: name, in a line, seconds at most on a GPU, what it runs. The estimates are from arithmetic and wait,
# as all figures do, for a GPU.
PARTS: tuple[tuple[str, str, float, Any], ...] = (
    ("1-kernels", "penalty kernels of every format and basis against float64", 40, correct_kernels),
    ("1-recording", "side stream, host memory, late folding against the plain way in float64", 20, correct_recording),
    ("1-training", "fp16 with its scaler, bf16, torch.compile, streamed importance, kill and resume", 75, correct_training),
    ("2-llama-qv", "stage A and B over plain LoRA, Llama-3.2-3B's q and v", 45, step_costs(LLAMA, "q,v")),
    ("2-gptj-qv", "stage A and B over plain LoRA, GPT-J-6B's q and v", 60, step_costs(GPT_J, "q,v")),
    ("2-llama-all", "stage A and B over plain LoRA, Llama-3.2-3B's linear layers", 60, step_costs(LLAMA, "all linear")),
    ("2-gptj-all", "stage A and B over plain LoRA, GPT-J-6B's linear layers", 80, step_costs(GPT_J, "all linear")),
    ("3-llama", "seconds per 1,000 samples of every way to find importance, Llama-3.2-3B", 70, recording_costs(LLAMA)),
    ("3-gptj", "seconds per 1,000 samples of every way to find importance, GPT-J-6B", 100, recording_costs(GPT_J)),
    ("4-bandwidth", "the kernels' share of the copy bandwidth, and torch.compile", 60, bandwidth_shares),
    ("5-memory", "peak memory over plain LoRA, Llama-3.2-3B", 45, memory_over_plain),
    ("6-8b", "stage A and B over plain LoRA, an 8B's linear layers, NF4 and bf16", 60, eight_billion),
    ("7-many", "the board's small model in many runs side by side", 30, many_runs),
)  # fmt: skip


def parts_of(settings: Settings, wanted: list[str] | None) -> list[Part]:
    """Those that are wanted, in order; their estimates hold for a GPU, and of a quick run nobody can say less than seconds.

    Raises:
        ValueError: there is no part of such a name.
    """
    for name in wanted or ():
        if not any(part[0].startswith(name) for part in PARTS):
            raise ValueError(f"there is no part {name!r}: use some of {', '.join(part[0] for part in PARTS)}")

    def run(part: Any) -> Any:
        return lambda figures, budget: part(settings, figures, budget)

    return [
        Part(name, what, 10.0 if settings.quick else seconds, run(part))
        for name, what, seconds, part in PARTS
        if not wanted or any(name.startswith(one) for one in wanted)
    ]


def head_of(settings: Settings, seconds: float) -> dict[str, Any]:
    """What the run is, once."""
    found = machine(settings.device)
    return {
        "schema": 1,
        "command": f"python benchmarks/gpu.py --device {settings.device}{' --quick' * settings.quick}",
        "card": found["device"],
        "settings": {"device": settings.device, "quick": settings.quick},
        "machine": found | software_versions("accelerate", "safetensors", "huggingface_hub"),
        "budget_seconds": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few rounds, to see that it runs")
    parser.add_argument("--seconds", type=float, default=420, help="the budget, from the process's start")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="names of parts or their beginnings")
    parser.add_argument(
        "--resume", action="store_true", help="keep the parts that the output has, done on the same card"
    )
    parser.add_argument("--output", type=Path, help="results/benchmarks/gpu-CARD.json, if it is not said")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu --quick shows that it runs")
    settings = Settings(options.device, options.quick)
    budget = Budget(options.seconds, spent=time.time() - psutil.Process().create_time())
    head = head_of(settings, options.seconds)
    card = re.sub(r"[^a-z0-9]+", "-", str(head["card"]).lower()).strip("-")
    path = options.output or ROOT / "results" / "benchmarks" / f"gpu-{card}.json"
    try:
        parts = parts_of(settings, options.parts)
        report = Report(path, head, resume=options.resume)
    except ValueError as error:
        parser.error(str(error))
    faulthandler.dump_traceback_later(max(budget.left(), 0) + GRACE, exit=True)
    failed = work_through(
        parts, report, budget, between=lambda: clear_up(settings.device), say=lambda line: print(line, flush=True)
    )
    faulthandler.cancel_dump_traceback_later()
    print(f"{failed} of {len(parts)} parts failed; {max(budget.left(), 0):.0f} s are left. written: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
