"""`compute_metrics` and the learning curve: the same numbers as lm-eval's and as a dense reference; training is not changed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from alora_trainer.data.domain import collator
from alora_trainer.data.sources import write_lines
from alora_trainer.data.tasks import Task, get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.learning_curve import LearningCurve
from alora_trainer.evaluation.trainer_metrics import choice_rows, label_log_likelihoods, load_metric, perplexity_metrics
from alora_trainer.experiment.run.log_columns import columns
from tests.evaluation_fixtures import ELEMENTS, evaluate_as_json


def test_the_metrics_alone() -> None:
    perplexity = load_metric("token_perplexity")
    found = perplexity.compute(predictions=[[-1.0, -3.0], [-2.0]], references=[[5, 7], [-100]])
    assert found == {"perplexity": pytest.approx(math.exp(2)), "cross_entropy": 2.0, "tokens": 2}
    with pytest.raises(ValueError, match="no token counts"):
        perplexity.compute(predictions=[[-1.0]], references=[[-100]])
    accuracy = load_metric("multiple_choice_accuracy")
    scores, targets = [[-1.0, -2.0], [-4.0, -3.0, -9.0], [-1.0, -1.0]], [0, 0, 0]
    found = accuracy.compute(predictions=scores, references=targets)
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_stderr": pytest.approx(1 / 3)}
    assert accuracy.compute(predictions=[[0.0, 1.0]], references=[1]) == {"accuracy": 1.0, "accuracy_stderr": None}


def test_likelihoods_of_labels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 9), torch.tensor([[3, 1, -100, 2], [-100, 0, 8, 8]])
    found = label_log_likelihoods((logits, "more"), labels)
    expected = torch.zeros(2, 4)
    for row in range(2):
        for place in range(1, 4):
            if labels[row, place] >= 0:
                expected[row, place] = torch.log_softmax(logits[row, place - 1], 0)[labels[row, place]]
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.fixture
def trainer(model: Any, tokenizer: Any, training_arguments: Callable[..., Any]) -> Callable[..., Trainer]:
    def build(**settings: Any) -> Trainer:
        arguments = training_arguments(per_device_eval_batch_size=3, label_names=["labels"])
        return Trainer(model, arguments, data_collator=collator(tokenizer), **settings)

    return build


def test_accuracy_is_lm_evals(
    model: Any,
    tokenizer: Any,
    elements: tuple[Task, Path],
    trainer: Callable[..., Trainer],
) -> None:
    task, path = elements
    rows, metrics = choice_rows(task, path, tokenizer, max_length=48)
    evaluating = trainer(
        eval_dataset=rows, compute_metrics=metrics, preprocess_logits_for_metrics=label_log_likelihoods
    )
    found = evaluating.evaluate()
    expected = evaluate_as_json(model, tokenizer, general={}, tasks={"elements": path}, task_specs=[task])["tasks"]
    assert found["eval_accuracy"] == expected["elements"]["acc"]
    assert found["eval_accuracy_stderr"] == pytest.approx(expected["elements"]["acc_stderr"])
    few, few_metrics = choice_rows(task, path, tokenizer, max_length=48, items=2)
    assert few_metrics.choices == [3, 3] and len(few) == 6
    with pytest.raises(ALoRAError, match="6 rows were evaluated|rows were evaluated, not"):
        trainer(
            eval_dataset=few, compute_metrics=metrics, preprocess_logits_for_metrics=label_log_likelihoods
        ).evaluate()


def test_perplexity_is_the_models(
    tokenizer: Any, trainer: Callable[..., Trainer], token_data: Callable[..., Any]
) -> None:
    data = token_data(items=7)
    evaluating = trainer(
        eval_dataset=data, compute_metrics=perplexity_metrics, preprocess_logits_for_metrics=label_log_likelihoods
    )
    found = evaluating.evaluate()
    total, count = 0.0, 0
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), row["labels"]
        with torch.no_grad():
            scores = torch.log_softmax(evaluating.model.eval()(ids).logits[0].double(), -1)
        for place in range(1, len(labels)):
            if labels[place] >= 0:
                total -= float(scores[place - 1, labels[place]])
                count += 1
    assert found["eval_cross_entropy"] == pytest.approx(total / count, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_what_cannot_be_measured(tokenizer: Any, tmp_path: Path) -> None:
    free = get_task({"name": "free", "prompt": "{q}", "completion": "{a}"})
    with pytest.raises(ALoRAError, match="has no choices"):
        choice_rows(free, tmp_path / "x", tokenizer, max_length=8)
    task = get_task(ELEMENTS)
    write_lines(tmp_path / "x.jsonl", [])
    with pytest.raises(ALoRAError, match="has no items"):
        choice_rows(task, tmp_path / "x.jsonl", tokenizer, max_length=8)
    write_lines(tmp_path / "x.jsonl", [task.convert({"question": "q", "choices": ["water " * 9, "C"], "answer": 0})])
    with pytest.raises(ALoRAError, match="does not fit into max_length 8"):
        choice_rows(task, tmp_path / "x.jsonl", tokenizer, max_length=8)


def test_a_learning_curve_does_not_change_the_training(
    model: Any,
    tokenizer: Any,
    elements: tuple[Task, Path],
    token_data: Callable[..., Any],
    training_arguments: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model.config.attention_dropout = 0.3  # so that the random generator matters
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    rows = choice_rows(*elements, tokenizer, max_length=48)

    def train(with_curve: bool) -> Trainer:
        torch.manual_seed(4)
        training = Trainer(
            copy.deepcopy(model),
            training_arguments(max_steps=5, seed=4, label_names=["labels"]),
            train_dataset=token_data(),
            data_collator=collator(tokenizer),
        )
        if with_curve:
            curve = LearningCurve(
                training, every=2, general=token_data(items=5), domain=rows, folder=tmp_path / "curve"
            )
            training.add_callback(curve)
        training.train()
        return training

    plain, measured = train(False), train(True)
    for one, other in zip(plain.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert measured.compute_metrics is None
    found = columns(measured.state.log_history)
    assert found["curve"]["step"] == [0, 2, 4, 5]
    assert set(found["curve"]) == {
        "step", "general_perplexity", "general_cross_entropy", "domain_accuracy", "domain_accuracy_stderr"
    }  # fmt: skip
    assert found["training"]["step"] == [1, 2, 3, 4, 5] and "curve" not in columns(plain.state.log_history)
    saved = json.loads((tmp_path / "curve" / "step-4.json").read_text())
    assert saved["curve_domain_accuracy"] == found["curve"]["domain_accuracy"][2]
    # At the end it is what lm-eval finds, too.
    task, path = elements
    last = evaluate_as_json(measured.model, tokenizer, general={}, tasks={"elements": path}, task_specs=[task])
    assert found["curve"]["domain_accuracy"][-1] == last["tasks"]["elements"]["acc"]


def test_a_recipe_with_a_curve(tmp_path: Path) -> None:
    from alora_trainer.experiment.recipe.reading import load_recipe
    from alora_trainer.experiment.run.whole_recipe import tune_recipe
    from tests.tiny_recipe import write_all

    recipe = load_recipe(write_all(tmp_path), {"evaluation.curve_steps": "3", "evaluation.curve_items": "4"})
    folder = tune_recipe(recipe, recipe.methods[1], output_dir=tmp_path / "run").parent
    history = json.loads((folder / "training.json").read_text())["train"]["history"]
    assert history["curve"]["step"] == [0, 3, 4]
    assert all(value > 1 for value in history["curve"]["general_perplexity"])
    assert all(4 * value == int(4 * value) for value in history["curve"]["domain_accuracy"])
    drift = json.loads((folder / "training.json").read_text())["train"]["drift"]
    assert len(drift) == 4 and all(value > 0 for value in drift.values())


def test_the_curve_reads_answers_that_training_leaves_out(tmp_path: Path) -> None:
    """`domain.max_length` is of what is trained on; the curve measures what the final evaluation does."""
    from alora_trainer.experiment.recipe.reading import load_recipe
    from alora_trainer.experiment.run.whole_recipe import tune_recipe
    from tests.tiny_recipe import write_all

    path = write_all(tmp_path)
    test = tmp_path / "sums_test.jsonl"
    items = [json.loads(line) for line in test.read_text().splitlines()]
    items[0]["choices"][0] = " ".join(["one"] * 40)
    test.write_text("".join(json.dumps(item) + "\n" for item in items))
    recipe = load_recipe(path, {"evaluation.curve_steps": "4"})
    folder = tune_recipe(recipe, recipe.methods[1], output_dir=tmp_path / "run").parent
    history = json.loads((folder / "training.json").read_text())["train"]["history"]
    assert history["curve"]["step"] == [0, 4]
