"""What `transformers.Trainer` would refuse of a recipe's settings, asked before the first training begins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import is_liger_kernel_available
from transformers.utils import logging as transformers_logging

from alora_trainer.basics.processes import launched
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.adapter_checks import check_adapters
from alora_trainer.experiment.run.training_recipe import as_planned, check_saved

# What the libraries raise for a setting that they refuse, or for a package that is not there.
_REFUSALS = (ValueError, TypeError, ImportError, RuntimeError, NotImplementedError, OSError)
_STEPS = 10  # of the training that the scheduler is made for: any number does


def check_trainings(recipe: Recipe, methods: Sequence[Method], *, recording: bool) -> None:
    """Make the trainer, optimizer, scheduler and loader of every training, of a model of a hundred parameters.

    Args:
        recipe: the recipe.
        methods: that are trained.
        recording: whether the recording that methods share is made, too.

    Raises:
        ALoRAError: a recipe and a method do not go together, `Trainer` refuses a setting (the message names the section), or an
            adapter does not fit the model.
    """
    seen: list[tuple[str, dict[str, Any]]] = []
    for one, section, name in _trainings(recipe, methods, recording):
        if (section, getattr(one, section)) not in seen:
            seen.append((section, getattr(one, section)))
            _check(one, section, name)
    check_adapters(recipe, methods, recording=recording)


def _trainings(recipe: Recipe, methods: Sequence[Method], recording: bool) -> Iterable[tuple[Recipe, str, str]]:
    """Each training as (the recipe that it goes by, its section, how to call that)."""
    if recording:
        check_saved(recipe.lora_config(), "the recorded adapter", given=False)
        yield recipe, "record", "record"
    for method in methods:
        own = as_planned(recipe, method, recording=recording)
        if method.records_alone:
            named = f"method_options.{method.name}.record" if recipe.options(method).record else "record"
            yield recipe.for_own_recording(method), "record", named
        if method.trains:
            yield own, "tune", f"method_options.{method.name}.tune" if recipe.options(method).tune else "tune"


def _check(recipe: Recipe, section: str, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="alora-check-") as folder:
        arguments = recipe.training_arguments(section, folder)
        reason = _wrong(arguments)
        # What shards a model over processes is set up once, by the trainer that trains.
        if reason is None and not (arguments.deepspeed or launched() > 1 and arguments.fsdp):
            reason = _refusal(arguments)
    if reason is not None:
        raise ALoRAError(f"{name}: {reason}")


def _wrong(arguments: TrainingArguments) -> str | None:
    """What `Trainer` finds out in the middle of a training, or never."""
    if arguments.gradient_accumulation_steps < 1:
        return f"gradient_accumulation_steps={arguments.gradient_accumulation_steps} must be at least 1"
    if arguments.weight_decay < 0:
        return f"weight_decay={arguments.weight_decay} must not be negative"
    if not 0 <= arguments.label_smoothing_factor < 1:
        return f"label_smoothing_factor={arguments.label_smoothing_factor} must lie between 0 and 1"
    if arguments.eval_on_start:
        return "eval_on_start needs evaluation data, which a recipe's trainings have not: use evaluation.curve_steps"
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        return "use_liger_kernel needs a package that is not installed: pip install liger-kernel"
    return None


def _refusal(arguments: TrainingArguments) -> str | None:
    """Why no trainer can be made; None if one can."""
    arguments.push_to_hub = False  # nothing is to be made on the Hub before there is something to push
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        trainer = Trainer(_smallest_model(), arguments, train_dataset=[{"input_ids": [0], "labels": [0]}] * 2)
        trainer.create_optimizer_and_scheduler(_STEPS)
        trainer.get_train_dataloader()
    except _REFUSALS as error:
        if arguments.optim_target_modules and not isinstance(error, ImportError):
            return None  # they are another model's
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0]
    finally:
        transformers_logging.set_verbosity(before)
    return None


def _smallest_model() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=2, hidden_size=4, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1, pad_token_id=0
    )
    model: torch.nn.Module = LlamaForCausalLM(config)
    return model
