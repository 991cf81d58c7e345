"""The plan: against the allocator's own count of real trainings on this machine, and against arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from alora_trainer.artefact.provenance import describe_measured
from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.plan.advice import misfits
from alora_trainer.experiment.recipe.plan.curvature import CurvatureModel
from alora_trainer.experiment.recipe.plan.devices import DEVICES, Device, probe
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.memory import MemoryModel, Pass, Variant
from alora_trainer.experiment.recipe.plan.models import build_model, model_config
from alora_trainer.experiment.recipe.plan.report import format_plan
from alora_trainer.experiment.recipe.plan.sharding import Sharding
from alora_trainer.experiment.recipe.plan.step_trace import trace_step
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import with_fresh_adapter
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.adapted import adapted_weights
from benchmarks.measuring import peak_bytes
from tests.tiny_recipe import write_all

HOST = Device("host", 1e11, 1e10, 1 << 34, overhead_bytes=0, host=True)
SHAPE = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """The tests here plan much the same passes through much the same model, and a trace takes seconds."""
    traces: dict[Any, Any] = {}

    def remembered(model: Any, **shape: Any) -> Any:
        dtypes = tuple((name, p.dtype, p.requires_grad) for name, p in model.named_parameters())
        key = (str(model.config), str(model), dtypes, tuple(sorted(shape.items())))
        if key not in traces:
            traces[key] = trace_step(model, **shape)
        return traces[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.experiment.recipe.plan.memory.trace_step", remembered)
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe(**overrides)`: the tiny recipe around a model whose memory can be measured."""
    path = write_all(tmp_path)
    settings = yaml.safe_load(path.read_text())
    (tmp_path / "shape").mkdir()
    LlamaConfig(**SHAPE).save_pretrained(str(tmp_path / "shape"))
    settings["model"]["path"] = "shape"
    settings["lora"] = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
    settings["general"] |= {"block_length": 96, "train_tokens": 960, "test_bytes": 400}
    settings["domain"]["max_length"] = 96
    settings["map"] = {"storage": "float32"}
    for section in ("record", "tune"):
        settings[section] |= {"per_device_train_batch_size": 6, "max_steps": 2}
    path.write_text(yaml.safe_dump(settings))
    return lambda **overrides: load_recipe(path, overrides)


def measured(recipe: Recipe, section: str, importance: Any = None) -> tuple[int, Any]:
    """The most that one whole training holds, from the loading of the model on, by the allocator's own count."""
    from peft import get_peft_model

    ids = torch.randint(0, 2048, (12, 96)).tolist()
    rows = [{"input_ids": row, "labels": row} for row in ids]
    kept: dict[str, Any] = {}

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        tensors = {key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")}
        return tensors | {"attention_mask": torch.ones_like(tensors["input_ids"])}

    def work() -> None:
        config = model_config(recipe)
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.model.dtype))
        held = importance() if importance is not None else None
        model = get_peft_model(base, recipe.lora_config())
        with torch.no_grad():
            for weight in adapted_weights(model) if held is not None else ():  # it goes on from what was recorded
                weight.a.copy_(held.reference[weight.name].a)
                weight.b.copy_(held.reference[weight.name].b)
        trainer = ALoRATrainer(
            model,
            recipe.training_arguments(section, recipe.base / "out"),
            train_dataset=rows,
            data_collator=collate,
            importance=held,
            alora=ALoRAConfig(record="path", lam=0.0) if held is None else ALoRAConfig(lam=0.1),
        )
        trainer.train()
        kept["importance"] = trainer.importance

    return peak_bytes("cpu", work), kept["importance"]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"record.gradient_checkpointing": "true", "tune.gradient_checkpointing": "true", "model.dtype": "bfloat16"},
    ],
    ids=["float32", "bfloat16 with checkpointing"],
)
def test_the_peaks_are_within_15_percent_of_what_trainings_take(
    recipe: Callable[..., Recipe], overrides: dict[str, str]
) -> None:
    short = {"save_strategy": "no", "per_device_train_batch_size": "3"}
    planned = recipe(**overrides, **{f"{stage}.{key}": short[key] for stage in ("record", "tune") for key in short})
    plan = plan_recipe(planned, HOST)
    stages = {stage.name: stage.held.total for stage in plan.stages}
    recorded, importance = measured(planned, "record")
    assert stages["record"] == pytest.approx(recorded, rel=0.15)
    again = importance.convert("float32")
    held, _ = measured(planned, "tune", lambda: again)
    # The map itself was there before the measuring began.
    assert stages["tune alora"] - plan.memory.omega_bytes("float32") == pytest.approx(held, rel=0.15)


