"""The learning rate by short trainings: successive halving, judged on items that are neither trained on nor in the test."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from alora_trainer.data.domain import tokenize_domain
from alora_trainer.data.items import split_records
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.fit.validation import VALIDATION, without_questions
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.reading import build_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, place, release_memory, with_saved_adapter
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.penalty.strength.probe import Probe

logger = logging.getLogger(__name__)

PROBES = "probes"
# The rates that are tried, as shares of the one that goes by the model's size: half of them go on with twice the steps.
FACTORS = (0.25, 0.5, 1.0, 2.0)
_LEAST_STEPS = 2


def found_rate(
    written: Mapping[str, Any],
    folder: Path,
    method: Method,
    *,
    steps: int,
    share: float,
    importance: str | None,
    tokenizer: Any,
) -> float:
    """The learning rate after whose short training the validation's answers are likeliest, all held by the same budget.

    Args:
        written: the recipe as plain data; its paths start from the result's folder.
        folder: of the result; what is trained goes into ``probes``, the map, too.
        method: that is trained.
        steps: of the whole training.
        share: of them that all short trainings together may take.
        importance: a map to hold them by, instead of measuring one.
        tokenizer: the base model's.
    """
    probes = folder / PROBES
    stage = Stage(
        probes / "rate", {"recipe": dict(written), "method": method.name, "steps": steps, "share": share}, "rate"
    )
    stage.begin(overwrite=True)
    finished = stage.finished()
    if finished is not None:
        return float(finished["rate"])
    train, validation = _parts(folder)
    rates, tried = [float(written["tune"]["learning_rate"]) * factor for factor in FACTORS], []
    # Two rounds of as many steps: four rates, and two of them for twice as long.
    length = max(_LEAST_STEPS, int(share * steps / (2 * len(FACTORS))))
    while True:
        losses = {}
        for rate in rates:
            short, name = _short(written, folder, rate, length, train, validation), f"{rate:g}-{length}"
            run = Run(short, probes, variant=name, importance=importance, overwrite=True)
            losses[rate] = _loss(run, method, tokenizer)
            tried.append({"rate": rate, "steps": length, "loss": losses[rate]})
            logger.info(f"learning rate {rate:g}, {length} steps: {losses[rate]:.4f} nats a token on validation")
        rates = sorted(losses, key=losses.__getitem__)[: max(1, len(rates) // 2)]
        if len(losses) <= 2:
            break
        length *= 2
    stage.finish({"rate": rates[0], "tried": tried})
    return rates[0]


def _parts(folder: Path) -> tuple[str, str]:
    """The items to train on and to judge by; of few items, some of the training items are not trained on here."""
    if (folder / "data" / VALIDATION).exists():
        return "data/train.jsonl", f"data/{VALIDATION}"
    records = read_lines(folder / "data" / "train.jsonl")
    train, judged = without_questions(*split_records(records, by="item", items=max(1, len(records) // 5)))
    write_lines(folder / "data" / "probe_train.jsonl", train)
    write_lines(folder / "data" / "probe_validation.jsonl", judged)
    return "data/probe_train.jsonl", "data/probe_validation.jsonl"


def _short(written: Mapping[str, Any], folder: Path, rate: float, steps: int, train: str, validation: str) -> Recipe:
    tune = {key: value for key, value in written["tune"].items() if key != "num_train_epochs"}
    return build_recipe(
        {
            **written,
            "tune": tune | {"learning_rate": rate, "max_steps": steps, "save_strategy": "no"},
            "domain": {**written["domain"], "train": train, "test": validation},
        },
        base=folder,
    )


def _loss(run: Run, method: Method, tokenizer: Any) -> float:
    """Nats a token of the validation's right answers after the training."""
    run.tune(method)
    recipe, domain = run.recipe, run.recipe.domain
    trained = run.folder / run.steps.place(method) / "adapter"
    model: Any = with_saved_adapter(load_base(recipe), trained, trainable=False)
    place(model, recipe.training_arguments("tune", run.folder).device)
    rows = tokenize_domain(
        get_task(domain.task),
        run.prepare_data().test,
        tokenizer,
        max_length=domain.max_length,
        loss_on=domain.loss_on,
        too_long=domain.too_long,
    )
    probe = Probe(rows, int(recipe.curvature.batch_size))
    loss = probe.loss(probe.evaluate(model, Accelerator()))
    del model
    release_memory()
    return loss
