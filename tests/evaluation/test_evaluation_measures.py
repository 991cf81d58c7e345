"""Divergence, calibration, packed answers, batch size, lm-eval's own tasks as general ability: each against a reference."""

from __future__ import annotations

import copy
import math
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.data.sources import write_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation import EvaluationConfig
from alora_trainer.evaluation.batch_size import largest_batch_size
from alora_trainer.evaluation.calibration import expected_calibration_error
from alora_trainer.evaluation.items import pack_correct, unpack_correct
from alora_trainer.evaluation.kl_to_base import kl_to_base
from alora_trainer.evaluation.lm_tasks import lm_eval_tasks
from tests.conftest import move_factors
from tests.evaluation_fixtures import TEXTS, evaluate_as_json


def reference_kl(adapted: Any, base: Any, windows: list[tuple[list[int], list[int]]]) -> float:
    """Window by window, in float64 (probabilities written out)."""
    total, count = 0.0, 0
    for context, continuation in windows:
        tokens = torch.tensor([(context + continuation)[:-1]])
        with torch.no_grad():
            p = torch.softmax(base(tokens).logits[0].double(), -1)[-len(continuation) :]
            q = torch.softmax(adapted(tokens).logits[0].double(), -1)[-len(continuation) :]
        total += float((p * (p / q).log()).sum())
        count += len(continuation)
    return total / count


def test_divergence_against_float64(model: Any, tokenizer: Any, general: dict[str, Path]) -> None:
    from peft import LoraConfig, get_peft_model

    from alora_trainer.evaluation.scorer import Scorer

    base = copy.deepcopy(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    move_factors(adapted, 0.3)
    config = EvaluationConfig(kl_tokens=10**6)
    found = evaluate_as_json(adapted, tokenizer, general=general, tasks={}, task_specs=[], config=config)["general"]
    scorer = Scorer(base, copy.deepcopy(tokenizer), batch_size=2, max_length=None)
    windows = {name: [w for text in texts for w in scorer.windows(text)] for name, texts in TEXTS.items()}
    kl = found["kl_to_base"]
    every = [window for own in windows.values() for window in own]
    assert kl["nats_per_token"] == pytest.approx(reference_kl(adapted, base, every), rel=1e-4)
    assert kl["tokens"] == found["tokens"]
    for name, own in windows.items():
        assert kl["subsets"][name]["nats_per_token"] == pytest.approx(reference_kl(adapted, base, own), rel=1e-4)
    few = kl_to_base(adapted, base, {"river": windows["river"][:1]}, batch_size=3)
    assert few.nats_per_token == pytest.approx(reference_kl(adapted, base, windows["river"][:1]), rel=1e-4)
    assert kl_to_base(base, base, windows, batch_size=4).nats_per_token == 0
    # The top guesses, window by window without padding.
    guesses = []
    for context, continuation in every:
        tokens = torch.tensor([(context + continuation)[:-1]])
        with torch.no_grad():
            both = [one(tokens).logits[0, -len(continuation) :].argmax(-1) for one in (base, adapted)]
        guesses += (both[0] != both[1]).tolist()
    assert 0 < kl["top_changed"] < 1 and kl["top_changed"] == sum(guesses) / len(guesses)
    assert kl_to_base(base, base, windows, batch_size=4).top_changed == 0
    with pytest.raises(ALoRAError, match="needs the base model"):
        kl_to_base(base, None, windows, batch_size=4)


def test_calibration_against_the_definition() -> None:
    chance = random.Random(0)
    scores = [[chance.gauss(-5, 3) for _ in range(chance.choice([2, 4]))] for _ in range(300)]
    targets = [chance.randrange(len(one)) for one in scores]
    bins: dict[int, list[tuple[float, float]]] = {}
    for one, target in zip(scores, targets, strict=True):
        shares = [math.exp(s) / sum(math.exp(t) for t in one) for s in one]
        confidence = max(shares)
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, float(shares.index(confidence) == target)))
    expected = sum(
        len(own) / 300 * abs(sum(right for _, right in own) / len(own) - sum(c for c, _ in own) / len(own))
        for own in bins.values()
    )
    assert expected_calibration_error(scores, targets) == pytest.approx(expected, rel=1e-12)
    sure = [[0.0, -1e9]] * 4
    assert expected_calibration_error(sure, [0] * 4) == 0
    assert expected_calibration_error(sure, [1] * 4) == 1
    assert expected_calibration_error(sure, [0, 1, 0, 1]) == pytest.approx(0.5)