def test_a_map_in_a_basis_is_as_large_as_planned(recipe: Callable[..., Recipe]) -> None:
    """To the byte, with the directions of inputs that several layers share counted once; whichever kind and format."""
    planned = recipe(**{"methods": "kfac,ekfac,covariance", "curvature.keep": "12", "model.dtype": "float32"})
    memory = MemoryModel(build_model(planned, model_config(planned)), autocast=None, host=True)
    model = with_fresh_adapter(AutoModelForCausalLM.from_config(model_config(planned)), planned)
    batch = {"input_ids": torch.randint(0, 2048, (2, 16))}
    found = {kind: estimate_curvature(model, [batch], kind, keep=12) for kind in ("kronecker", "ekfac", "covariance")}
    for storage in ("float32", "bfloat16"):
        settings = replace(planned.curvature, storage=storage)
        curvature = CurvatureModel(memory, settings)
        for kind, one in found.items():
            made = describe_measured(model, adapted_weights(model), one.importance, name=kind)
            assert curvature.map_bytes(kind) == made.convert(settings.format(kind)).nbytes
    whole = CurvatureModel(memory, replace(planned.curvature, parts=1)).sum_bytes("kronecker")
    parts = CurvatureModel(memory, replace(planned.curvature, parts=4)).sum_bytes("kronecker")
    # Four blocks of q, k, v with one input of 256; of o; of gate and up with one; of down with 704.
    inputs, outputs = 3 * 256**2 + 704**2, 2 * 256**2 + 2 * 128**2 + 2 * 704**2 + 256**2
    assert whole == 4 * 4 * (inputs + outputs) and parts == whole // 4


def test_sizes_of_the_paper_models(tmp_path: Path) -> None:
    """Llama-3.2-3B, q and v: the paper's 1.3 GB of importance (fp32), and the parameters that its card names."""
    path = write_all(tmp_path)
    lora = {"lora.r": "8", "lora.target_modules": "q_proj,v_proj", "model.dtype": "bfloat16"}
    sizes = {}
    for name in ("meta-llama/Llama-3.2-3B", "EleutherAI/gpt-j-6b", "meta-llama/Llama-3.1-8B"):
        recipe = load_recipe(path, lora | {"model.path": name})
        sizes[name] = MemoryModel(build_model(recipe, model_config(recipe)), autocast=None, host=False)
    llama, gptj, eight = sizes.values()
    assert llama.parameters == 3_212_749_824 and eight.parameters == 8_030_261_248
    assert gptj.parameters == 6_050_882_784
    assert llama.adapted_elements == 28 * (3072 * 3072 + 1024 * 3072)
    assert llama.omega_bytes("float32") / 1e9 == pytest.approx(1.4, abs=0.1)
    assert gptj.omega_bytes("float32") / 2**30 == pytest.approx(3.5, abs=0.01)
    assert llama.factor_elements == 28 * 8 * (3072 + 3072 + 3072 + 1024)
    assert llama.factor_bytes == 4 * llama.factor_elements  # PEFT trains them in float32 over a bfloat16 base
    assert eight.base_bytes("nf4") < 0.37 * eight.base_bytes(None)


