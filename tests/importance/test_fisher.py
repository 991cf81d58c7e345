"""The diagonal Fisher information against autograd, one sample at a time and in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording import squared_gradients
from alora_trainer.importance.recording.fisher import estimate_fisher
from alora_trainer.importance.recording.squared_gradients import AdaptedSquares
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.parameterization import Parameterization


def batches(sizes: list[int], length: int = 7, seed: int = 5) -> list[dict[str, torch.Tensor]]:
    """Random tokens of different lengths, padded on the right and masked; some labels are masked, too."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        ids = torch.randint(2, 40, (size, length), generator=generator)
        lengths = torch.randint(3, length + 1, (size,), generator=generator)
        mask = (torch.arange(length)[None] < lengths[:, None]).long()
        labels = ids.masked_fill((mask == 0) | (torch.rand(size, length, generator=generator) < 0.2), -100)
        labels[:, 2] = ids[:, 2]
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def whole_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """The frozen base weights of the adapted layers, made trainable: what plain autograd differentiates."""
    return {w.name: w.layer.get_base_layer().weight.requires_grad_(True) for w in adapted_weights(model)}


def autograd_fisher(model: Any, data: list[dict[str, torch.Tensor]], kind: str) -> dict[str, torch.Tensor]:
    """Fisher information of the adapted weights, which are left frozen as they were."""
    weights = whole_weights(model)
    fisher = fisher_of(weights, model, data, kind)
    for parameter in weights.values():
        parameter.requires_grad_(False)
    return fisher


def fisher_of(
    weights: dict[str, torch.nn.Parameter], model: Any, data: list[dict[str, torch.Tensor]], kind: str
) -> dict[str, torch.Tensor]:
    """The definitions to the letter: a backward pass a sample, or the official code's a batch."""
    sums = {name: torch.zeros_like(p) for name, p in weights.items()}
    units = (
        data
        if kind == "batch"
        else [{k: v[i : i + 1] for k, v in b.items()} for b in data for i in range(len(b["labels"]))]
    )
    for unit in units:
        labels = unit["labels"]
        logits = model(input_ids=unit["input_ids"], attention_mask=unit["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, total), gradient in zip(sums.items(), gradients, strict=True):
            sums[name] = total + (gradient * len(labels)) ** 2
    samples = sum(len(b["labels"]) for b in data)
    return {name: total / samples for name, total in sums.items()}


@pytest.mark.parametrize("kind", ["sample", "batch"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "embed_tokens"]])
@pytest.mark.parametrize("location", ["device", "cpu"])
def test_it_is_what_autograd_gives(
    lora_model: Callable[..., Any], kind: str, targets: list[str], location: str
) -> None:
    model = lora_model(dtype=torch.float64, moved=True, target_modules=targets)
    data = batches([3, 1, 4])
    estimate = estimate_fisher(model, data, kind=kind, location=location)
    expected = autograd_fisher(model, data, kind)
    assert estimate.samples == 8 and estimate.batches == 3
    for name, values in expected.items():
        found = estimate.omega[name] if estimate.omega[name].shape == values.shape else estimate.omega[name].T
        # transformers' RMSNorm computes in float32 whatever the model's dtype, so the last digits are noise.
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6 * float(values.max()))
        assert float(values.max()) > 0


def test_its_progress_is_told(lora_model: Callable[..., Any], told: Callable[[], list[str]]) -> None:
    estimate_fisher(lora_model(), batches([3, 2]), samples=10)
    assert [line.partition(",")[0] for line in told()] == [
        "measuring Fisher information: samples 3 of 10",
        "measuring Fisher information: samples 5 of 10",
    ]


