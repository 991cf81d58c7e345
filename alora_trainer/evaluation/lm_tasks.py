"""lm-eval's own tasks on our files: a generated YAML for each, and a `TaskManager` that knows these alone.

Built-in tasks include lm-eval's YAML and change where the documents come from; templates become multiple-choice tasks
(or log-likelihood tasks for free answers); each subset of general text becomes a task of rolling log-likelihood.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from datasets import Dataset

from alora_trainer.basics.keys import nearest
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import Task
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

SPLIT = "test"
# What lm-eval reports of a text: over words, over UTF-8 bytes, and in bits.
ROLLING_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")

# Read by lm-eval through `custom_dataset` instead of its JSON loader, which guesses types (a list of dates would come
# back as timestamps) and leaves a copy of every file in the user's cache.
_LOADER = "alora_trainer.evaluation.lm_tasks.load_documents"


def load_documents(*, path: str, **metadata: Any) -> dict[str, Dataset]:
    """The documents of a JSON lines file, as lm-eval's ``custom_dataset`` hook wants them.

    lm-eval passes a task's ``metadata`` (such as its version) along, which has nothing to do with the documents.
    """
    return {SPLIT: Dataset.from_list(read_lines(Path(path)))}


def general_name(index: int) -> str:
    """lm-eval's name of the ``index``-th subset; ours might clash with a task's."""
    return f"alora_general_{index}"


def task_name(index: int) -> str:
    """lm-eval's name of the ``index``-th domain task."""
    return f"alora_task_{index}"


def write_task_files(folder: Path, general: Sequence[Path], tasks: Sequence[tuple[Task, Path]]) -> None:
    """Write one YAML file a subset and a task into ``folder``, called as `general_name` and `task_name` say."""
    for index, path in enumerate(general):
        write_task_file(folder, general_name(index), _rolling_task(), path)
    for index, (task, path) in enumerate(tasks):
        write_task_file(folder, task_name(index), choice_settings(task), path)


def task_manager(folder: Path) -> TaskManager:
    """A manager of the tasks in ``folder`` only: indexing the thousands that lm-eval brings takes it ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=[str(folder)])


def check_task_names(names: Sequence[str], folder: str | None) -> None:
    """Refuse names of lm-eval's tasks that it does not know, without opening their data.

    Args:
        names: of tasks or groups; none is looked for where there are none, since lm-eval's list takes seconds to read.
        folder: with further tasks, or None.

    Raises:
        ALoRAError: there is no such folder or task; the message has the nearest name.
    """
    if names:
        _manager_of(names, folder)


def lm_eval_tasks(names: Sequence[str], folder: str | None) -> Any:
    """lm-eval's own tasks (or groups, or those in `folder`) of these names, loaded.

    Raises:
        ALoRAError: there is no such folder or task, or its data cannot be had.
    """
    manager = _manager_of(names, folder)
    try:
        return manager.load(list(names))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ALoRAError(f"the tasks {', '.join(names)} cannot be loaded: {reason}") from error


def _manager_of(names: Sequence[str], folder: str | None) -> TaskManager:
    """A manager that knows all of `names`."""
    if folder is not None and not Path(folder).is_dir():
        raise ALoRAError(f"evaluation.task_folder={folder!r} is no folder: name one, relative to the recipe")
    manager = None if folder is None else task_manager(Path(folder))
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = _own_manager(folder)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        near = nearest(unknown[0], manager.all_tasks, 0.75)
        meant = f"did you mean {near}? " if near else ""
        raise ALoRAError(f"lm-eval has no task {unknown[0]}: {meant}`lm_eval ls tasks` lists those that it has")
    return manager


@cache
def _own_manager(folder: str | None) -> TaskManager:
    """A manager of all that lm-eval brings, and of a folder; read once a process, since a check and a scoring both ask."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else [folder])


def write_task_file(folder: Path, name: str, settings: Mapping[str, Any], documents: Path) -> None:
    """Write ``folder/NAME.yaml``, a task with lm-eval's `settings` on a JSON lines file.

    Raises:
        ALoRAError: there is no such file.
    """
    if not documents.is_file():
        raise ALoRAError(f"there is no file {documents} to evaluate on: prepare the data first")
    common = {
        "task": name,
        "dataset_kwargs": {"path": str(documents.resolve())},
        "training_split": None,
        "validation_split": None,
        "test_split": SPLIT,
        "num_fewshot": 0,
    }
    # In ASCII, whatever encoding lm-eval reads it in. Not as JSON, whose two halves of an emoji are none to YAML.
    text = yaml.safe_dump({**settings, **common}, allow_unicode=False, width=sys.maxsize)
    (folder / f"{name}.yaml").write_text(f"{text}custom_dataset: !function {_LOADER}\n", encoding="ascii")


def _rolling_task() -> dict[str, Any]:
    # doc_to_target is the column's name: as a template, lm-eval would read a text in brackets as a Python list.
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": name} for name in ROLLING_METRICS],
    }


def choice_settings(task: Task) -> dict[str, Any]:
    """lm-eval's settings for a task with choices, or with free answers by their likelihood."""
    if task.lm_eval_task is not None:
        import lm_eval.tasks

        home = Path(lm_eval.tasks.__file__).parent / task.lm_eval_task / f"{task.lm_eval_task}.yaml"
        if not home.is_file():
            raise ALoRAError(f"this lm-eval has no task {task.lm_eval_task} at {home}: install a version that does")
        return {"include": str(home)}
    if task.choices is None:
        return {
            "output_type": "loglikelihood",
            "doc_to_text": "prompt",
            "doc_to_target": "completion",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": task.target_delimiter,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