def test_what_does_not_fit_and_what_would(recipe: Callable[..., Recipe]) -> None:
    planned = recipe(methods="base,lora,alora")
    whole = plan_recipe(planned, HOST)
    assert misfits(whole) == [] and "All of it fits" in format_plan(whole)
    peak = {stage.name: stage.held.total for stage in whole.stages}
    small = replace(HOST, name="small", memory_bytes=int(0.55 * peak["tune alora"]), host=False)
    plan = plan_recipe(planned, small)
    found = {misfit.stage.name: misfit for misfit in misfits(plan)}
    assert {"record", "tune alora"} <= set(found)
    for misfit in found.values():
        assert misfit.remedies and all(r.peak_bytes < misfit.stage.held.total for r in misfit.remedies)
        assert misfit.together is not None and misfit.together.peak_bytes <= small.memory_bytes
    text = format_plan(plan)
    assert "tune alora does not fit" in text and "--tune.gradient_checkpointing true" in text
    hopeless = format_plan(plan_recipe(planned, replace(small, memory_bytes=1 << 20), memory=plan.memory))
    assert "nothing that is known here is enough" in hopeless


def test_steps_tokens_and_flops(recipe: Callable[..., Recipe]) -> None:
    planned = recipe(
        **{
            "methods": "base,lora,alora,ewclora,kfac,replay",
            "tune.max_steps": "-1",
            "tune.num_train_epochs": "3",
            "tune.gradient_accumulation_steps": "2",
            "fisher.batch_size": "4",
        }
    )
    plan = plan_recipe(planned, HOST)
    stages = {stage.name: stage for stage in plan.stages}
    measured = ["measure fisher", "measure kronecker"]
    tuned = [f"tune {name}" for name in ("lora", "alora", "ewclora", "kfac", "replay")]
    assert list(stages) == ["record", *measured, *tuned, "evaluate"]
    tune = stages["tune lora"].amount
    assert tune is not None and tune.items == 16 and tune.steps == 6  # 3 micro-batches of 6, 2 steps an epoch
    assert tune.tokens == 6 * 2 * 6 * 96
    record = stages["record"].amount
    assert record is not None and record.items == 4 and record.steps == 2  # all that there is of the 10 asked for
    # Forward and backward through the frozen weights: 4 flops a token and parameter, and a little for the factors.
    linear = 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 704) + 256 * 2048
    flops = plan.memory.trace(Pass(6, 96), False).flops
    assert 4 * linear * 6 * 96 < flops < 5.5 * linear * 6 * 96
    assert stages["tune replay"].held.total > stages["tune lora"].held.total
    assert stages["tune alora"].held.parts["Omega"] == plan.memory.omega_bytes("float32")
    cheap = plan.memory.protecting(Pass(6, 96), Variant(storage="factored"))
    assert cheap.total < stages["tune alora"].held.total
    assert plan.download_bytes == 0 and plan.disk_bytes > plan.memory.omega_bytes("float32")


def test_a_plan_names_the_importance_that_is_made(recipe: Callable[..., Recipe]) -> None:
    for method, *told in (("alora", "w (stage A)", "Omega"), ("kfac", "curvature map")):
        plan = plan_recipe(recipe(methods=method), HOST)
        assert told == [one for one in ("w (stage A)", "Omega", "curvature map") if f"\n  {one} " in format_plan(plan)]
        assert list(plan.upload_bytes) == ["importance map" if method == "alora" else "kronecker map", "adapter"]


def test_equal_work_takes_fewer_steps(recipe: Callable[..., Recipe]) -> None:
    """As many rows of general text as of the domain, of as many tokens: half of the steps, fewer for what distilling costs."""
    steps = {}
    for equal in ("false", "true"):
        options = {
            f"method_options.{name}": f"{{fraction: 1.0, equal_work: {equal}}}" for name in ("replay", "kl_anchor")
        }
        planned = recipe(
            methods="lora,replay,kl_anchor", **{"tune.max_steps": "70", "general.block_length": "96"} | options
        )
        stages = {stage.name: stage.amount for stage in plan_recipe(planned, HOST).stages}
        steps[equal] = [stages[f"tune {name}"].steps for name in ("lora", "replay", "kl_anchor")]
    assert steps == {"false": [70, 70, 70], "true": [70, 35, 30]}


