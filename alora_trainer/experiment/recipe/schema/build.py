"""The schema of a recipe, from the dataclasses that check one: names, types, defaults and choices stand nowhere twice."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig
from transformers import TrainingArguments

from alora_trainer.basics.registry import Registry
from alora_trainer.basics.versions import software_versions
from alora_trainer.data.chat import CHAT_KEYS
from alora_trainer.data.choices import READINGS
from alora_trainer.data.domain import ERROR_OR_DROP, LOSSES, DomainConfig
from alora_trainer.data.general import SELF, GeneralConfig
from alora_trainer.data.self_text import SelfTextConfig
from alora_trainer.data.sources import SOURCE_KEYS
from alora_trainer.data.tasks import BUILT_IN
from alora_trainer.data.templates import MISSING, TEMPLATE_KEYS
from alora_trainer.evaluation.config import EvaluationConfig
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.methods.method import SECTIONS as METHOD_SECTIONS
from alora_trainer.experiment.recipe.map_section import RecordedMapConfig
from alora_trainer.experiment.recipe.model_section import DTYPES, QUANTIZATIONS, ModelConfig
from alora_trainer.experiment.recipe.recipe import KEYS, SET_BY_RUN, Recipe
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.curvature import LABELS
from alora_trainer.importance.recording.curvature_config import BASES, CurvatureConfig
from alora_trainer.importance.recording.fisher import FisherConfig
from alora_trainer.importance.recording.measured import MEASURED, RECORDED
from alora_trainer.importance.recording.squared_gradients import LOCATIONS
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.setting import SettingHelp

# The libraries whose settings are a part of a recipe: with other versions of them, it may take others.
LIBRARIES = ("peft", "transformers")
_JSON_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    tuple: "array",
    dict: "object",
    type(None): "null",
}
_ELEMENTWISE = [name for name, format in FORMATS.items() if format.kind == ELEMENTWISE]
_WEIGHTS = ("adapted", "all")
# What the dataclasses check themselves, without a `choices` of the field's own.
_CHOICES: Mapping[tuple[type, str], Iterable[str]] = {
    (ModelConfig, "dtype"): DTYPES,
    (ModelConfig, "quantization"): QUANTIZATIONS,
    (DomainConfig, "loss_on"): LOSSES,
    (DomainConfig, "too_long"): ERROR_OR_DROP,
    (DomainConfig, "unfit"): ERROR_OR_DROP,
    (RecordedMapConfig, "storage"): _ELEMENTWISE,
    (FisherConfig, "weights"): _WEIGHTS,
    (FisherConfig, "location"): LOCATIONS,
    (FisherConfig, "storage"): _ELEMENTWISE,
    (CurvatureConfig, "labels"): LABELS,
    (CurvatureConfig, "weights"): _WEIGHTS,
    (CurvatureConfig, "location"): LOCATIONS,
    (CurvatureConfig, "storage"): BASES,
}
# A plugin may add to these.
_REGISTERED = {(RecordedMapConfig, "storage"), (FisherConfig, "storage")}
_OLDER: Mapping[str, dict[str, Any]] = {
    "save_storage": {"description": "An older spelling of map.storage.", "deprecated": True},
    "fresh_base": {"description": "An older spelling of alora.start.", "deprecated": True},
}


def recipe_schema() -> dict[str, Any]:
    """The schema (draft 7) of a recipe, by what is registered and installed.

    Beside the standard's keywords: ``x-made-with`` has the versions of `LIBRARIES`, and ``x-of`` says which one's settings a
    section has; ``x-names`` describes each name of an ``enum``; ``x-registered`` marks names that a plugin may add to;
    ``x-older`` has those that are still understood.
    """
    about = attribute_texts(Recipe)
    sections = {
        "model": section(ModelConfig),
        "lora": section(LoraConfig) | {"x-of": "peft"},
        "fresh_lora": {"$ref": "#/definitions/lora"},
        "general": _general(),
        "domain": _domain(),
        "record": {"$ref": "#/definitions/training"},
        "tune": {"$ref": "#/definitions/training"},
        "alora": _alora(),
        "map": section(RecordedMapConfig),
        "fisher": section(FisherConfig),
        "curvature": section(CurvatureConfig),
        "method_options": _object({name: _options(method) for name, method in METHODS.items()})
        | {"x-registered": True},
        "evaluation": section(EvaluationConfig),
    }
    definitions = {name: sections[name] for name in ("lora", "alora", "domain")}
    definitions |= {
        "training": section(TrainingArguments, without=SET_BY_RUN) | {"x-of": "transformers"},
        "source": _source(),
        "sources": _sources(),
        "task": _task(),
    }
    plain: dict[str, dict[str, Any]] = {
        "name": {"type": "string"},
        "seed": {"type": "integer", "default": 0, "minimum": 0, "maximum": 2**32 - 1},
        "output_dir": {"type": ["string", "null"]},
        "methods": {"type": "array", "minItems": 1, "items": _methods()},
        "importance": {"type": "string", "enum": [RECORDED, *MEASURED]},
        "domains": {
            "type": "array",
            "minItems": 2,
            "items": {"anyOf": [{"type": "string", "enum": list(BUILT_IN)}, {"$ref": "#/definitions/domain"}]},
        },
    }
    properties = {}
    for key in KEYS:
        found = {"$ref": f"#/definitions/{key}"} if key in definitions else sections.get(key) or plain[key]
        properties[key] = {"description": _sentence(about[key])} | ({"allOf": [found]} if "$ref" in found else found)
    versions = software_versions()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of alora-trainer",
        "x-made-with": {name: versions[name] for name in LIBRARIES},
        **_object(properties),
        "definitions": {name: definitions[name] for name in sorted(definitions)},
    }


def as_text(schema: Mapping[str, Any]) -> str:
    """The schema as the file has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def section(kind: Any, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass as an object's properties."""
    texts, hints = attribute_texts(kind), typing.get_type_hints(kind)
    fields = [one for one in dataclasses.fields(kind) if one.init and one.name not in set(without)]
    required = [
        one.name for one in fields if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    found = _object({one.name: _field(kind, one, hints[one.name], texts.get(one.name)) for one in fields})
    return found | ({"required": required} if required else {})


def _field(kind: type, one: dataclasses.Field[Any], hint: Any, text: str | None) -> dict[str, Any]:
    told = one.metadata.get("help")
    found: dict[str, Any] = {}
    described = " ".join(str(told or text or "").split())
    if described:
        found["description"] = _sentence(described)
    names = json_types(hint)
    if names:
        found["type"] = names[0] if len(names) == 1 else names
    default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
    if default is not dataclasses.MISSING and _is_plain(default):
        found["default"] = default
    choices = told.choices if isinstance(told, SettingHelp) else _CHOICES.get((kind, one.name))
    if choices is not None:
        found["enum"] = [*choices, *([None] if default is None else [])]
        if isinstance(choices, Registry) or (kind, one.name) in _REGISTERED:
            found["x-registered"] = True
    return found


def json_types(hint: Any) -> list[str]:
    """The JSON types that a field takes; none where it takes what is no plain value, so that nothing is said of it."""
    kinds = list(_kinds(hint))
    if any(kind not in _JSON_TYPES for kind in kinds):
        return []
    found = {_JSON_TYPES[kind] for kind in kinds}
    # In an order of our own: typing gives unions of the same members as whichever was made first.
    return [name for name in dict.fromkeys(_JSON_TYPES.values()) if name in found]


def _kinds(hint: Any) -> Iterable[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            yield from _kinds(argument)
    else:
        yield origin or hint


def _sentence(text: str) -> str:
    """A docstring's text as whoever writes YAML should read it."""
    text = re.sub(r"\bNone\b", "null", text)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _is_plain(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def attribute_texts(kind: type) -> dict[str, str]:
    """Attribute -> its text in the section ``Attributes:`` of a class's docstring; ``a, b: text`` is of both."""
    _, _, rest = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    current: list[str] = []
    for line in rest.splitlines():
        if line.strip() and not line.startswith("    "):
            break  # the next section
        named = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if named:
            current = named[1].split(", ")
            texts |= dict.fromkeys(current, named[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in current}
    return {name: text.replace("``", "`") for name, text in texts.items()}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "additionalProperties": False, "properties": dict(properties)}


# ---- what the dataclasses leave to other code ----


def _methods() -> dict[str, Any]:
    names = {name: method.description for name, method in METHODS.items()}
    return {"type": "string", "enum": list(names), "x-names": names, "x-registered": True}


def _options(method: Method) -> dict[str, Any]:
    """What may be set for one method alone; see `method_options`."""
    kind = method.options_class
    own = section(kind)["properties"] if kind is not None else {}
    shared = {"tune": "training", "record": "training"}
    for name in METHOD_SECTIONS:
        if name != "record" or method.records_alone:
            own[name] = {"$ref": f"#/definitions/{shared.get(name, name)}"}
    return {"description": _sentence(method.description)} | _object(own)


def _alora() -> dict[str, Any]:
    found = section(ALoRAConfig)
    found["properties"]["record"]["default"] = "projected"  # a recipe's own default: it is there to record
    found["properties"]["backend"]["x-older"] = ["factored"]
    found["properties"]["start"]["x-older"] = ["continue", "fresh"]
    found["properties"] |= _OLDER
    return found


def _general() -> dict[str, Any]:
    found = section(GeneralConfig)
    sources = {"$ref": "#/definitions/sources"}
    self_text = _object(section(SelfTextConfig)["properties"])
    for name, values in (
        ("train", {"anyOf": [{"type": "string", "enum": [SELF]}, sources]}),
        ("test", {"allOf": [sources]}),
        ("probe", {"anyOf": [sources, {"type": "null"}]}),
        ("self_text", self_text),
    ):
        found["properties"][name] |= values
    return found


def _domain() -> dict[str, Any]:
    found = section(DomainConfig)
    source = {"anyOf": [{"$ref": "#/definitions/source"}, {"type": "null"}]}
    found["properties"]["task"] = {"description": found["properties"]["task"]["description"]} | {
        "allOf": [{"$ref": "#/definitions/task"}]
    }
    for name in ("train", "test", "source"):
        described = found["properties"][name]["description"]
        found["properties"][name] = {"description": described} | source
    found["properties"]["holdout"] |= _object({"by": {"type": "string"}, "items": {"type": "integer", "minimum": 1}})
    return found


def _source() -> dict[str, Any]:
    texts = {
        "path": "A file, a folder of files, or a glob pattern, from the recipe's folder.",
        "hub": "A data set of the Hub, organisation/name.",
        "name": "Its configuration.",
        "split": "Its split; train, if left out.",
        "revision": "Its revision.",
        "text_column": "The column that holds the text, where it is not called text.",
    }
    properties = {key: {"description": texts[key], "type": ["string", "null"]} for key in SOURCE_KEYS}
    return {"anyOf": [{"type": "string"}, {**_object(properties), "type": "object"}]}


def _sources() -> dict[str, Any]:
    one = {"$ref": "#/definitions/source"}
    names = {"not": {"enum": ["path", "hub"]}}  # a mapping with one of these is a source
    named = {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": one}
    return {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}, named]}


def _task() -> dict[str, Any]:
    name = {"type": "string", "description": "What results are filed under."}
    column = {"type": "string"}
    template = {
        "type": "string",
        # A field in braces; a brace that is meant as such is written twice.
        "pattern": r"(^|[^{])(\{\{)*\{[A-Za-z_]\w*\}",
        "patternErrorMessage": "it names no column: write a column's name in braces, such as {question}",
    }
    texts: dict[str, dict[str, Any]] = {
        "name": name,
        "prompt": template | {"description": "Template of the text before the answer."},
        "completion": template | {"description": "Template of a free answer."},
        "choices": {
            "description": "The column with the list of answers, or a list of columns with one answer each.",
            "anyOf": [column, {"type": "array", "items": column, "minItems": 2}],
        },
        "answer": column | {"description": "The column with the right answer."},
        "answer_is": {"description": "How the answer is meant.", "enum": [*READINGS, None]},
        "target_delimiter": {"type": "string", "default": " ", "description": "Between prompt and answer."},
        "missing": {"description": "What becomes of a null in a template.", "enum": list(MISSING)},
    }
    templates = {**_object({key: texts[key] for key in TEMPLATE_KEYS}), "type": "object"}
    chat_texts = {"name": name, "messages": column | {"description": "The column with the conversations."}}
    chat = {**_object({key: chat_texts[key] for key in CHAT_KEYS}), "type": "object"}
    return {
        "anyOf": [
            {"type": "string", "enum": list(BUILT_IN)},
            templates | {"required": ["name", "prompt"]},
            chat | {"required": list(CHAT_KEYS)},
        ]
    }
