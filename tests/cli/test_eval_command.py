"""`alora eval`: several processes, merged models, the gate, and everything that its options change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.basics.scores import GeneralScore
from alora_trainer.cli.command_line import main
from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.gate import parse_rise, parse_share, run_gate
from alora_trainer.experiment.report.method_result import MethodResult
from tests.tiny_recipe import make_collecting_cheap, write_all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("eval"))


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `lora` was tuned, so strongly that other answers come out."""
    folder = tmp_path_factory.mktemp("trained")
    command = ["tune", str(tiny), "--method", "lora", "--output_dir", str(folder), "--tune.learning_rate", "0.3"]
    assert main(command) == 0
    return folder


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


@pytest.fixture
def evaluate(tiny: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`evaluate(*options)`: the entries of results.json after `alora eval` in a fresh folder."""

    def run(*options: str) -> dict[str, Any]:
        assert main(["eval", str(tiny), "--output_dir", str(tmp_path / "out"), *options]) == 0
        return dict(json.loads((tmp_path / "out" / "results.json").read_text())["methods"])

    return run


def test_two_processes_find_what_one_finds(tiny: Path, tmp_path: Path) -> None:
    options = ["--evaluation.kl_tokens", "40", "--model", str(tiny.parent / "model")]
    assert main(["eval", str(tiny), "--output_dir", str(tmp_path / "one"), *options]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "alora_trainer.cli", "eval", str(tiny), "--output_dir", str(tmp_path / "two"), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| model ") == 1  # one process prints
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    assert one["methods"] == two["methods"]
    samples = [(tmp_path / name / "model" / "samples.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1] and samples[0].count("\n") > 8


def test_an_adapter_and_the_same_merged(
    tiny: Path, trained: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = str(trained / "lora" / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny.parent / "model", dtype="float32")
    PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(tmp_path / "merged")
    kl = ["--evaluation.kl_tokens", "100"]
    adapter = evaluate("--adapter", folder, *kl)["adapter"]
    merged = evaluate("--model", str(tmp_path / "merged"), *kl)["model"]
    for entry in (adapter, merged):
        entry["kl"] = entry["general"].pop("kl_to_base")["nats_per_token"]
    assert merged["general"]["token_perplexity"] == pytest.approx(adapter["general"]["token_perplexity"], rel=1e-5)
    assert merged["tasks"]["sums"]["correct"] == adapter["tasks"]["sums"]["correct"]
    assert merged["kl"] == pytest.approx(adapter["kl"], rel=1e-3) and adapter["kl"] > 1e-3


def test_what_is_not_there(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output_dir", str(tmp_path)]
    for options, message in (
        (["--model", str(tmp_path / "none")], "there is no model folder"),
        (["--adapter", str(tmp_path / "none")], "there is no adapter folder"),
        (["--model", "nobody/nothing"], "the model at nobody/nothing cannot be loaded"),
        (["--adapter", "nobody/nothing"], "nobody/nothing cannot be fetched: the Hub gives no such repository"),
    ):
        assert main(["eval", str(tiny), *out, *options]) == 2
        assert message in capsys.readouterr().err


def test_limit_and_batch_size(evaluate: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    entry = evaluate("--limit", "2", "--batch_size", "auto")["base"]
    assert entry["tasks"]["sums"]["items"] == 2
    assert len(read_lines(tmp_path / "out" / "base" / "samples.jsonl")) == 4
    stored = json.loads((tmp_path / "out" / "base" / "result.json").read_text())["settings"]["evaluation"]
    assert (stored["limit"], stored["batch_size"]) == (2, "auto")


def test_the_gate(tiny: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(tiny), "--method", "lora", "--output_dir", str(trained), "--tune.learning_rate", "0.3"]
    assert main([*command, "--max-general-rise=-50%"]) == 3
    line = capsys.readouterr().out.splitlines()[-1]
    results = json.loads((trained / "results.json").read_text())["methods"]
    rise = results["lora"]["general"]["token_cross_entropy"] / results["base"]["general"]["token_cross_entropy"] - 1
    assert line == f"gate FAILED: general loss's rise over base is {100 * rise:.4g} %, wanted <= -50 %"
    assert main([*command, f"--max_general_rise={rise - 1e-9}"]) == 3
    assert main([*command, f"--max_general_rise={rise + 1e-9}", "--min-accuracy", "0"]) == 0
    assert capsys.readouterr().out.count("gate passed") == 2
    assert main([*command, "--min-accuracy", "101%"]) == 3
    assert main([*command, "--min-accuracy", "much"]) == 2
    assert "write 0.01 or 1%" in capsys.readouterr().err


def test_a_file_of_prompts_is_kept_by_the_same_gate(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"question": f"{a} and 1", "choices": ["2", "3"], "answer": a - 1} for a in (1, 2)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    entry = evaluate("--keep", f"{tmp_path / 'asked.jsonl'}=-1pt", "--limit", "2")["base"]
    assert entry["general"]["tasks"]["keep_asked"]["items"] == 2
    assert "gate passed: keep_asked acc's change over base is 0 %, wanted >= -1 %" in capsys.readouterr().out


def test_shares_and_what_the_gate_needs() -> None:
    assert parse_share("1%") == parse_share("0.01") == 0.01
    assert parse_rise("1%") == parse_rise("0.01") == 0.01 and parse_rise("100%") == 1
    with pytest.raises(ALoRAError, match=r"^1 would be a rise of 100 %: write 1% or 0\.01$"):
        parse_rise("1")
    for wrong in ("", "x%", "nan", "-2"):
        with pytest.raises(ALoRAError, match="write"):
            parse_share(wrong)
    general = MethodResult(GeneralScore(token_perplexity=10.0))
    with pytest.raises(ALoRAError, match="evaluate both"):
        run_gate({"lora": general}, "lora", max_general_rise=0.01)
    with pytest.raises(ALoRAError, match="no task was evaluated"):
        run_gate({"lora": general}, "lora", min_accuracy=0.5)
