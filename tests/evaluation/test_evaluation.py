"""What lm-eval reports through the runner, against scores computed one token at a time in float64."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.basics.scores import GeneralScore
from alora_trainer.data.domain import DomainConfig, prepare_domain
from alora_trainer.data.general import write_held_out
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.tasks import Task, get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation import EvaluationConfig, pooled
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.text_table import format_table
from tests.conftest import move_factors
from tests.evaluation_fixtures import CONTEXT, TEXTS, evaluate_as_json
from tests.tiny_tokenizer import make_tokenizer


def log_likelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    """Sum of the continuation's log-probabilities, each from its own forward pass, in float64."""
    model = copy.deepcopy(model).double().eval()
    tokens = context + continuation
    total = 0.0
    for position in range(len(context), len(tokens)):
        start = max(0, len(tokens) - 1 - CONTEXT)  # the window is cut for the whole, not anew for every token
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start:position]])).logits[0, -1]
        total += float(torch.log_softmax(logits, -1)[tokens[position]])
    return total


def rolling(model: Any, tokens: list[int]) -> float:
    """As lm-eval splits a document: whole windows, the last one over as much as fits; the first follows EOS."""
    total = log_likelihood(model, [0], tokens[:CONTEXT])
    for start in range(CONTEXT, len(tokens), CONTEXT):
        end = min(start + CONTEXT, len(tokens))
        context = tokens[max(0, end - CONTEXT - 1) : start]
        total += log_likelihood(model, context, tokens[start:end])
    return total