def test_blocks_of_rows_do_not_matter(lora_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = lora_model(dtype=torch.float64), batches([3, 2])
    whole = estimate_fisher(model, data).omega
    monkeypatch.setattr(squared_gradients, "BLOCK_ELEMENTS", 100)
    for name, values in estimate_fisher(model, data).omega.items():
        torch.testing.assert_close(values, whole[name], rtol=1e-12, atol=0)


def test_by_sample_the_batches_do_not_matter_and_by_batch_they_do(lora_model: Callable[..., Any]) -> None:
    model, (data,) = lora_model(dtype=torch.float64), batches([6])
    split = [{k: v[i : i + 2] for k, v in data.items()} for i in (0, 2, 4)]
    single = [{k: v[i : i + 1] for k, v in data.items()} for i in range(6)]
    by_sample = [estimate_fisher(model, parts).omega for parts in ([data], split, single)]
    by_batch = [estimate_fisher(model, parts, kind="batch").omega for parts in ([data], split, single)]
    for name, values in by_sample[0].items():
        for other in (*by_sample[1:], by_batch[2]):
            torch.testing.assert_close(other[name], values, rtol=1e-5, atol=1e-6 * float(values.max()))
        assert not torch.allclose(by_batch[0][name], values, rtol=0.05)
        assert not torch.allclose(by_batch[0][name], by_batch[1][name], rtol=0.05)


@pytest.mark.parametrize("kind", ["sample", "batch"])
def test_a_layer_that_stores_its_transpose_in_a_model_that_is_float64_throughout(kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=16)).double().eval()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).double()
    data = batches([3, 2])
    ((name, values),) = estimate_fisher(model, data, kind=kind).omega.items()
    torch.testing.assert_close(values.T, autograd_fisher(model.eval(), data, kind)[name], rtol=1e-10, atol=1e-20)


