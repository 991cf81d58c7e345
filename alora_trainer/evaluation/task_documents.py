"""Where the task package's documents come from, for plain ``lm_eval --include_path $(alora tasks)``: the Hub, or local files.

What lm-eval is given by ``--metadata`` arrives here: ``{"text": FILE}`` is the text of `alora_text`; ``{"data": FOLDER}`` (or
the environment variable ALORA_TASK_DATA) is a folder with ``NAME.jsonl`` or ``NAME/test.jsonl``, each also gzipped, for the
tasks sciq, piqa, medmcqa and pile_10k, to work without the Hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from alora_trainer.data.items import convert_records
from alora_trainer.data.sources import Source, load_source, load_texts
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError

PACKAGE = Path(__file__).resolve().parent / "task_package"
SPLIT = "test"
DATA_VARIABLE = "ALORA_TASK_DATA"
_PILE: Source = {"hub": "NeelNanda/pile-10k"}
_ENDINGS = (".jsonl", ".jsonl.gz", "/test.jsonl", "/test.jsonl.gz")


def load_documents(
    *, task: str, text: Source | None = None, data: str | None = None, **metadata: Any
) -> dict[str, Dataset]:
    """The documents of one task of the package, as lm-eval's ``custom_dataset`` hook wants them.

    Args:
        task: ``sciq``, ``piqa``, ``medmcqa``, ``pile_10k`` or ``text``.
        text: what ``text`` reads, a source as `load_source` takes it.
        data: a folder with local files for the others.
        metadata: what else lm-eval passes along, which has nothing to do with the documents.

    Raises:
        ALoRAError: there are no such documents, or one cannot be scored.
    """
    if task == "text" and text is None:
        raise ALoRAError('alora_text needs a text: pass --metadata \'{"text": "FILE.jsonl"}\' to lm_eval')
    if task == "text":
        assert text is not None
        return {SPLIT: Dataset.from_dict({"text": load_texts(text)})}
    folder = data or os.environ.get(DATA_VARIABLE)
    if task == "pile_10k":
        return {SPLIT: Dataset.from_dict({"text": load_texts(_local(folder, task) if folder else _PILE)})}
    definition = get_task(task)
    source = _local(folder, task) if folder else definition.hub[SPLIT]
    return {SPLIT: Dataset.from_list(convert_records(load_source(source), definition))}


def _local(folder: str, task: str) -> str:
    for ending in _ENDINGS:
        path = Path(f"{Path(folder).expanduser() / task}{ending}")
        if path.is_file():
            return str(path)
    names = ", ".join(task + ending for ending in _ENDINGS)
    raise ALoRAError(f"{folder} has none of {names}: correct the folder, or leave it out to read from the Hub")
