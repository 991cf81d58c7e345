"""What `transformers.Trainer` refuses is one line that names the section, before the first method is begun."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.training_checks import check_trainings
from alora_trainer.experiment.run.whole_recipe import record_recipe, run_recipe, tune_recipe
from tests.tiny_recipe import write_all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("checks"))


@pytest.fixture
def refusal(tiny: Path) -> Callable[..., str]:
    """`refusal(setting, value)`: what is said of it, in one line, when the recipe is read or before it is run."""

    def check(setting: str, value: str) -> str:
        with pytest.raises(ALoRAError) as refused:
            check_trainings(load_recipe(tiny, {setting: value}), [METHODS["lora"]], recording=True)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    return check


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("eval_strategy", "steps", "eval_dataset"),
        ("eval_on_start", "true", "evaluation data"),
        ("report_to", "nonsense", "nonsense is not supported"),
        ("fsdp", "full_shard", "only works in distributed training"),
        ("learning_rate", "-1", "Invalid learning rate: -1.0"),
        ("adam_beta1", "2", "Invalid beta parameter"),
        ("weight_decay", "-0.1", "weight_decay=-0.1 must not be negative"),
        ("label_smoothing_factor", "2", "must lie between 0 and 1"),
        ("lr_scheduler_type", "cosine_with_min_lr", "min_lr"),
        ("lr_scheduler_type", "warmup_stable_decay", "num_decay_steps"),
        ("lr_scheduler_type", "reduce_lr_on_plateau", "requires an eval strategy"),
        ("lr_scheduler_kwargs", "{nothing: 1}", "unexpected keyword argument 'nothing'"),
        ("optim", "nonsense", "not a valid OptimizerNames"),
        ("optim_args", "x", "not enough values"),
        ("gradient_accumulation_steps", "0", "must be at least 1"),
        ("per_device_train_batch_size", "0", "batch_size should be a positive"),
        ("dataloader_num_workers", "-1", "num_workers option should be non-negative"),
        ("save_strategy", "best", "metric_for_best_model"),
        ("accelerator_config", "none.json", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("section", ["tune", "record"])
def test_what_the_trainer_refuses(
    section: str, setting: str, value: str, reason: str, refusal: Callable[..., str]
) -> None:
    message = refusal(f"{section}.{setting}", value)
    assert message.startswith(f"{section}: ") and reason in message


@pytest.mark.parametrize(
    ("setting", "value", "package"),
    [
        ("report_to", "wandb", "wandb"),
        ("use_liger_kernel", "true", "liger_kernel"),
        ("optim", "galore_adamw", "galore_torch"),
        ("optim", "lomo", "lomo_optim"),
    ],
)
def test_packages_that_are_not_there(setting: str, value: str, package: str, refusal: Callable[..., str]) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    message = refusal(f"tune.{setting}", value)
    assert message.startswith("tune: ") and "install" in message


def test_settings_of_one_method_are_named_and_those_of_no_method_do_not_matter(tiny: Path) -> None:
    own = load_recipe(tiny, {"method_options.alora.tune.learning_rate": "-1"})
    check_trainings(own, [METHODS["lora"]], recording=True)
    with pytest.raises(ALoRAError, match=r"^method_options.alora.tune: Invalid learning rate"):
        check_trainings(own, [METHODS["lora"], METHODS["alora"]], recording=True)
    alone = load_recipe(tiny, {"method_options.si_full.record.optim_args": "x"})
    with pytest.raises(ALoRAError, match=r"^method_options.si_full.record: not enough values"):
        check_trainings(alone, [METHODS["si_full"]], recording=False)
    check_trainings(load_recipe(tiny, {"record.learning_rate": "-1"}), [METHODS["lora"]], recording=False)
    check_trainings(load_recipe(tiny, {"tune.learning_rate": "-1"}), [METHODS["base"]], recording=False)


def test_an_adapter_that_does_not_fit_is_known_before_any_training(tiny: Path, tmp_path: Path) -> None:
    """Of the last method alone, and of the recording, which `--overwrite` would have removed by then."""
    for setting in ("lora", "method_options.lora.lora", "method_options.alora.lora"):
        recipe = load_recipe(tiny, {f"{setting}.target_modules": "[nothing]", "alora.start": "merged"})
        with pytest.raises(ALoRAError, match="lora does not fit the model: .*nothing"):
            run_recipe(recipe, output_dir=tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run").exists()
    recipe = load_recipe(tiny, {"method_options.alora.lora.target_modules": "[nothing]"})
    check_trainings(recipe, [METHODS["lora"]], recording=True)


def test_good_settings_pass(tiny: Path) -> None:
    for settings in (
        {},
        {"tune.lr_scheduler_type": "cosine_with_min_lr", "tune.lr_scheduler_kwargs": "{min_lr: 1e-5}"},
        {"tune.label_smoothing_factor": "0.1", "tune.neftune_noise_alpha": "5", "tune.optim": "sgd"},
    ):
        check_trainings(load_recipe(tiny, settings), [METHODS["lora"], METHODS["alora"]], recording=True)


def test_every_command_asks_before_it_writes(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny, {"tune.learning_rate": "-1", "record.learning_rate": "-1"})
    with pytest.raises(ALoRAError, match="record: Invalid learning rate"):
        run_recipe(recipe, output_dir=tmp_path / "run")
    with pytest.raises(ALoRAError, match="record: Invalid learning rate"):
        record_recipe(recipe, output_dir=tmp_path / "run")
    with pytest.raises(ALoRAError, match="tune: Invalid learning rate"):
        tune_recipe(recipe, METHODS["lora"], output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