def expected_general(model: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    tokens = [tokenizer.encode(text) for text in texts]
    total = sum(rolling(model, ids) for ids in tokens)
    count, size = sum(map(len, tokens)), sum(len(text.encode()) for text in texts)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    return {
        "token_cross_entropy": -total / count,
        "token_perplexity": math.exp(-total / count),
        "token_perplexity_base2": 2 ** (-total / count),
        "word_perplexity": math.exp(-total / words),
        "byte_perplexity": math.exp(-total / size),
        "bits_per_byte": -total / size / math.log(2),
        "tokens": count,
        "words": words,
        "bytes": size,
    }


def expected_scores(model: Any, tokenizer: Any, task: Task, path: Path) -> list[list[float]]:
    assert task.choices is not None
    scores = []
    for doc in read_lines(path):
        context = tokenizer.encode(task.prompt(doc))
        answers = [tokenizer.encode(task.prompt(doc) + " " + c)[len(context) :] for c in task.choices(doc)]
        scores.append([log_likelihood(model, context, answer) for answer in answers])
    return scores


class TestNumbers:
    def test_general(self, model: Any, tokenizer: Any, general: dict[str, Path], tmp_path: Path) -> None:
        samples = tmp_path / "samples.jsonl"
        result = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[], samples_path=samples)[
            "general"
        ]
        for name, texts in TEXTS.items():
            expected = expected_general(model, tokenizer, texts)
            assert result["subsets"][name] == pytest.approx(expected, rel=1e-5)
        everything = expected_general(model, tokenizer, [text for texts in TEXTS.values() for text in texts])
        subsets = result.pop("subsets")
        assert result == pytest.approx(everything, rel=1e-5)
        rows = read_lines(samples)
        assert [row["subset"] for row in rows] == ["river", "river", "lists", "lists"]
        assert rows[1]["tokens"] > 2 * CONTEXT  # several windows
        assert pooled(rows[:2]).to_json() == pytest.approx(subsets["river"], rel=1e-12)

    def test_choices(self, model: Any, tokenizer: Any, elements: tuple[Task, Path], tmp_path: Path) -> None:
        task, path = elements
        samples = tmp_path / "samples.jsonl"
        result = evaluate_as_json(
            model, tokenizer, general={}, tasks={"elements": path}, task_specs=[task], samples_path=samples
        )
        assert result["general"] == {}
        scores = expected_scores(model, tokenizer, task, path)
        rows, docs = read_lines(samples), read_lines(path)
        for row, expected in zip(rows, scores, strict=True):
            assert row["log_likelihoods"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        best = [max(range(len(s)), key=s.__getitem__) for s in scores]
        norms = [
            [s / len(c) for s, c in zip(one, doc["choices"], strict=True)]
            for one, doc in zip(scores, docs, strict=True)
        ]
        best_norm = [max(range(len(s)), key=s.__getitem__) for s in norms]
        hits = [float(b == doc["answer"]) for b, doc in zip(best, docs, strict=True)]
        hits_norm = [float(b == doc["answer"]) for b, doc in zip(best_norm, docs, strict=True)]
        scored = result["tasks"]["elements"]
        assert (scored["acc"], scored["acc_norm"], scored["items"]) == (sum(hits) / 5, sum(hits_norm) / 5, 5)
        assert scored["acc_stderr"] == pytest.approx(float(torch.tensor(hits).std()) / math.sqrt(5), rel=1e-5)
        assert [row["acc"] for row in rows] == hits and [row["target"] for row in rows] == [d["answer"] for d in docs]

    def test_free_answers(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        task = get_task({"name": "free", "prompt": "Question: {q}\nAnswer:", "completion": "{a}"})
        docs = [task.convert({"q": "Where?", "a": "river"}), task.convert({"q": "What?", "a": "salt water"})]
        write_lines(tmp_path / "free.jsonl", docs)
        config = EvaluationConfig(bootstrap_iters=20)
        result = evaluate_as_json(
            model, tokenizer, general={}, tasks={"free": tmp_path / "free.jsonl"}, task_specs=[task], config=config
        )["tasks"]["free"]
        scores, tokens = [], 0
        for doc in docs:
            context = tokenizer.encode(task.prompt(doc))
            answer = tokenizer.encode(task.prompt(doc) + task.completion(doc))[len(context) :]
            scores.append(log_likelihood(model, context, answer))
            tokens += len(answer)
        assert result["answer_tokens"] == tokens
        assert result["answer_loss"] == pytest.approx(-sum(scores) / tokens, rel=1e-4)
        assert result["answer_perplexity"] == pytest.approx(math.exp(-sum(scores) / tokens), rel=1e-4)
        assert result["perplexity"] == pytest.approx(math.exp(-sum(scores) / 2), rel=1e-4)
        assert result["perplexity_stderr"] > 0 and result["acc"] == 0 and result["items"] == 2

    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_sharing_the_prompt_changes_nothing(
        self, model: Any, tokenizer: Any, elements: tuple[Task, Path], batch_size: int
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        from alora_trainer.evaluation.scorer import Scorer

        task, path = elements
        assert task.choices is not None
        requests = []
        for doc in read_lines(path):
            context = tokenizer.encode(task.prompt(doc))
            for choice in task.choices(doc):
                answer = tokenizer.encode(task.prompt(doc) + " " + choice)[len(context) :]
                requests.append(((task.prompt(doc), choice), context, answer))
        theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)._loglikelihood_tokens(requests)
        scorer = Scorer(model, copy.deepcopy(tokenizer), batch_size=batch_size, max_length=None)
        shared = [index for batch in scorer._shared_batches(requests) for group in batch for index in group]
        assert 4 <= len(shared) < len(requests)
        ours = scorer._loglikelihood_tokens(requests)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], rel=1e-5, abs=1e-5)

    def test_a_model_without_a_cache(self, model: Any, tokenizer: Any, elements: tuple[Task, Path]) -> None:
        arguments: dict[str, Any] = {"general": {}, "tasks": {"elements": elements[1]}, "task_specs": [elements[0]]}
        shared = evaluate_as_json(model, tokenizer, **arguments)
        forward = model.forward

        def without_cache(*args: Any, **settings: Any) -> Any:
            output = forward(*args, **settings)
            output.past_key_values = None
            return output

        model.forward = without_cache
        plain = evaluate_as_json(model, tokenizer, **arguments)
        names = ("ece", "choice_cross_entropy", "choice_cross_entropy_stderr")
        rounded = [[result["tasks"]["elements"].pop(name) for name in names] for result in (plain, shared)]
        assert plain == shared and rounded[0] == pytest.approx(rounded[1], rel=1e-4)

    def test_bfloat16_is_scored_in_float32(self, model: Any, tokenizer: Any, general: dict[str, Path]) -> None:
        model = model.to(torch.bfloat16)
        result = evaluate_as_json(model, tokenizer, general={"lists": general["lists"]}, tasks={}, task_specs=[])
        row = result["general"]["token_cross_entropy"] * result["general"]["tokens"]
        assert row != float(torch.tensor(row, dtype=torch.bfloat16))