def test_looks_at_general_text_are_work_of_what_a_budget_steers(recipe: Callable[..., Recipe]) -> None:
    """The budget is the default where there is text to watch; each look is a pass forward over the probe's tokens."""
    flops, known = {}, None
    for name, more in (("given", {"alora.lam": "0.1"}), ("steered", {}), ("often", {"alora.probe_steps": "1"})):
        more = {"alora.lam": "null"} | more
        planned = recipe(methods="lora,kfac", **{"general.probe_tokens": "480", "tune.max_steps": "20"} | more)
        plan = plan_recipe(planned, HOST, memory=known)
        known = plan.memory
        found = {stage.name: stage.flops for stage in plan.stages}
        flops[name] = found["tune kfac"]
        assert found["tune lora"] == flops.setdefault("lora", found["tune lora"])
    assert known is not None
    scoring = Pass(planned.evaluation.batch_size, 96, train=False)
    forward = known.trace(scoring, False).flops / (scoring.batch_size * scoring.length)
    # At the start, where lambda is first found (step 2), and every ten steps.
    assert flops["steered"] - flops["given"] == pytest.approx(4 * 480 * forward, rel=1e-6)
    assert flops["often"] - flops["given"] == pytest.approx(21 * 480 * forward, rel=1e-6)


def test_the_choice_of_first_directions(recipe: Callable[..., Recipe]) -> None:
    """Each way of keeping what is summed up, by the bytes of the weights; the sketch saves most of them."""
    peaks, known = {}, None
    for method, memory in (("lora_natural", "device"), ("lora_natural", "sketch"), ("lora_contrastive", "device")):
        planned = recipe(methods=method, **{"alora.init_memory": memory, "alora.init_items": "12"})
        plan = plan_recipe(planned, HOST, memory=known)
        known = plan.memory
        stages = {stage.name: stage for stage in plan.stages}
        assert list(stages) == [stages_before(method), f"choose {method}", f"tune {method}", "evaluate"]
        chosen = stages[f"choose {method}"]
        assert chosen.amount is not None and chosen.amount.items == 12 and chosen.amount.steps == 2
        assert chosen.seconds is not None and chosen.seconds > 0
        peaks[method, memory] = chosen.held.parts["sums"]
    assert peaks["lora_natural", "device"] == 4 * plan.memory.adapted_elements
    shapes = [weight.shape for weight in plan.memory.planned.weights]
    ranks = [weight.rank for weight in plan.memory.planned.weights]
    expected = sum(4 * (2 * rank + 16) * (m + n) for (m, n), rank in zip(shapes, ranks, strict=True))
    assert peaks["lora_natural", "sketch"] == expected < peaks["lora_natural", "device"]
    # q, k and v are given the same, and so are gate and up.
    first = ("q_proj", "o_proj", "gate_proj", "down_proj")
    inputs = [weight.shape[1] for weight in plan.memory.planned.weights if weight.name.endswith(first)]
    assert peaks["lora_contrastive", "device"] == 4 * sum(n * n for n in inputs)


def stages_before(method: str) -> str:
    return "measure covariance" if "contrastive" in method else "measure kronecker"