@pytest.mark.parametrize("kind", ["sample", "batch"])
def test_all_parameters_of_a_model(kind: str) -> None:
    """Full tuning: norms, biases and tied embeddings, against the definitions to the letter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=40, n_positions=16)).double().eval()
    data = batches([3, 2])
    estimate = estimate_fisher(model, data, kind=kind, parameterization=Parameterization.FULL)
    expected = fisher_of(dict(model.named_parameters()), model, data, kind)
    assert len(estimate.omega) == len(expected) and estimate.samples == 5 and estimate.batches == 2
    for name, values in expected.items():
        found = estimate.omega[name.removesuffix(".weight")].view(values.shape)
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-20)


class Stopped(Exception):
    pass


def test_what_was_stopped_goes_on_to_the_same_end(lora_model: Callable[..., Any], tmp_path: Path) -> None:
    model, data = lora_model(), batches([2, 3, 2, 1])
    whole = estimate_fisher(model, data)

    def until(count: int) -> Any:
        yield from data[:count]
        raise Stopped

    path = tmp_path / "fisher.safetensors"
    with pytest.raises(Stopped):
        estimate_fisher(model, until(3), checkpoint=path, checkpoint_every=2)
    resumed = estimate_fisher(model, data, checkpoint=path, checkpoint_every=2)
    assert (resumed.samples, resumed.tokens, resumed.batches) == (whole.samples, whole.tokens, whole.batches)
    assert all(torch.equal(resumed.omega[name], values) for name, values in whole.omega.items())
    with pytest.raises(ALoRAError, match="belongs to another estimate"):
        estimate_fisher(model, data, kind="batch", checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ALoRAError, match="is damaged"):
        estimate_fisher(model, data, checkpoint=path)


def test_samples_are_counted_and_the_last_batch_is_cut(lora_model: Callable[..., Any]) -> None:
    model, (data,) = lora_model(), batches([6])
    cut = estimate_fisher(model, [data, data], samples=4)
    expected = estimate_fisher(model, [{k: v[:4] for k, v in data.items()}])
    assert cut.samples == 4
    assert all(torch.equal(cut.omega[name], values) for name, values in expected.omega.items())


def test_the_model_is_left_as_it_was(lora_model: Callable[..., Any]) -> None:
    model = lora_model(lora_dropout=0.5)
    model.train()
    estimate_fisher(model, batches([2]))
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_it_refuses(lora_model: Callable[..., Any]) -> None:
    model = lora_model()
    with pytest.raises(ALoRAError, match="fisher.kind='both' is unknown: use one of sample, batch"):
        estimate_fisher(model, batches([2]), kind="both")
    with pytest.raises(ALoRAError, match="labels='model' is unknown: use one of sampled, text"):
        estimate_fisher(model, batches([2]), labels="model")
    with pytest.raises(ALoRAError, match="at least one sample"):
        estimate_fisher(model, [])
    squares = AdaptedSquares(adapted_weights(model))
    squares.begin_batch(3)
    (data,) = batches([2])
    with pytest.raises(ALoRAError, match="does not see one row a sample"):
        model(input_ids=data["input_ids"], labels=data["labels"]).loss.backward()
    squares.begin_batch(2)
    loss = sum(model(input_ids=data["input_ids"], labels=data["labels"]).loss for _ in range(2))
    with pytest.raises(ALoRAError, match="used twice in one pass"):
        loss.backward()
    squares.close()
    adapted_weights(model)[0].parameter_a.data.fill_(float("nan"))
    with pytest.raises(ALoRAError, match="a prediction is not finite"):
        estimate_fisher(model, batches([2]), labels="sampled")
    with pytest.raises(ALoRAError, match="is not finite"):
        estimate_fisher(model, batches([2]))


def test_information_that_is_zero_everywhere_is_refused(lora_model):
    """A model whose output does not depend on its weights, as one with a broken head."""
    model = lora_model(moved=True)
    model.base_model.model.lm_head.weight.data.zero_()
    with pytest.raises(ALoRAError, match="over 4 samples is zero everywhere, so that it would hold nothing"):
        estimate_fisher(model, batches([2, 2]))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "embed_tokens"]])
def test_with_sampled_labels_it_is_what_autograd_gives_for_the_labels_that_were_drawn(
    lora_model: Callable[..., Any], targets: list[str]
) -> None:
    model = lora_model(dtype=torch.float64, moved=True, target_modules=targets)
    data = batches([3, 1])
    drawn = []
    for number, batch in enumerate(data, start=1):
        generator = torch.Generator().manual_seed(4 * 1_000_003 + number)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
        there = batch["labels"][:, 1:] != -100
        labels = batch["labels"].clone()
        labels[:, 1:][there] = torch.multinomial(logits[:, :-1][there].softmax(-1), 1, generator=generator)[:, 0]
        drawn.append(batch | {"labels": labels})
    estimate = estimate_fisher(model, data, labels="sampled", seed=4)
    text = estimate_fisher(model, data)
    assert (estimate.samples, estimate.tokens) == (text.samples, text.tokens)
    for name, values in autograd_fisher(model, drawn, "sample").items():
        found = estimate.omega[name] if estimate.omega[name].shape == values.shape else estimate.omega[name].T
        torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-6 * float(values.max()))
        assert not torch.allclose(estimate.omega[name], text.omega[name], rtol=0.05)


@pytest.mark.parametrize("kind", ["sample", "batch"])
def test_sampled_labels_tend_to_the_sum_over_all_labels(lora_model: Callable[..., Any], kind: str) -> None:
    """The true Fisher information of a sample: of independent labels, each by its probability."""
    model = lora_model(dtype=torch.float64, target_modules=["v_proj"]).eval()
    ids = torch.tensor([[3, 20, 7, 31]])
    size, count = (64, 25) if kind == "sample" else (2, 250)
    many = {"input_ids": ids.expand(size, -1), "labels": ids.expand(size, -1)}
    found = estimate_fisher(model, [many] * count, kind=kind, labels="sampled").omega
    weights = whole_weights(model)
    predictions = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    for name, weight in weights.items():
        expected = sum(
            value.exp().detach() * (torch.autograd.grad(value, weight, retain_graph=True)[0] / 3) ** 2
            for value in predictions.flatten()
        )
        assert isinstance(expected, torch.Tensor)
        limit = 0.1 if kind == "sample" else 0.25  # 1600 draws, and 250 of two at once
        assert float((found[name] - expected).norm() / expected.norm()) < limit
        assert float(found[name].sum() / expected.sum()) == pytest.approx(1, abs=limit / 3)


def test_sampled_labels_are_the_same_ones_where_it_goes_on_and_for_no_other_seed(
    lora_model: Callable[..., Any], tmp_path: Path
) -> None:
    model, data, path = lora_model(), batches([2, 3, 2, 1]), tmp_path / "fisher.safetensors"
    whole = estimate_fisher(model, data, labels="sampled", seed=1)
    estimate_fisher(model, data[:2], labels="sampled", seed=1, checkpoint=path, checkpoint_every=2)
    for other in ({"labels": "sampled", "seed": 2}, {"labels": "text", "seed": 1}):
        with pytest.raises(ALoRAError, match="belongs to another estimate"):
            estimate_fisher(model, data, checkpoint=path, **other)  # type: ignore[arg-type]
    resumed = estimate_fisher(model, data, labels="sampled", seed=1, checkpoint=path)
    assert (resumed.samples, resumed.batches) == (8, 4)
    other = estimate_fisher(model, data, labels="sampled", seed=2)
    for name, values in whole.omega.items():
        assert torch.equal(resumed.omega[name], values) and not torch.equal(other.omega[name], values)
