"""What a curvature map predicts for small movements of single weights of a real model, beside what they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.weights.adapted import adapted_weights
from tests.tiny_training import with_lora

SMALL = 1e-3  # nats a token


def test_small_movements_of_single_weights_cost_what_is_predicted(shared: Path) -> None:
    """Within what takes gradients and inputs for independent and 768 tokens with one draw of labels for all text."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "base-5m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = load_dataset("json", data_files=str(shared / "data/general/books/test.jsonl.gz"), split="train")
    joined = tokenizer("\n".join(texts["text"][:4]))["input_ids"][: 8 * 96]
    ids = torch.tensor(joined).view(8, 96)
    model = with_lora(
        AutoModelForCausalLM.from_pretrained(folder).float(), target_modules=["q_proj", "up_proj", "down_proj"]
    )
    found = estimate_curvature(model, [{"input_ids": part} for part in ids.split(4)], "kronecker")
    weights = adapted_weights(model)
    importance = map_at_present(model, weights, found.importance, ImportanceInfo(estimator="kronecker"))
    penalty = QuadraticPenalty(weights, importance, lam=0.0, layer_weights="none")

    def predictions() -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model.eval()(input_ids=ids).logits.double(), -1)

    base, ratios = predictions(), {}
    generator = torch.Generator().manual_seed(0)
    for weight in weights[::6]:
        weight.b.copy_(torch.randn(weight.b.shape, generator=generator))
        weight.b.mul_((SMALL / (float(penalty.evaluate().literal) / 2)) ** 0.5)
        predicted = float(penalty.evaluate().literal) / 2
        measured = float((base.exp() * (base - predictions())).sum(-1).mean())
        ratios[weight.name] = measured / predicted
        weight.b.zero_()
    assert predicted == pytest.approx(SMALL, rel=1e-4)
    assert all(0.7 < ratio < 1.4 for ratio in ratios.values()), ratios