class TestModels:
    def test_peft_model_and_its_adapter(self, model: Any, tokenizer: Any, general: dict[str, Path]) -> None:
        from peft import LoraConfig, get_peft_model

        def perplexity(one: Any) -> float:
            result = evaluate_as_json(one, tokenizer, general=general, tasks={}, task_specs=[])
            return float(result["general"]["token_perplexity"])

        plain = perplexity(model)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        assert perplexity(adapted) == pytest.approx(plain, rel=1e-6)
        move_factors(adapted, 0.3)
        moved = perplexity(adapted)
        assert moved != pytest.approx(plain, rel=1e-3)
        assert perplexity(adapted.merge_and_unload()) == pytest.approx(moved, rel=1e-4)

    @pytest.mark.parametrize("training", [True, False])
    def test_everything_is_as_it_was(
        self, model: Any, general: dict[str, Path], elements: tuple[Task, Path], training: bool
    ) -> None:
        tokenizer = make_tokenizer(pad_token=None)
        model.train(training)
        model.model.layers[0].train(not training)
        modes = [module.training for module in model.modules()]
        torch.manual_seed(3)
        state = torch.get_rng_state()
        level = logging.getLogger("lm_eval").level
        limits = tokenizer.model_max_length
        evaluate_as_json(model, tokenizer, general=general, tasks={"elements": elements[1]}, task_specs=[elements[0]])
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert tokenizer.pad_token is None and tokenizer.model_max_length == limits
        assert model.config.use_cache is True
        assert logging.getLogger("lm_eval").level == level and "DISABLE_MULTIPROC" not in os.environ
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_mode_is_restored_after_a_failure(self, model: Any, tokenizer: Any, general: dict[str, Path]) -> None:
        forward = model.forward

        def fail(*arguments: Any, **settings: Any) -> Any:
            if not arguments:  # the look at the model before it is scored
                return forward(**settings)
            raise RuntimeError("broken")

        model.train()
        model.forward = fail
        with pytest.raises(RuntimeError, match="broken"):
            evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[])
        assert model.training and model.config.use_cache is True

    def test_nothing_is_printed(
        self, model: Any, tokenizer: Any, general: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[])
        captured = capsys.readouterr()
        assert captured.out == "" and "longer than" not in captured.err


