"""A board's JSON made of formulas: rows that forget so much times what they learn squared, with noise by seed."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from alora_trainer.experiment.board.board_json import SCHEMA
from alora_trainer.experiment.board.measures import MEASURES, Samples
from alora_trainer.experiment.board.summary import RowFound, Rules, choose_finals, summarise

SEEDS = (0, 1, 2)
RULES = Rules(
    reference="lora",
    against=("lora",),
    rows=("lora", "kfac", "<b>low"),
    shares=(0.9, 0.95),
    points=4,
    seeds=SEEDS,
    resamples=199,
)
ITEMS, DOCUMENTS = 80, 40


def figures(learned: float, rise: float) -> dict[str, Any]:
    """All figures of one training, given the two that matter."""
    return {
        "learned": learned,
        "accuracy": 0.3 + learned / 5,
        "choices": 1.4 - learned,
        "rise": rise,
        "rise_recorded": 0.8 * rise,
        "rise_other": 1.2 * rise,
        "kl": 1.1 * rise,
        "top_changed": min(1.0, 2 * rise),
        "lost": 0.05,
        "won": 0.1,
        "lost_adjusted": 0.01,
        "won_adjusted": 0.08,
        "rises": {"books": 0.8 * rise, "code": 1.2 * rise},
    }


def samples(learned: float, rise: float, seed: int) -> Samples:
    """Item by item, with the same items and documents for all."""
    chance = np.random.default_rng(seed)
    tokens = np.arange(1, DOCUMENTS + 1, dtype=float)
    return Samples(
        loss=tokens * (3 + rise + chance.normal(0, 0.01, DOCUMENTS)),
        tokens=tokens,
        choice_loss=1.4 - learned + chance.normal(0, 0.1, ITEMS),
        correct=(chance.random(ITEMS) < 0.3 + learned / 5).astype(float),
        choices=[4] * ITEMS,
    )


def row(name: str, slope: float, gains: tuple[float, ...], noise: float = 0.0) -> RowFound:
    """A row that forgets ``slope * learned**2``, with trials that learn so much."""
    labels = [f"learning_rate={gain:g}" for gain in gains]
    settings = [{"tune.learning_rate": gain} for gain in gains]
    return RowFound(name, labels, settings, [figures(gain, slope * gain**2) for gain in gains])


def rows_with_finals(noise: float = 0.01) -> list[RowFound]:
    """lora, a row that forgets a tenth, and one that never learns enough."""
    rows = [
        row("lora", 0.2, (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)),
        row("kfac", 0.02, (0.2, 0.4, 0.6, 0.8, 0.9, 1.1)),
        row("<b>low", 0.1, (0.05, 0.1, 0.2, 0.3, 0.35, 0.4)),
    ]
    chance = random.Random(0)
    for one, slope in zip(rows, (0.2, 0.02, 0.1), strict=True):
        one.chosen = choose_finals(one, rows[0], RULES)
        for place in one.chosen:
            gain = one.points[place][0]
            for seed in SEEDS:
                own = gain * (1 + noise * chance.gauss(0, 1))
                found = figures(own, slope * own**2) | {"correct": "ff"}
                one.finals.setdefault(place, {})[seed] = found
                one.samples.setdefault(place, {})[seed] = samples(own, slope * own**2, seed)
    return rows


def made_up_board(name: str = "made-up", model: str = "little", **changes: Any) -> dict[str, Any]:
    """A whole board.json."""
    rows = rows_with_finals()
    result = {
        "model": model,
        "task": "sums",
        "learning": "choice_cross_entropy",
        "recorded": ["books"],
        "other": ["code"],
        "base": {
            "learning": 1.4,
            "accuracy": 0.3,
            "choices": 1.4,
            "chance": 0.25,
            "cross_entropy": 3.0,
            "items": ITEMS,
        },
        "not_finished": ["replay"],
        "trials": [
            {
                "row": one.name,
                "trial": label,
                "settings": dict(given),
                "final": place in one.chosen,
                "validation": found,
            }
            for one in rows
            for place, (label, given, found) in enumerate(zip(one.labels, one.settings, one.validation, strict=True))
        ],
        "finals": [
            {"row": one.name, "trial": one.labels[place], "seeds": {str(seed): own for seed, own in seeds.items()}}
            for one in rows
            for place, seeds in one.finals.items()
        ],
        **summarise(rows, RULES),
    }
    names = [*(one.name for one in rows), "replay"]
    return {
        "schema": SCHEMA,
        "board": name,
        "title": f"A board called {name} & </script>",
        "command": f"alora board {name}.yaml",
        "complete": False,
        "left_out": "what <i>nobody</i> had time for",
        "written": {},
        "environment": {},
        "measures": {key: dataclasses.asdict(measure) for key, measure in MEASURES.items()},
        "rows": [{"name": one, "method": "lora", "text": f"the row {one}", "settings": {}} for one in names],
        "published": [
            {
                "name": "Others",
                "source": "a paper",
                "task": "sums",
                "points": [{"label": "theirs", "accuracy": 0.4, "rise": 0.05}],
            }
        ],
        "results": [result],
    } | changes
