"""Evaluation results as the Hub's leaderboards read them: a file in ``.eval_results/``, beside the card's model-index.

The format is `huggingface_hub.EvalResultEntry` (https://huggingface.co/docs/hub/eval-results). A result has a place there where
its data set is a benchmark of the Hub, which says in its own ``eval.yaml`` what its tasks are called. Others are left out.
"""

from __future__ import annotations

import logging
import math
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from alora_trainer.artefact.cards.evaluation import CardScores
from alora_trainer.artefact.hub.client import HTTPError

RESULTS_FILE = ".eval_results/alora-trainer.yaml"
_TASKS_FILE = "eval.yaml"
_NOTES = "accuracy in per cent; the likeliest of the choices is the answer; measured by alora-trainer"

logger = logging.getLogger(__name__)


def write_benchmark_results(scores: CardScores, path: Path, token: str | bool | None) -> bool:
    """Write the results that have a place on the Hub.

    Args:
        scores: of the model that is published.
        path: of the file.
        token: as in `huggingface_hub`.

    Returns:
        Whether there are any.
    """
    entries = []
    for task in scores.score.tasks.values():
        source = task.source or {}
        if not isinstance(source.get("hub"), str) or task.acc is None or not math.isfinite(task.acc):
            continue
        name = _task_id(source, token)
        if name is not None:
            entries.append(EvalResultEntry(source["hub"], name, round(100 * task.acc, 4), notes=_NOTES))
    if not entries:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    return True


def _task_id(source: dict[str, Any] | Any, token: str | bool | None) -> str | None:
    """What the benchmark calls the one task of this part and split of its data; None if it is no benchmark, or not for sure."""
    tasks = [
        task
        for task in _tasks(source["hub"], token)
        if (task.get("config") or "default") == (source.get("name") or "default")
        and task.get("split") == source.get("split")
    ]
    return str(tasks[0]["id"]) if len(tasks) == 1 and isinstance(tasks[0].get("id"), str) else None


def _tasks(dataset: str, token: str | bool | None) -> list[dict[str, Any]]:
    try:
        path = hf_hub_download(dataset, _TASKS_FILE, repo_type="dataset", token=token)
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        return []
    except (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        HTTPError,
        JSONDecodeError,
        yaml.YAMLError,
    ) as error:
        logger.warning(f"whether {dataset} is a benchmark of the Hub is not known ({type(error).__name__})")
        return []
    tasks = content.get("tasks") if isinstance(content, dict) else None
    return [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
