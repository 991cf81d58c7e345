"""The data looked at, before anything is written: which items are learned, which are the test, which text is general."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alora_trainer.basics.hub_ids import HUB_PREFIX
from alora_trainer.data.detection.examine import LONGEST, Examined, examine
from alora_trainer.data.detection.finding import find_data
from alora_trainer.data.detection.reading import read_named, texts_of
from alora_trainer.data.items import split_records
from alora_trainer.data.local_files import TEXT_FORMATS
from alora_trainer.data.records import Row
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.kept_prompts import is_prompt_file
from alora_trainer.experiment.fit.findings import Findings
from alora_trainer.experiment.fit.general_parts import PARTS, in_parts
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.fit.validation import with_validation
from alora_trainer.experiment.recipe.contents import CONTENTS

# Of the items, held out for the test: a tenth, but enough for a figure, and no more than figures need.
_SHARE, _FEWEST, _MOST = 10, 50, 1000
_LEAST_ITEMS = 20


def look(request: FitRequest, tokenizer: Any) -> Findings:
    """Read all data and say what they are.

    Args:
        request: what is asked for.
        tokenizer: the base model's.

    Raises:
        ALoRAError: something cannot be read or used; the message has the file, the record and what to do.
    """
    limit = tokenizer.model_max_length if tokenizer.model_max_length < 10**6 else LONGEST
    settings: dict[str, Any] = {"longest": min(LONGEST, limit), "templates": request.templates}
    train_names, test_names = find_data(request.data)
    learned = examine(read_named(train_names), tokenizer, **settings)
    if len(learned.records) < _LEAST_ITEMS:
        cut = (
            f" (plain text is cut into pieces of up to {settings['longest']} tokens)"
            if learned.loss_on == "all"
            else ""
        )
        raise ALoRAError(
            f"only {len(learned.records)} items{cut} can be learned from {', '.join(train_names)}: {_LEAST_ITEMS} are needed, "
            "of which some are held out for the test unless one is given: give more records or files"
        )
    if request.test:
        test_names = [name for part in find_data(request.test) for name in part]
    if test_names:
        train, test = _against(learned, examine(read_named(test_names), tokenizer, **settings))
        held_out = False
    else:
        count = len(learned.records)
        items = max(min(count // 5, _FEWEST), min(count // _SHARE, _MOST))
        train, test = split_records(learned.records, by="item", items=items)
        held_out = True
    asked = {record["item"] for record in test}
    kept = [record for record in train if record["item"] not in asked]
    if not kept:
        raise ALoRAError("every training item's question is also in the test: give other test items")
    texts = general_texts(request.general)
    general = in_parts(texts, request.general_tokens) if texts else {}
    return Findings(learned, *with_validation(kept), test, held_out, len(train) - len(kept), general)


def general_texts(given: tuple[str, ...]) -> dict[str, list[str]]:
    """The documents of general text by the name of their source; empty for none.

    Raises:
        ALoRAError: a source cannot be read or has no text.
    """
    if not given:
        return {}
    train, test = find_data(given)
    read = read_named([*train, *test])
    texts = [Path(name) for name in read if name.lower().endswith(TEXT_FORMATS)]
    together = {
        folder for folder in (path.parent for path in texts) if sum(path.parent == folder for path in texts) > 1
    }
    named: dict[str, list[Row]] = {}
    for name, rows in read.items():
        # A file of text is one document: those of a folder are one source, and not a kind of text each.
        of_folder = Path(name) in texts and Path(name).parent in together
        named.setdefault(_short_name(str(Path(name).parent.resolve()) if of_folder else name), []).extend(rows)
    return {name: texts_of(rows) for name, rows in named.items()}


def _short_name(name: str) -> str:
    """Of a file, or of its folder where the file is merely called train; letters, digits, - and _ alone: it names a file."""
    path = Path(name.removeprefix(HUB_PREFIX).partition(":")[0])
    stem = path.name.split(".", 1)[0]
    if stem in ("train", "test", "data", "validation") and path.parent.name:
        stem = path.parent.name
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in stem) or "text"


def _against(learned: Examined, test: Examined) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if learned.spec != test.spec:
        raise ALoRAError(
            f"the test ({test.files[0].name}) is {test.files[0].kind}, and the data ({learned.files[0].name}) "
            f"{learned.files[0].kind}: give both in one form"
        )
    return learned.records, test.records


def digests(request: FitRequest, model: Mapping[str, Any]) -> dict[str, Any]:
    """What the files made of the data depend on: settings, and the content of all that is read."""
    read = {name: getattr(request, name) for name in ("data", "test", "general", "unseen")}
    read["keep"] = tuple(one for one in request.keep if is_prompt_file(one))
    contents = {name: contents_of(given) for name, given in read.items() if given}
    return {**request.of_the_data(), "parts": PARTS, **contents, "model": dict(model)}


def contents_of(given: tuple[str, ...]) -> list[Any]:
    """What is read where `given` is named, by content; a data set of the Hub by its name."""
    found = [one for part in find_data(given) for one in part]
    return [one if one.startswith(HUB_PREFIX) else CONTENTS.file(Path(one)) for one in found]