@given(st.lists(st.booleans(), max_size=70))
def test_packed_answers_come_back(answers: list[bool]) -> None:
    packed = pack_correct(answers)
    assert len(packed) == 2 * math.ceil(len(answers) / 8)
    assert unpack_correct(packed, len(answers)).tolist() == [float(one) for one in answers]


def test_damaged_answers_are_refused() -> None:
    for text, items in (("zz", 8), ("ff", 9), ("ffff", 8)):
        with pytest.raises(ALoRAError, match="damaged"):
            unpack_correct(text, items)


def test_the_largest_batch_that_fits(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    size = largest_batch_size(model, 48, "cpu")
    assert size == 256 and size * 48 * model.config.vocab_size * 4 <= 2**29
    assert largest_batch_size(model, 2**20, "cpu") == 1

    class Card(torch.nn.Module):
        """Has room for 40 sequences, and complains as CUDA does."""

        config = model.config

        def forward(self, tokens: torch.Tensor) -> Any:
            if len(tokens) > 40:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return model(tokens)

    monkeypatch.setattr("torch.ones", lambda *shape, dtype, device: torch.zeros(*shape, dtype=dtype))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    assert 36 <= largest_batch_size(Card(), 8, "cuda") <= 40


def test_tasks_of_lm_eval_as_general_ability(
    model: Any,
    tokenizer: Any,
    general: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval.tasks

    docs = [{"q": "In the morning?", "c": ["water", "the river"], "a": i % 2} for i in range(3)]
    write_lines(tmp_path / "own.jsonl", docs)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(
        "task: own\noutput_type: multiple_choice\ncustom_dataset: !function "
        "alora_trainer.evaluation.lm_tasks.load_documents\n"
        f"dataset_kwargs: {{path: {tmp_path / 'own.jsonl'}}}\ntest_split: test\ndoc_to_text: q\ndoc_to_choice: c\n"
        "doc_to_target: a\nmetric_list: [{metric: acc}]\n"
    )
    config = EvaluationConfig(general_tasks=["own"], task_folder=str(tmp_path / "tasks"))
    found = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[], config=config)["general"]
    assert found["tasks"]["own"]["items"] == 3
    assert found["tasks"]["own"]["acc"] in (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["tasks"]["own"]["acc_stderr"] == pytest.approx(1 / 3)
    # Without the ten seconds in which lm-eval looks through all that it has.
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda *, include_defaults=None, **rest: manager(**rest))
    with pytest.raises(ALoRAError, match="lm-eval has no task no_such_task"):
        lm_eval_tasks(["own", "no_such_task"], str(tmp_path / "tasks"))
    for wrong in ("hellaswag", ["x", 1]):
        with pytest.raises(ALoRAError, match="general_tasks"):
            EvaluationConfig(general_tasks=wrong)  # type: ignore[arg-type]


def test_the_tokenizer_is_named(model: Any, tokenizer: Any, general: dict[str, Path]) -> None:
    found = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[])["tokenizer"]
    assert found["vocab_size"] == len(tokenizer) and len(found["vocab_sha256"]) == 64
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    assert evaluate_as_json(model, other, general=general, tasks={}, task_specs=[])["tokenizer"] != found
    assert np.isfinite(found["vocab_size"])


def test_the_beginning_of_each_document_as_pefts_method_comparison_scores_it(
    model: Any, tokenizer: Any, general: dict[str, Path]
) -> None:
    """Against its own arithmetic: a text's first tokens, with what the tokenizer puts before, the mean loss of all but one."""
    limit = 9
    losses, count, cut = 0.0, 0, []
    for text in (text for texts in TEXTS.values() for text in texts):
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        start = [] if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id or tokenizer.eos_token_id]
        rows = torch.tensor([start + ids])
        with torch.no_grad():
            logits = model(rows).logits[0].double()
        losses += float(torch.nn.functional.cross_entropy(logits[:-1], rows[0, 1:], reduction="sum"))
        count += rows.shape[1] - 1
        cut.append(tokenizer.decode(ids, skip_special_tokens=True))
    config = EvaluationConfig(document_tokens=limit, kl_tokens=10**6)
    found = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[], config=config, base=model)
    found = found["general"]
    assert found["tokens"] == count == found["kl_to_base"]["tokens"]
    assert found["token_cross_entropy"] == pytest.approx(losses / count, rel=1e-5)
    assert found["bytes"] == sum(len(text.encode()) for text in cut)
    assert found["words"] == sum(len(re.split(r"\s+", text)) for text in cut)
    assert found["subsets"]["lists"]["bits_per_byte"] > 0
    for wrong in (1, 2.5):
        with pytest.raises(ALoRAError, match="document_tokens"):
            EvaluationConfig(document_tokens=wrong)  # type: ignore[arg-type]
