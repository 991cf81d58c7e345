"""`ALoRAConfig` through the parsers that people put TRL's and transformers' own configurations through."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, TrainingArguments

from alora_trainer import ALoRAConfig, ALoRAError

CASE = Path(__file__).resolve().parents[1] / "cases" / "parsers" / "trl.yaml"
WEIGHTS = '{"q_proj": 1, ".*": 0.5}'
# Every field: what stands on the command line, and what it is then.
GIVEN: dict[str, list[tuple[str, Any]]] = {
    "record": [("path", "path")],
    "full_parameters": [("true", True)],
    "xi": [("1e-2", 0.01), ("10%", "10%")],
    "basis": [("maps/directions", "maps/directions")],
    "omega_device": [("disk", "disk")],
    "fold_every": [("3", 3)],
    "record_tokens": [("1000", 1000)],
    "storage": [("log8", "log8")],
    "storage_device": [("cpu", "cpu")],
    "lam": [("0.3", 0.3), ("0", 0), ("1e-3", 1e-3), ("auto", "auto")],
    "lam_schedule": [("cosine", "cosine")],
    "lam_end_factor": [("2", 2.0)],
    "application": [("decoupled", "decoupled")],
    "budget": [("0.01", 0.01)],
    "probe_steps": [("5", 5)],
    "start": [("bare", "bare")],
    "anchor": [("base", "base")],
    "init_adapter": [("natural_gradient", "natural_gradient"), ("contrastive", "contrastive")],
    "init_items": [("99", 99)],
    "init_damping": [("0.1", 0.1)],
    "init_memory": [("cpu", "cpu")],
    "freeze_a": [("true", True)],
    "log_drift": [("true", True)],
    "missing": [("free", "free")],
    "layer_weights": [("l2", "l2"), ("none", "none"), (WEIGHTS, {"q_proj": 1, ".*": 0.5})],
    "normalize": [("false", False)],
    "allow_other_revision": [("true", True)],
    "backend": [("blocked", "blocked")],
}


def parse(*arguments: str) -> ALoRAConfig:
    (config,) = HfArgumentParser(ALoRAConfig).parse_args_into_dataclasses(list(arguments), look_for_args_file=False)
    return config


def test_every_field_is_tried() -> None:
    assert GIVEN.keys() == {each.name for each in dataclasses.fields(ALoRAConfig)}


def test_an_empty_command_line_gives_the_defaults() -> None:
    assert parse() == ALoRAConfig()


@pytest.mark.parametrize(("name", "text", "value"), [(name, *one) for name, ones in GIVEN.items() for one in ones])
def test_a_field_on_the_command_line(name: str, text: str, value: Any) -> None:
    config = parse(f"--{name}", text)
    got = getattr(config, name)
    assert got == value and type(got) is type(value)
    assert config == dataclasses.replace(ALoRAConfig(), **{name: value})


def test_flags_and_help() -> None:
    assert parse("--no_normalize").normalize is False and parse("--full-parameters").full_parameters is True
    shown = io.StringIO()
    HfArgumentParser(ALoRAConfig).print_help(shown)
    assert "Strength lambda of the penalty" in shown.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lam", "budget"), "lam='budget' must be zero or a positive number, or 'auto'"),
        (("--lam", "nan"), "lam=nan must be"),
        (("--budget", "-1"), "budget=-1.0 must be a positive share"),
        (("--layer_weights", "l3"), "layer_weights='l3' is unknown"),
        (("--layer_weights", "{q: 1}"), "is no JSON"),
        (("--layer_weights", "{}"), "layer_weights is an empty mapping"),
        (("--backend", "fast"), "backend='fast' is unknown"),
    ],
)
def test_what_cannot_be_used_is_said_as_everywhere(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ALoRAError) as caught:
        parse(*arguments)
    assert message in str(caught.value)


def test_numbers_as_text_mean_the_numbers() -> None:
    assert ALoRAConfig(lam="0.3", xi="1e-3", fold_every="2") == ALoRAConfig(lam=0.3, xi=1e-3, fold_every=2)  # type: ignore[arg-type]
    assert ALoRAConfig(layer_weights=None) == ALoRAConfig()
    with pytest.raises(ALoRAError, match="fold_every=1.5 must be a whole number"):
        ALoRAConfig(fold_every="1.5")  # type: ignore[arg-type]


def test_beside_transformers_own_arguments() -> None:
    parser = HfArgumentParser((TrainingArguments, ALoRAConfig))
    _, config = parser.parse_args_into_dataclasses(["--lam", "0.1", "--use_cpu"], look_for_args_file=False)
    assert config == ALoRAConfig(lam=0.1)
    # These two do not pass argparse, and YAML 1.1 leaves 1e-2 a text.
    written = {key: value for key, value in yaml.safe_load(CASE.read_text()).items() if key in GIVEN}
    assert written["xi"] == "1e-2"
    (config,) = HfArgumentParser(ALoRAConfig).parse_dict(written)
    assert (config.xi, config.lam, config.layer_weights) == (0.01, 0.3, {"q_proj": 1.0, ".*": 0.5})


@pytest.mark.parametrize("kind", ["SFTConfig", "DPOConfig"])
def test_beside_trls_own_configurations(kind: str) -> None:
    trl = pytest.importorskip("trl")
    parser = trl.TrlParser((trl.ScriptArguments, getattr(trl, kind), trl.ModelConfig, ALoRAConfig))
    *_, config = parser.parse_args_and_config(["--config", str(CASE), "--dataset_name", "x", "--lam", "0.2"])
    assert config == ALoRAConfig(
        record="projected", xi=0.01, lam=0.2, lam_schedule="linear", fold_every=4, normalize=False,
        layer_weights={"q_proj": 1.0, ".*": 0.5},
    )  # fmt: skip