def test_several_gpus(recipe: Callable[..., Recipe]) -> None:
    """Importance is shared out in any case; the model itself by FSDP2 and ZeRO-3, but for two blocks at a time."""
    settings = {"methods": "alora,kfac", "tune.max_steps": "-1", "tune.num_train_epochs": "3", "model.dtype": "float32"}
    whole = plan_recipe(recipe(**settings), HOST)
    one = {stage.name: stage for stage in whole.stages}
    shared_out = {
        kind: plan_recipe(recipe(**settings), HOST, sharding=Sharding(4, kind), memory=whole.memory)
        for kind in ("none", "zero2", "fsdp2", "zero3")
    }
    plans = {kind: {stage.name: stage for stage in plan.stages} for kind, plan in shared_out.items()}
    for kind, stages in plans.items():
        alone, each = one["tune alora"].held.parts, stages["tune alora"].held.parts
        assert (
            each["Omega"] == -(-alone["Omega"] // 4)
            and stages["record"].held.parts["w"] < one["record"].held.parts["w"]
        )
        assert stages["tune kfac"].held.parts["bases"] == -(-one["tune kfac"].held.parts["bases"] // 4)
        assert each["activations and gradients"] == alone["activations and gradients"]
        assert each["optimizer"] == (alone["optimizer"] if kind == "none" else -(-alone["optimizer"] // 4))
        spread = kind in ("fsdp2", "zero3")
        assert each["base weights"] == (-(-alone["base weights"] // 4) if spread else alone["base weights"])
        assert ("gathered blocks" in each) == spread
        # What is measured at the base weights needs the model whole.
        assert stages["measure kronecker"].held.parts["base weights"] == alone["base weights"]
        first, amount = one["tune alora"].amount, stages["tune alora"].amount
        assert first is not None and amount is not None and (first.steps, amount.steps) == (9, 3)
    model = whole.memory.planned.model
    block = sum(4 * p.numel() for p in model.base_model.model.model.layers[0].parameters())
    gathered = plans["fsdp2"]["tune alora"].held.parts["gathered blocks"]
    assert gathered == pytest.approx(max(2 * block, 4 * 2048 * 256), rel=1e-3)
    for gpus, kind, message in (
        (1, "fsdp2", "say how many, by --gpus"),
        (0, "none", "at least 1"),
        (2, "ddp", "unknown"),
    ):
        with pytest.raises(ALoRAError, match=message):
            Sharding(gpus, kind)


def test_the_command(recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe()
    assert (
        main(["plan", str(tmp_path / "recipe.yaml"), "--device", "A800", "--output", str(tmp_path / "plan.json")]) == 0
    )
    assert "tune alora" in capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["stages"]["record"]["peak_bytes"] > plan["w_bytes"] == plan["omega_bytes"]["float32"]
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--device", "H1000"]) == 2
    assert "is not in the table: use one of H100" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--alora.storage", "kronecker"]) == 2
    assert "keeps kronecker importance, and this is elementwise" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--model.path", "some/model"]) == 2
    assert "a plan downloads nothing: give its config.json with --config" in capsys.readouterr().err
    given = ["--model.path", "some/model", "--config", str(tmp_path / "shape" / "config.json")]
    assert main(["plan", str(tmp_path / "recipe.yaml"), *given]) == 0
    (tmp_path / "bad.json").write_text("[]")
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--config", str(tmp_path / "bad.json")]) == 2


def test_the_probe_measures_this_machine() -> None:
    device = probe(0.05)
    assert device.flops > 1e9 and device.bytes_per_second > 1e8 and device.memory_bytes > 1 << 28
    assert DEVICES["4090"].memory_bytes < DEVICES["H100"].memory_bytes


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    recipe = load_recipe(write_all(tmp_path), {"model.path": "nobody/nothing"})
    with pytest.raises(ALoRAError, match="the configuration of nobody/nothing is not at hand"):
        model_config(recipe)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_in_one_parameter_have_sums_and_maps_of_their_own(
    recipe: Callable[..., Recipe], tmp_path: Path, dtype: str
) -> None:
    shape = {
        "num_hidden_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "head_dim": 16,
    }
    Qwen3MoeConfig(**SHAPE | {"hidden_size": 64, "num_attention_heads": 4} | shape).save_pretrained(
        str(tmp_path / "shape")
    )
    experts = {
        "lora.target_parameters": "[mlp.experts.gate_up_proj, mlp.experts.down_proj]",
        "lora.target_modules": "[q_proj]",
    }
    planned = recipe(**{"methods": "kfac", "model.dtype": dtype, "curvature.keep": "12"} | experts)
    memory = MemoryModel(build_model(planned, model_config(planned)), autocast=None, host=True)
    settings = replace(planned.curvature, storage="float32")
    curvature = CurvatureModel(memory, settings)
    assert curvature.sum_bytes("kronecker") == 4 * (2 * 64**2 + 4 * (64**2 + 48**2 + 24**2 + 64**2))
    model = with_fresh_adapter(AutoModelForCausalLM.from_config(model_config(planned)), planned)
    found = estimate_curvature(model, [{"input_ids": torch.randint(0, 2048, (8, 16))}], keep=12)
    made = describe_measured(model, adapted_weights(model), found.importance, name="kronecker")
    assert curvature.map_bytes("kronecker") == made.convert(settings.format("kronecker")).nbytes
