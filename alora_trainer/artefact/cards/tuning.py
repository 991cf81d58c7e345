"""importance_tuning.json: with which map, and how, an adapter was tuned. It lies beside the adapter and makes its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from alora_trainer.artefact.cards.facts import public_name
from alora_trainer.artefact.entries import LONGEST_TEXT, check_plain
from alora_trainer.artefact.files import check_inside, read_json
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.start import with_start

TUNING_FILE = "importance_tuning.json"
SCHEMA = 1
# Of a training's facts, what is said of how much was forgotten: it holds for the adapter as it is, and not times a number.
PROMISES = "promises"


@dataclass(frozen=True)
class Tuning:
    """How an adapter was tuned while a map held what was important.

    Attributes:
        base_model, base_revision: of the adapter.
        map: of the importance map: `repo_id` and `commit` if it came from the Hub, `estimator`, `storage`, `tokens`, `data`.
        protection: the settings of the penalty (`ALoRAConfig`), lambda among them as `lam`.
        training: steps, learning rate and whatever else was set; what the adapter `promises` of general loss, if anything.
        over_merged: whether the adapter is for the base model with the map's own adapter merged into it.
        data: what it was tuned on; `sources` as in a map's info.
        versions: of the software.
    """

    base_model: str | None
    base_revision: str | None
    map: Mapping[str, Any]
    protection: Mapping[str, Any]
    training: Mapping[str, Any]
    over_merged: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps({"schema_version": SCHEMA, **asdict(self)}, indent=2, allow_nan=False) + "\n"

    def public(self, base_model: str | None) -> Tuning:
        """The same with no path of this machine in it."""
        named = base_model or self.base_model
        return replace(self, base_model=named if is_hub_id(named) or named is None else public_name(named))


def with_prompt(data: Mapping[str, Any], prompt: str | None) -> dict[str, Any]:
    """What an adapter was tuned on with the form of its prompts, columns in braces; without, where a file could not tell it.

    It is kept as JSON within the JSON, since a text of the file has no line breaks (`entries.check_plain`).
    """
    written = json.dumps(prompt)
    told = prompt is not None and len(written) <= LONGEST_TEXT
    return {key: value for key, value in data.items() if key != "prompt"} | ({"prompt": written} if told else {})


def prompt_of(data: Mapping[str, Any]) -> str | None:
    """The form of the prompts that `with_prompt` put there; None for whatever else a file may have in its place."""
    try:
        prompt = json.loads(str(data.get("prompt")))
    except ValueError:
        return None
    return prompt if isinstance(prompt, str) else None


def read_tuning(folder: Path) -> Tuning:
    """Read the file in `folder`.

    Raises:
        ALoRAError: it is damaged or of another schema.
    """
    path = check_inside(folder, TUNING_FILE)
    content = read_json(path)
    if content.pop("schema_version", None) != SCHEMA:
        raise ALoRAError(f"{path} has another schema than this version reads ({SCHEMA}): update alora-trainer")
    names = [item.name for item in fields(Tuning)]
    mappings = [content.get(name) for name in names if name != "over_merged" and not name.startswith("base_")]
    texts = [content.get(name) for name in names if name.startswith("base_")]
    right = isinstance(content.get("over_merged"), bool) and all(isinstance(value, dict) for value in mappings)
    if set(content) != set(names) or not right:
        raise ALoRAError(f"{path} is damaged: train the adapter again, or publish it without")
    if not all(value is None or isinstance(value, str) for value in texts):
        raise ALoRAError(f"{path} is damaged: train the adapter again, or publish it without")
    try:
        check_plain(content)
    except ValueError as error:
        raise ALoRAError(f"{path} is damaged ({error}): train the adapter again, or publish it without") from error
    return Tuning(**content | {"protection": with_start(content["protection"], quiet=True)})
