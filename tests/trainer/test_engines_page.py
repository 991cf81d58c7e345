"""The page of what is supported: every line of its tables has a test that exists, and its launch files can be used."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from tests.launching import launch
from tests.tiny_recipe import write_all

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "engines.md"
LAUNCH = ROOT / "examples" / "launch"


def rows() -> list[str]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith("| |")]


def test_every_line_names_tests_that_exist():
    assert len(rows()) > 30
    for row in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file} has no {test}"


def test_every_no_has_a_test_of_an_error():
    for row in rows():
        answers = [cell.strip() for cell in row.split("|")[2:-2]]
        if "no" in answers:
            test = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)[-1]
            assert "refused" in test[1], row


def test_the_launch_files_are_whole():
    page = ROOT / "docs" / "launching.md"
    named = set(re.findall(r"`(\w+\.(?:sh|yaml|sbatch))`", page.read_text(encoding="utf-8")))
    assert named == {path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".yaml", ".sbatch")}
    for script in (*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")):
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_sky_file_passes_what_its_script_needs():
    sky = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    needed = set(re.findall(r"\$\{?([A-Z]+)", (LAUNCH / "several_nodes.sh").read_text()))
    assert needed - {"PORT"} <= set(re.findall(r"([A-Z]+)=", sky["run"])) and set(sky["envs"]) <= set(
        re.findall(r"\$([A-Z]+)\b", sky["run"])
    )


def test_accelerate_reads_its_launch_files():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in LAUNCH.glob("accelerate_*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes == 8
        assert set(yaml.safe_load(path.read_text())) <= set(vars(config)) | {"compute_environment"}


def test_the_launched_script_trains(tmp_path, monkeypatch):
    """On one process of this machine; the folder it leaves is an adapter."""
    from transformers import AutoModelForCausalLM

    from alora_trainer import ALoRAConfig, ALoRATrainer
    from tests.tiny_training import quiet_arguments, token_rows

    write_all(tmp_path)
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    recorder = ALoRATrainer(
        model,
        quiet_arguments(str(tmp_path / "r"), max_steps=2),
        train_dataset=token_rows(),
        alora=ALoRAConfig(record="path"),
    )
    recorder.train()
    recorder.importance.save_pretrained(tmp_path / "map")
    domain = tmp_path / "domain.jsonl"
    domain.write_text("".join(json.dumps({"text": f"Sum {i} and {i} is {2 * i}"}) + "\n" for i in range(8)))
    arguments = [str(tmp_path / "model"), str(tmp_path / "map"), str(domain), str(tmp_path / "out")]
    settings = [
        "--use_cpu",
        "true",
        "--lam",
        "0.1",
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--save_strategy",
        "no",
        "--report_to",
        "none",
    ]
    monkeypatch.setattr(sys, "argv", ["protect.py", *arguments, *settings])
    spec = importlib.util.spec_from_file_location("protect", LAUNCH / "protect.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_two_machines_train_together(tmp_path):
    """Two of them on this one, by the file for several machines, with a map that was measured at the base weights."""
    from transformers import AutoModelForCausalLM

    from alora_trainer import ImportanceMap
    from alora_trainer.importance.recording.curvature import estimate_curvature
    from alora_trainer.weights.theta import BaseTheta
    from tests.tiny_training import with_lora

    write_all(tmp_path)
    model = with_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32"))
    found = estimate_curvature(model, [{"input_ids": torch.arange(32).view(2, 16)}]).importance
    ImportanceMap(found, BaseTheta({name: each.shape for name, each in found.items()})).save_pretrained(
        tmp_path / "map"
    )
    domain = tmp_path / "domain.jsonl"
    domain.write_text("".join(json.dumps({"text": f"Sum {i} and {i} is {2 * i}"}) + "\n" for i in range(8)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["bash", str(LAUNCH / "several_nodes.sh"), str(tmp_path / "model"), str(tmp_path / "map"), str(domain)]
    settings = "--use_cpu true --lam 0.1 --max_steps 2 --save_strategy no --report_to none"
    command += [str(tmp_path / "out"), *settings.split()]
    common = {
        "NODES": "2",
        "HEAD": "127.0.0.1",
        "PORT": port,
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with ThreadPoolExecutor(2) as machines:
        both = [
            machines.submit(launch, command, os.environ | common | {"NODE": node, "PATH": path, "PYTHONPATH": python})
            for node in ("0", "1")
        ]
    for one in both:
        assert one.result().returncode == 0, one.result().stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    tuning = json.loads((tmp_path / "out" / "importance_tuning.json").read_text())
    assert tuning["protection"]["start"] == "bare" and tuning["training"]["steps"] == 2


def test_the_launched_script_needs_its_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["protect.py"])
    spec = importlib.util.spec_from_file_location("protect", LAUNCH / "protect.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError):
        module.main()