class TestSettings:
    def test_limit_and_length(
        self, model: Any, tokenizer: Any, general: dict[str, Path], elements: tuple[Task, Path]
    ) -> None:
        config = EvaluationConfig(limit=1, max_length=32, batch_size=2, bootstrap_iters=0)
        result = evaluate_as_json(
            model,
            tokenizer,
            general=general,
            tasks={"elements": elements[1]},
            task_specs=[elements[0]],
            config=config,
        )
        assert result["tasks"]["elements"]["items"] == 1 and result["tasks"]["elements"]["acc_stderr"] is None
        first = sum(len(tokenizer.encode(texts[0])) for texts in TEXTS.values())
        assert result["general"]["tokens"] == first
        json.dumps(result, allow_nan=False)

    @pytest.mark.parametrize(
        "settings", [{"batch_size": 0}, {"max_length": 1}, {"limit": 0.5}, {"bootstrap_iters": -1}, {"limit": True}]
    )
    def test_wrong_settings(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ALoRAError, match="evaluation." + next(iter(settings))):
            EvaluationConfig(**settings)

    def test_wrong_calls(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(ALoRAError, match="nothing to evaluate on"):
            evaluate_as_json(model, tokenizer, general={}, tasks={}, task_specs=[])
        with pytest.raises(ALoRAError, match="the task sciq has no definition"):
            evaluate_as_json(model, tokenizer, general={}, tasks={"sciq": tmp_path / "x"}, task_specs=[])
        with pytest.raises(ALoRAError, match="no file .*absent.jsonl to evaluate on"):
            evaluate_as_json(model, tokenizer, general={"x": tmp_path / "absent.jsonl"}, tasks={}, task_specs=[])

    def test_an_answer_that_does_not_fit_is_named(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        task = get_task({"name": "t", "prompt": "{q}", "choices": ["a", "b"], "answer": "a"})
        path = tmp_path / "t.jsonl"
        write_lines(path, [task.convert({"q": "Which?", "a": "water " * 30, "b": "salt"})])
        config = EvaluationConfig(max_length=16)
        with pytest.raises(ALoRAError, match="does not fit evaluation.max_length=16: raise it"):
            evaluate_as_json(model, tokenizer, general={}, tasks={"t": path}, task_specs=[task], config=config)

    def test_a_ruined_model_has_infinite_perplexity(self) -> None:
        row = {"log_likelihood": -1e5, "tokens": 10, "words": 1, "bytes": 20}
        assert pooled([row]).token_perplexity == math.inf


def test_real_items_and_model(shared: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "base-5m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = shared / "data"
    domain = DomainConfig(
        "sciq",
        train=str(data / "tasks/sciq/validation.jsonl.gz"),
        test=str(data / "tasks/sciq/test.jsonl.gz"),
        test_items=8,
    )
    files = prepare_domain(domain, base=tmp_path, folder=tmp_path)
    general = write_held_out({"books": str(data / "general/books/test.jsonl.gz")}, tmp_path, max_bytes=2000)
    samples = tmp_path / "samples.jsonl"
    result = evaluate_as_json(
        model,
        tokenizer,
        general=general,
        tasks={"sciq": files.test},
        task_specs=[get_task("sciq")],
        samples_path=samples,
    )
    assert 30 < result["general"]["token_perplexity"] < 120
    assert result["tasks"]["sciq"]["items"] == 8
    row, doc = read_lines(samples)[1], read_lines(files.test)[0]
    task = get_task("sciq")
    context = tokenizer.encode(task.prompt(doc))
    answer = tokenizer.encode(task.prompt(doc) + task.completion(doc))[len(context) :]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([context + answer])).logits[0], -1)
    expected = sum(float(scores[len(context) + i - 1, token]) for i, token in enumerate(answer))
    assert row["log_likelihoods"][row["target"]] == pytest.approx(expected, abs=1e-3)


class TestTable:
    def test_whole(self) -> None:
        general = {"token_perplexity": 40.0}
        sciq = {"acc": 0.5, "acc_stderr": 0.016, "acc_norm": 0.48, "acc_norm_stderr": None}
        results = {
            "base": {"general": general, "tasks": {"sciq": sciq}},
            "alora": {
                "general": {"token_perplexity": 42.0},
                "tasks": {"sciq": sciq, "free": {"acc": 0.0, "answer_loss": 0.5, "answer_perplexity": math.exp(0.5)}},
                "train": {"seconds": 61.4, "peak_bytes": 3 * 2**29},
            },
            "lora": {"train": {"seconds": None, "peak_bytes": 2**20}},
        }
        expected = """
| method | general perplexity | loss rise | sciq acc (%) | acc_norm (%) | free loss | perplexity | seconds | peak memory |
| :----- | -----------------: | --------: | -----------: | -----------: | --------: | ---------: | ------: | ----------: |
| base   |              40.00 |   +0.00 % |   50.0 ± 1.6 |         48.0 |         - |          - |       - |           - |
| alora  |              42.00 |   +1.32 % |   50.0 ± 1.6 |         48.0 |     0.500 |       1.65 |      61 |    1.50 GiB |
| lora   |                  - |         - |            - |            - |         - |          - |       - |       1 MiB |
"""
        methods = {name: MethodResult.from_json(result, name) for name, result in results.items()}
        assert format_table(methods) == expected.strip()

    def test_without_base_there_is_no_change(self) -> None:
        line = format_table({"lora": MethodResult(GeneralScore(token_perplexity=3.0))}).splitlines()[-1]
        assert line.split() == ["|", "lora", "|", "3.00", "|", "-", "|", "-", "|", "-", "|"]
