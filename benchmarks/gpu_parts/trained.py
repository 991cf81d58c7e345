"""Correctness through the trainer: fp16 with CUDA's own scaler, bf16, torch.compile, streamed importance, kill and resume.

A small Llama, SGD, and the same batch in every step, so that a training with a step that the scaler passed over can be compared
with one of fewer steps. Each is beside the same training in float32, uncompiled, on the device, never stopped.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap
from alora_trainer.weights.adapted import adapted_weights
from gpu_parts.cases import Cases, relative
from gpu_parts.schedule import Budget, Figures, Unsuitable
from gpu_parts.settings import Settings

STEPS, KILLED_IN, RATE, LAM = 6, 4, 0.02, 1e-3
# Of gradients in half precision, through the sums of a whole training, relative in the Frobenius norm; the tightest is
# that of what computes the same in another place or order.
HALF, REORDERED, SAME = 5e-2, 1e-3, 1e-5
VOCABULARY, LENGTH, ITEMS = 256, 16, 4


def small_model(settings: Settings) -> Any:
    width, layers = (64, 2) if settings.quick else (512, 4)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, attn_implementation="eager",
    )  # fmt: skip
    with torch.device(settings.device):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, lora_alpha=32, target_modules="all-linear"))
    torch.manual_seed(1)
    for weight in adapted_weights(model):
        weight.parameter_b.data.normal_(std=0.02)
    return model


def items() -> list[dict[str, torch.Tensor]]:
    """One batch of random tokens."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(2, VOCABULARY, (ITEMS, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(settings: Settings, folder: Path, alora: ALoRAConfig, given: Any = None, **arguments: Any) -> ALoRATrainer:
    """A quiet trainer of `STEPS` steps."""
    quiet: dict[str, Any] = {
        "per_device_train_batch_size": ITEMS, "max_steps": STEPS, "learning_rate": RATE, "optim": "sgd",
        "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "max_grad_norm": 0.0, "use_cpu": not settings.cuda,
    }  # fmt: skip
    args = TrainingArguments(str(folder), **(quiet | arguments))
    one = ALoRATrainer(small_model(settings), args, train_dataset=items(), alora=alora, importance=given)
    one.remove_callback(PrinterCallback)
    return one


