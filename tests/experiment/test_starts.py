"""Methods whose adapter starts in directions that are computed: each start against a dense reference, and what is saved."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import eva, get_method
from alora_trainer.experiment.methods.lora_ga import LoRAGAOptions
from alora_trainer.experiment.methods.method import Adapter, MethodOptions
from alora_trainer.experiment.methods.sc_lora import SCLoRAOptions
from alora_trainer.experiment.methods.starts import StartOptions, batches, spread
from alora_trainer.experiment.run.start import attach_adapter
from alora_trainer.weights.adapted import adapted_weights
from tests.tiny_training import tiny_llama, token_rows

IDS = torch.arange(2, 14).view(2, 6)
LENGTHS = (5, 8, 3, 8, 6)
# Everything that is computed from data or from the base weights; False: the base weights stay as they are.
TAKEN_OUT = {
    "lora_null": True,
    "lora_null_frozen": True,
    "lora_ga": True,
    "pissa": True,
    "olora": True,
    "sc_lora": True,
}
TAKEN_OUT |= {"mica": False, "orthogonal": False, "eva": False}


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Pads on the right, as a recipe's collator does."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in rows:
        ids, missing = row["input_ids"], longest - len(row["input_ids"])
        batch["input_ids"].append([*ids, *[1] * missing])
        batch["labels"].append([*row["labels"], *[-100] * missing])
        batch["attention_mask"].append([1] * len(ids) + [0] * missing)
    return {key: torch.tensor(value) for key, value in batch.items()}


def ragged(seed: int) -> list[dict[str, list[int]]]:
    """Rows of different lengths."""
    rows = token_rows(items=20, length=8, seed=seed)
    return [{key: row[key][: LENGTHS[number % 5]] for key in row} for number, row in enumerate(rows)]


GENERAL, DOMAIN = ragged(8), ragged(4)
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[Any, Adapter]]:
    """`start(name, base=..., options=..., folder=..., **lora)`: the base as it was, and the adapter on a copy of it."""

    def make(
        name: str, base: Any = None, options: Any = None, folder: Path | None = None, **lora: Any
    ) -> tuple[Any, Adapter]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) if folder is None else folder
        base = tiny_llama() if base is None else base
        method = get_method(name)
        own = options if options is not None else method.default_options()
        settings = {"r": 2, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | lora
        settings |= method.lora
        adapter = attach_adapter(
            method, MethodOptions(own), copy.deepcopy(base), LoraConfig(**settings), seed=0, folder=folder,
            general=GENERAL if method.needs_general_text else None,
            domain=DOMAIN if method.needs_domain_items else None,
            collate=collate,
        )  # fmt: skip
        return base.eval(), adapter

    return make


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def seen_inputs(base: Any, name: str, rows: list[dict[str, list[int]]]) -> torch.Tensor:
    """All inputs (tokens, n) of a layer of the base model, row by row and so without any padding, in float64."""
    seen: list[torch.Tensor] = []
    layer = base.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        for row in rows:
            base(input_ids=torch.tensor([row["input_ids"]]))
    handle.remove()
    return torch.cat(seen).double()


# ---- which rows ----


def test_rows_are_evenly_spaced() -> None:
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 8) == [0, 1, 2] and spread(5, 1) == [0]
    rows = [{"input_ids": [number], "labels": [number]} for number in range(21)]
    found = list(batches(rows, 10, collate, torch.device("cpu")))
    assert [len(batch["input_ids"]) for batch in found] == [8, 2]
    assert torch.cat([batch["input_ids"] for batch in found]).flatten().tolist() == spread(21, 10)
    with pytest.raises(ALoRAError, match="samples=0 must be at least 1"):
        StartOptions(samples=0)


# ---- all of them ----


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_it_starts_as_the_base_and_is_saved_as_what_was_trained(
    start: Any, training_arguments: Any, tmp_path: Path, name: str
) -> None:
    base, adapter = start(name, lora_alpha=3)
    expected = logits(base)
    torch.testing.assert_close(logits(adapter.model), expected, rtol=1e-4, atol=1e-5)
    changed = any(
        not torch.equal(weight.layer.get_base_layer().weight, base.get_submodule(weight.name).weight)
        for weight in adapted_weights(adapter.model)
    )
    assert changed == TAKEN_OUT[name]
    method = get_method(name)
    trainer = method.make_trainer(
        options=method.default_options(),
        model=adapter.model,
        args=training_arguments(max_steps=2, learning_rate=0.02),
        train_dataset=DOMAIN,
        data_collator=collate,
    )
    trainer.train()
    trained = logits(adapter.model)
    assert float((trained - expected).abs().max()) > 0.01
    adapter.save(tmp_path / "adapter")
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), trained, rtol=1e-4, atol=1e-5)
    config = again.peft_config["default"]
    assert config.init_lora_weights == (True if name != "orthogonal" else name) and config.r == (4 if changed else 2)
    torch.testing.assert_close(logits(again.unload()), expected)  # and the base is as it was


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_in_16_bits_the_factors_are_float32_and_the_model_is_the_base_but_for_rounding(start: Any, name: str) -> None:
    base = tiny_llama().to(torch.bfloat16)
    expected = logits(base)
    _, adapter = start(name, base=base)
    torch.testing.assert_close(logits(adapter.model), expected, rtol=0.05, atol=0.02)
    for weight in adapted_weights(adapter.model):
        assert {parameter.dtype for parameter in weight.parameters} == {torch.float32}


def tiny_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32)).eval()


@pytest.mark.parametrize("name", [name for name in TAKEN_OUT if name != "olora"])
def test_layers_that_keep_their_transpose(start: Any, name: str) -> None:
    base = tiny_gpt2()
    expected = logits(base)
    _, adapter = start(name, base=base, target_modules="all-linear", rank_pattern={"mlp.c_fc": 4})
    torch.testing.assert_close(logits(adapter.model), expected, rtol=1e-4, atol=1e-5)
    weights = {weight.name.removeprefix("transformer.h.0."): weight for weight in adapted_weights(adapter.model)}
    assert len(weights) == 4 and sum(weight.rank for weight in weights.values()) == 10
    if name != "eva":  # which gives the ranks to the layers anew
        assert weights["mlp.c_fc"].rank == 4 and weights["mlp.c_proj"].rank == 2


@pytest.mark.parametrize("name", [name for name, taken in TAKEN_OUT.items() if taken])
def test_what_could_not_be_taken_out_is_refused(start: Any, name: str) -> None:
    with pytest.raises(ALoRAError, match="leave lora.use_rslora or the patterns out"):
        start(name, use_rslora=True, rank_pattern={"q_proj": 1})
    with pytest.raises(
        ALoRAError, match="directions of model.layers.0.self_attn.[qv]_proj, which has [0-9]+: set lora.r"
    ):
        start(name, r=9)
    with pytest.raises(ALoRAError, match="embed_tokens is a Embedding: leave it out of lora.target_modules"):
        start(name, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ALoRAError, match="the weight of lm_head is another layer's, too"):
        start(name, base=tiny_llama(tie_word_embeddings=True), target_modules=["q_proj", "lm_head"])


def assert_same_up_to_sign(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Rows of a decomposition, of which each may have either sign; a randomised one is off by a part in a thousand or so."""
    signs = (found.double() * expected.double()).sum(1, keepdim=True).sign()
    torch.testing.assert_close(
        signs * found.double(), expected.double(), rtol=0, atol=5e-3 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", ["lora_null_frozen", "lora_ga", "pissa", "corda_kpm"])
def test_a_training_that_goes_on_has_the_start_that_it_had(start: Any, tmp_path: Path, name: str) -> None:
    """Whatever would be computed now: the data are others."""
    base, first = start(name, folder=tmp_path)
    other = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in other.model.layers[1].parameters():
            parameter.add_(0.1)
    _, again = start(name, base=other, folder=tmp_path)
    pairs = zip(adapted_weights(first.model), adapted_weights(again.model), strict=True)
    for one, two in pairs:
        assert torch.equal(one.a, two.a) and torch.equal(one.b, two.b)
        assert [p.requires_grad for p in one.parameters] == [p.requires_grad for p in two.parameters]
    torch.testing.assert_close(logits(again.model), logits(other), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["beginning"]


# ---- LoRA-Null ----


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_null_is_the_weight_on_the_null_space_of_general_text(start: Any, rslora: bool) -> None:
    base, adapter = start("lora_null", options=StartOptions(samples=7), use_rslora=rslora)
    rows = [GENERAL[place] for place in spread(len(GENERAL), 7)]
    for weight in adapted_weights(adapter.model):
        inputs = seen_inputs(base, weight.name, rows)
        null = torch.linalg.svd(inputs, full_matrices=True).Vh[-2:]
        before = base.get_submodule(weight.name).weight.double()
        part = before @ null.T @ null
        a, b = weight.a.double(), weight.b.double()
        torch.testing.assert_close(weight.scaling * b @ a, part, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weight.layer.get_base_layer().weight.double(), before - part, rtol=1e-3, atol=1e-5)
        random = torch.randn(2, inputs.shape[1], generator=torch.Generator().manual_seed(0), dtype=a.dtype)
        passes = [float((inputs @ torch.linalg.qr(rows.T).Q).square().sum()) for rows in (a, random)]
        assert passes[0] < 0.2 * passes[1]


@pytest.mark.parametrize(("method", "frozen"), [("lora_null_frozen", "lora_A"), ("mica", "lora_B")])
def test_one_factor_is_frozen_also_after_a_resume(
    start: Any, training_arguments: Any, tmp_path: Path, method: str, frozen: str
) -> None:
    def trained(steps: int, resume: str | None = None) -> dict[str, torch.Tensor]:
        _, adapter = start(method)
        first = {name: p.detach().clone() for name, p in adapter.model.named_parameters() if "lora_" in name}
        trainer = get_method(method).make_trainer(
            options=None, model=adapter.model, train_dataset=DOMAIN, data_collator=collate,
            args=training_arguments(max_steps=steps, save_strategy="steps", save_steps=1),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        last = {name: p.detach() for name, p in adapter.model.named_parameters() if "lora_" in name}
        for name in first:
            assert torch.equal(first[name], last[name]) == (frozen in name)
        return last

    whole = trained(3)
    again = trained(3, resume=str(tmp_path / "out" / "checkpoint-1"))
    assert all(torch.equal(whole[name], value) for name, value in again.items())


# ---- LoRA-GA ----


@pytest.mark.parametrize("equation", ["peft", "paper"])
def test_lora_ga_is_made_of_the_domains_gradient(start: Any, equation: str) -> None:
    base, adapter = start("lora_ga", options=LoRAGAOptions(samples=11, equation=equation, gamma=4))
    rows = [DOMAIN[place] for place in spread(len(DOMAIN), 11)]
    for part in (rows[:8], rows[8:]):
        (base(**collate(part)).loss / 2).backward()
    for weight in adapted_weights(adapter.model):
        before = base.get_submodule(weight.name).weight
        left, values, right = torch.linalg.svd(before.grad.double(), full_matrices=False)
        scale = before.shape[0] ** 0.25 / 2
        of_a, of_b = (1.0, scale * values[2:4]) if equation == "peft" else (scale, scale)
        assert_same_up_to_sign(weight.a, of_a * right[:2])
        assert_same_up_to_sign(weight.b.T, (of_b * left[:, 2:4]).T)
        rest = before.double() - weight.scaling * weight.b.double() @ weight.a.double()
        torch.testing.assert_close(weight.layer.get_base_layer().weight.double(), rest, rtol=1e-4, atol=1e-6)
    assert not any(hasattr(module, "_peft_loraga_grad") for module in adapter.model.modules())
    with pytest.raises(ALoRAError, match="equation='papr' is unknown"):
        LoRAGAOptions(equation="papr")
    with pytest.raises(ALoRAError, match="gamma=0 must be at least 1"):
        LoRAGAOptions(gamma=0)


# ---- of the weights alone ----


def test_pissa_is_the_leading_part_and_olora_the_first(start: Any) -> None:
    for name in ("pissa", "olora"):
        base, adapter = start(name)
        for weight in adapted_weights(adapter.model):
            before = base.get_submodule(weight.name).weight.detach().double()
            if name == "pissa":
                left, values, right = torch.linalg.svd(before, full_matrices=False)
                part = left[:, :2] * values[:2] @ right[:2]
            else:
                q, r = torch.linalg.qr(before)
                part = weight.scaling * q[:, :2] @ r[:2]
            torch.testing.assert_close(weight.scaling * (weight.b @ weight.a).double(), part, rtol=1e-3, atol=1e-5)
            rest = weight.layer.get_base_layer().weight.double()
            torch.testing.assert_close(rest, before - part, rtol=1e-3, atol=1e-5)


def test_olora_refuses_what_peft_would_take_for_the_weight(start: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32))
    with pytest.raises(
        ALoRAError, match="c_attn keeps the transpose of its weight .Conv1D., which PEFT's olora takes for"
    ):
        start("olora", base=base, target_modules="all-linear")


def test_mica_holds_the_last_directions(start: Any) -> None:
    base, adapter = start("mica")
    for weight in adapted_weights(adapter.model):
        left = torch.linalg.svd(base.get_submodule(weight.name).weight.detach().double(), full_matrices=False).U
        assert_same_up_to_sign(weight.b.T, left[:, -2:].T)
        assert not weight.a.any() and weight.parameter_a.requires_grad and not weight.parameter_b.requires_grad
    with pytest.raises(ALoRAError, match="MiCA requires `r` <= min"):
        start("mica", r=9)
    with pytest.raises(ALoRAError, match="embed_tokens is a Embedding"):
        start("mica", target_modules=["q_proj", "embed_tokens"])


def test_orthogonal_factors_pass_nothing_on_though_neither_is_zero(start: Any) -> None:
    first, second = (adapted_weights(start("orthogonal", r=4)[1].model) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
        for factor in (one.a, one.b):
            assert int(torch.linalg.matrix_rank(factor, rtol=1e-4)) == 2 and float(factor.norm()) > 0.3
        assert float((one.b @ one.a).abs().max()) < 1e-6
    with pytest.raises(ALoRAError, match="requires the LoRA rank to be even, got 3"):
        start("orthogonal", r=3)


# ---- EVA ----


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva_holds_most_of_what_the_domains_inputs_vary_by(start: Any, rho: float) -> None:
    base = tiny_llama()
    with torch.no_grad():
        base.model.embed_tokens.weight[:, 2:] *= 0.05  # two directions say most of the first layer's inputs
    _, adapter = start("eva", base=base, r=3, options=eva.EVAOptions(samples=20, rho=rho))
    weights = adapted_weights(adapter.model)
    ranks = [weight.rank for weight in weights]
    assert sum(ranks) == 3 * len(ranks) and (set(ranks) == {3}) == (rho == 1)
    for weight in weights:
        trained = torch.cat([torch.tensor(row["labels"]) for row in DOMAIN]) != -100
        inputs = seen_inputs(base, weight.name, DOMAIN)[trained]
        centred = inputs - inputs.mean(0)
        best = torch.linalg.svdvals(centred)[: weight.rank].square().sum()
        a = weight.a.double()
        torch.testing.assert_close(a @ a.T, torch.eye(weight.rank, dtype=a.dtype), rtol=0, atol=1e-5)
        assert float((centred @ a.T).square().sum() / best) > 0.97
        assert not weight.b.any() and weight.scaling == pytest.approx(2.0)


def test_eva_ends_where_peft_would_go_on_for_ever(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ALoRAError, match="takes up to 14 directions from .* in a batch of items, which has fewer"):
        start("eva", r=7, options=eva.EVAOptions(samples=2))
    with pytest.raises(ALoRAError, match="this start takes 20 directions of .*q_proj, which has 16"):
        start("eva", r=8, options=eva.EVAOptions(rho=2.5))
    with pytest.raises(ALoRAError, match="rho=0.5 must be at least 1"):
        eva.EVAOptions(rho=0.5)
    monkeypatch.setattr(eva, "_PASSES", 1)
    with pytest.raises(ALoRAError, match="did not stand still within 1 passes"):
        start("eva")


# ---- SC-LoRA ----


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_sc_lora_is_the_weight_in_the_outputs_of_the_domain(start: Any, beta: float) -> None:
    base, adapter = start("sc_lora", options=SCLoRAOptions(samples=7, beta=beta))
    for weight in adapted_weights(adapter.model):
        before = base.get_submodule(weight.name).weight.detach().double()
        moments = []
        for rows in (DOMAIN, GENERAL):
            outputs = seen_inputs(base, weight.name, [rows[place] for place in spread(len(rows), 7)]) @ before.T
            moments.append(outputs.T @ outputs / len(outputs))
        contrast = (1 - beta) * moments[0] - beta * moments[1]
        a, b = weight.a.double(), weight.b.double()
        q = b * weight.scaling**0.5
        torch.testing.assert_close(q.T @ q, torch.eye(2, dtype=q.dtype), rtol=0, atol=1e-5)
        best = torch.linalg.eigvalsh(contrast)[-2:].sum()
        torch.testing.assert_close((q.T @ contrast @ q).trace(), best, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(weight.scaling * b @ a, q @ q.T @ before, rtol=1e-3, atol=1e-5)
        rest = weight.layer.get_base_layer().weight.double()
        torch.testing.assert_close(rest, before - q @ q.T @ before, rtol=1e-3, atol=1e-5)
    with pytest.raises(ALoRAError, match="beta=1.5 must lie between 0 and 1"):
        SCLoRAOptions(beta=1.5)
