"""What is to be kept beside general text: tasks of lm-eval's, and files of one's own prompts with reference answers.

Such a file becomes a task of lm-eval's in a folder of its own, so that one gate knows both. Questions with choices are scored
by the likeliest one (``acc``); prompts with a short answer by what the model says, greedily, to the end of the line
(``exact_match``, case and punctuation aside).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.data.detection.examine import examine
from alora_trainer.data.detection.finding import find_data
from alora_trainer.data.detection.reading import read_named
from alora_trainer.data.items import convert_records
from alora_trainer.data.local_files import FORMATS
from alora_trainer.data.sources import write_lines
from alora_trainer.data.task import Task
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import choice_settings, write_task_file

# Longer answers are hardly ever said word for word, so that a gate on them would never fail.
_LONGEST = 32


def is_prompt_file(name: str) -> bool:
    """Whether what is to be kept is a file of prompts; else it is a task of lm-eval's."""
    return name.lower().endswith(FORMATS)


def kept_task(name: str) -> str:
    """The task that stands for `name`: of a file, one that is called after it."""
    if not is_prompt_file(name):
        return name
    stem = Path(name).name.split(".", 1)[0]
    return "keep_" + "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in stem)


def check_kept(names: Iterable[str]) -> None:
    """Raises ALoRAError if two of them would be one task, or a file is not there."""
    seen: dict[str, str] = {}
    for name in names:
        if is_prompt_file(name):
            find_data([name])
        if (other := seen.setdefault(kept_task(name), name)) != name:
            raise ALoRAError(f"{other} and {name} would be one task, {kept_task(name)}: rename one of them")


def write_kept(names: Sequence[str], folder: Path, tokenizer: Any) -> None:
    """Write the task of every file among `names` into `folder`, with its documents.

    Raises:
        ALoRAError: a file holds no prompts with answers; a reference answer is too long to be said word for word.
    """
    for name in filter(is_prompt_file, names):
        files, _ = find_data([name])
        found = examine(read_named(files), tokenizer)
        task = get_task(found.spec, tokenizer)
        if found.loss_on == "all" or "messages" in (found.spec if not isinstance(found.spec, str) else {}):
            raise ALoRAError(
                f"{name} has no prompts with reference answers that can be compared, it is {found.files[0].kind}: give columns "
                "such as prompt and completion, or a question with choices"
            )
        docs, settings = convert_records(found.records, task), choice_settings(task)
        if task.choices is None:
            docs, settings = _said(name, docs, task, tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        documents = folder / f"{kept_task(name)}.jsonl"
        write_lines(documents, docs)
        write_task_file(folder, kept_task(name), settings, documents)


def _said(name: str, docs: Sequence[Any], task: Task, tokenizer: Any) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Prompts with what is to be said, and lm-eval's settings for that."""
    pairs = [{"prompt": task.prompt(doc), "reference": task.completion(doc).strip()} for doc in docs]
    most = 0
    for number, pair in enumerate(pairs, start=1):
        length = len(tokenizer(pair["reference"], add_special_tokens=False)["input_ids"])
        if length > _LONGEST or "\n" in pair["reference"]:
            raise ALoRAError(
                f"the reference answer of prompt {number} of {name} has {length} tokens or several lines, and is compared word "
                f"for word: give answers of one line and {_LONGEST} tokens at most, or questions with choices"
            )
        most = max(most, length)
    compared = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    return pairs, {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "reference",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": most + 8},
        "filter_list": [{"name": "said", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [compared | {"ignore_case": True, "ignore_punctuation": True}],
    }