class Trainings:
    """The trainings of one part, each in a folder of its own, and the map that holds those that are held."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.plain_omega = self.recorded().importance
        assert isinstance(self.plain_omega, ImportanceMap)

    def recorded(self, **arguments: Any) -> ALoRATrainer:
        return self._run(ALoRAConfig(record="path"), None, arguments)

    def held(self, storage_device: str = "device", **arguments: Any) -> ALoRATrainer:
        """Held to the base weights by what `recorded` found, about as strongly as the data pull."""
        alora = ALoRAConfig(lam=LAM, anchor="base", storage_device=storage_device)
        return self._run(alora, self.plain_omega, arguments)

    def apart(self, one: ALoRATrainer, expected: dict[str, torch.Tensor]) -> dict[str, float]:
        """How far the factors that `one` trained are from others, by the movement of these from where both began."""
        start = {name: p.detach() for name, p in small_model(self.settings).named_parameters() if p.requires_grad}
        got = {name.replace("_orig_mod.", ""): p for name, p in factors(one).items()}
        errors = [relative(got[name] - start[name], tensor - start[name]) for name, tensor in expected.items()]
        return {"largest of a factor's movement": max(errors)}

    def _run(self, alora: ALoRAConfig, given: Any, arguments: dict[str, Any]) -> ALoRATrainer:
        one = trainer(self.settings, self.folder / "run", alora, given, **arguments)
        one.train()
        return one


def correct_training(settings: Settings, figures: Figures, budget: Budget) -> None:
    """Every case beside its like; a child that kills itself runs while the others are looked at."""
    cases = Cases(figures, budget)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = start_child(settings, folder / "killed")
        try:
            trainings = Trainings(settings, folder)
            held = factors(trainings.held())
            # If holding changed little, none of the cases below would show that it is done.
            cases.note("what holding changes", **trainings.apart(trainings.recorded(), held))
            cases.compare("fp16 with CUDA's scaler: Omega", HALF, lambda: scaled(trainings))
            cases.compare("bf16: Omega", HALF, lambda: between(trainings.recorded(bf16=True), trainings.plain_omega))
            cases.compare("bf16: held", HALF, lambda: trainings.apart(trainings.held(bf16=True), held))
            how = "inductor" if settings.cuda else "eager"  # its C++ compiler would take longer than all of the rest
            compiled = {"torch_compile": True, "torch_compile_backend": how}
            cases.compare(
                "torch.compile: held", REORDERED, lambda: trainings.apart(trainings.held(**compiled), held), backend=how
            )
            cases.compare(
                "torch.compile: Omega", REORDERED,
                lambda: between(trainings.recorded(**compiled), trainings.plain_omega), backend=how,
            )  # fmt: skip
            cases.compare("streamed Omega: held", SAME, lambda: streamed(trainings, held))
            cases.compare(
                "killed and resumed: Omega", SAME, lambda: resumed(trainings, child, cases), killed_in_step=KILLED_IN
            )
        finally:
            child.kill()
    cases.finish()


def factors(one: ALoRATrainer) -> dict[str, torch.Tensor]:
    """What trained, as it is at the end."""
    return {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}


def between(one: ALoRATrainer, expected: Any) -> dict[str, float]:
    """Of what was recorded, weight by weight; NaN where a weight is missing."""
    got = one.importance
    assert got is not None
    return {"largest of a weight": max(relative(got[name], omega) for name, omega in expected.items())}


def scaled(trainings: Trainings) -> dict[str, float]:
    """Under the scaler, beside a float32 training of as many steps as the scaler did not pass over."""
    if not trainings.settings.cuda:
        raise Unsuitable("fp16 with a loss scaler is CUDA's")
    one = trainings.recorded(fp16=True)
    info = one.importance.info  # type: ignore[union-attr]
    like = trainings.recorded(max_steps=info.steps)
    return between(one, like.importance)


def streamed(trainings: Trainings, held: dict[str, torch.Tensor]) -> dict[str, float]:
    if not trainings.settings.cuda:
        raise Unsuitable("on a CPU, importance is in host memory as it is")
    return trainings.apart(trainings.held("cpu"), held)


# ---- kill and resume ----


def start_child(settings: Settings, folder: Path) -> Any:
    """A process that records, saves every step, and ends itself by SIGKILL in the middle of one.

    A copy of this one where there is no GPU; a process that has used one cannot be copied, and a new one imports all anew.
    """
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    child = context.Process(target=be_killed, args=(settings, folder), daemon=True)
    child.start()
    return child


class Killed(ALoRATrainer):
    """Dies as by an operator's ``kill -9``, after the backward pass of one step."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == KILLED_IN - 1:
            signal.raise_signal(signal.SIGKILL)
        return loss


def be_killed(settings: Settings, folder: Path) -> None:
    """What the child does."""
    torch.set_num_threads(1)  # a copy has none of its parent's threads
    one = trainer(settings, folder, ALoRAConfig(record="path"), **saving())
    one.__class__ = Killed
    one.train()


def saving() -> dict[str, Any]:
    return {"save_strategy": "steps", "save_steps": 1}


def resumed(trainings: Trainings, child: Any, cases: Cases) -> dict[str, float]:
    """What the killed training's continuation recorded, beside that of one that was never stopped."""
    child.join(120)
    if child.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process that was to be killed ended with {child.exitcode}: its error is above")
    folder = trainings.folder / "killed"
    begun = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert begun[-1] == f"checkpoint-{KILLED_IN - 1}", begun
    one = trainer(trainings.settings, folder, ALoRAConfig(record="path"), **saving())
    one.train(resume_from_checkpoint=True)
    expected = trainings.plain_omega
    same = all(torch.equal(one.importance[name], omega) for name, omega in expected.items())  # type: ignore[index]
    cases.note("killed and resumed: to the bit", equal=same)
    return between(one, expected)
