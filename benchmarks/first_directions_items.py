"""How many items of the domain are enough to choose first directions by: the small board's `kfac_natural` with fewer.

    python benchmarks/first_directions_items.py [--task sciq-passages] [--items 16 64 128] [--seeds 3] [--work_dir DIR]

Each is a final of the small board (its test items, its general text, learning rate 0.002 and lambda 0.0001), but for
`init_items`; the board has the same with 512. A training that is finished in --work_dir is not done again. Runs on one thread.
Writes results/studies/first-directions-items.json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from studies import report_head, spread

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.cells import Place
from alora_trainer.experiment.board.rows import BoardRow, Trial
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep.cell import results_of_cell, work_on_cell

BOARD = Path("recipes/boards/small.yaml")
TRIAL = Trial({"tune.learning_rate": 0.002, "alora.lam": 0.0001})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sciq-passages")
    parser.add_argument("--items", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions-items"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/first-directions-items.json"))
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    board = read_board(BOARD)
    task = next(task for task in board.tasks if task.name == options.task)
    places = [Place(board, next(iter(board.models)), task, seed, True) for seed in range(options.seeds)]
    cells = [_cell(place, items, options.work_dir) for place in places for items in options.items]
    rows = []
    for items in options.items:
        own = [cell for cell in cells if cell["items"] == items]
        figures = {name: spread(cell[name] for cell in own) for name in ("learned", "rise", "accuracy")}
        rows.append({"items": items, "seeds": len(own)} | figures)
    report = {
        **report_head(environment() | {"threads": 1}),
        "task": options.task,
        "settings": dict(TRIAL.settings),
        "rows": rows,
        "cells": cells,
    }
    write_json(options.output, report)
    for row in rows:
        print(row)


def _cell(place: Place, items: int, folder: Path) -> dict[str, Any]:
    row = BoardRow(f"natural_{items}", "kfac_natural", None, {"alora.init_items": items}, (TRIAL,))
    (base,) = results_of_cell(work_on_cell(place.base, folder)).values()
    (found,) = results_of_cell(work_on_cell(place.trained(row, TRIAL), folder)).values()
    (before,), (after,) = base.tasks.values(), found.tasks.values()
    learning = place.task.learning
    before_loss, after_loss = base.general.token_cross_entropy, found.general.token_cross_entropy
    figures = learning.figure(base), learning.figure(found), before.acc, after.acc, before_loss, after_loss
    assert None not in figures, f"seed {place.seed}, {items} items: something was not measured"
    return {
        "seed": place.seed,
        "items": items,
        "learned": learning.learned(figures[0], figures[1]),
        "rise": after_loss - before_loss,
        "accuracy": after.acc - before.acc,
    }


if __name__ == "__main__":
    main()
