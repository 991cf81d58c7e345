"""A file of prompts with reference answers as something to keep: against the model's own generation, one prompt at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation import EvaluationConfig
from alora_trainer.evaluation.kept_prompts import check_kept, is_prompt_file, kept_task, write_kept
from tests.evaluation_fixtures import evaluate_as_json

ASKED = ["Which gas is noble?", "Symbol of carbon?", "And now?", "In the morning?"]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """What the model says greedily, to the end of the line."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.eval().generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=1)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).partition("\n")[0].strip()


def test_short_answers_are_compared_with_what_the_model_says(
    model: Any,
    tokenizer: Any,
    general: dict[str, Path],
    tmp_path: Path,
    told: Callable[[], list[str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first two references are what it says, in other letters; those of the others are not."""
    rows = [{"prompt": prompt, "completion": " water water"} for prompt in ASKED]
    task = kept_task(written(tmp_path / "my prompts.jsonl", rows))
    write_kept([str(tmp_path / "my prompts.jsonl")], tmp_path / "keep", tokenizer)
    settings = (tmp_path / "keep" / f"{task}.yaml").read_text()
    room = next(int(line.split(":")[1]) for line in settings.splitlines() if "max_gen_toks" in line)
    documents = tmp_path / "keep" / f"{task}.jsonl"
    docs = [json.loads(line) for line in documents.read_text().splitlines()]
    right = 0
    for place, doc in enumerate(docs):
        own = said(model, tokenizer, doc["prompt"], room)
        doc["reference"] = own.upper() + "!" if place < 2 else f"{own} x"
        right += place < 2
    written(documents, docs)
    config = EvaluationConfig(general_tasks=[task], task_folder=str(tmp_path / "keep"))
    found = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[], config=config)["general"][
        "tasks"
    ]
    (score,) = (value for name, value in found[task].items() if name.startswith("exact_match,"))
    assert score == right / len(docs) == 0.5 and found[task]["items"] == 4
    assert any(line.startswith("evaluating: prompts 4 of 4") for line in told())
    assert any(line.startswith("evaluating: windows ") for line in told())
    assert "it/s" not in capfd.readouterr().err  # lm-eval's own bars, which it draws into logs, too


def test_questions_with_choices_are_scored_as_the_domains_are(
    model: Any, tokenizer: Any, general: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"question": one, "choices": ["water", "the river"], "answer": at % 2} for at, one in enumerate(ASKED)]
    name = written(tmp_path / "asked.jsonl", rows)
    write_kept([name, "hellaswag"], tmp_path / "keep", tokenizer)
    (path,) = (tmp_path / "keep").glob("*.yaml")  # none for lm-eval's own
    assert kept_task(name) == path.stem == "keep_asked" and kept_task("hellaswag") == "hellaswag"
    config = EvaluationConfig(general_tasks=["keep_asked"], task_folder=str(tmp_path / "keep"))
    found = evaluate_as_json(model, tokenizer, general=general, tasks={}, task_specs=[], config=config)
    assert found["general"]["tasks"]["keep_asked"]["items"] == 4
    assert 0 <= found["general"]["tasks"]["keep_asked"]["acc"] <= 1


def test_what_could_never_fail_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "completion": " water" * 40}, {"prompt": "Who?", "completion": " water"}]
    long = written(tmp_path / "long.jsonl", rows)
    with pytest.raises(ALoRAError, match=r"prompt 1 of .*long\.jsonl has \d+ tokens .* compared word for word"):
        write_kept([long], tmp_path / "keep", tokenizer)
    texts = written(tmp_path / "texts.jsonl", [{"text": "The people walked to the river. " * 9}] * 3)
    with pytest.raises(ALoRAError, match="no prompts with reference answers that can be compared"):
        write_kept([texts], tmp_path / "keep", tokenizer)
    (tmp_path / "a").mkdir()
    other = written(tmp_path / "a" / "long.csv", rows)
    with pytest.raises(ALoRAError, match="would be one task, keep_long: rename"):
        check_kept([long, other])
    with pytest.raises(ALoRAError, match="no file"):
        check_kept(["nowhere.jsonl"])
    assert is_prompt_file("a.jsonl.gz") and not is_prompt_file("hellaswag")


def test_a_task_file_names_code_of_this_package_alone(tokenizer: Any, tmp_path: Path) -> None:
    name = written(tmp_path / "asked.jsonl", [{"prompt": one, "completion": " water"} for one in ASKED])
    write_kept([name], tmp_path / "keep", tokenizer)
    text = (tmp_path / "keep" / "keep_asked.yaml").read_text()
    assert text.count("!function") == 1
    plain = yaml.safe_load(text.replace("!function ", ""))
    assert plain["custom_dataset"] == "alora_trainer.evaluation.lm_tasks.load_documents"
    assert plain["output_type"] == "generate_until" and plain["num_fewshot"] == 0
