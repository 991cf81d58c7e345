"""What a result depends on: pure functions of a recipe and a method, which nothing can be forgotten in.

A step of a run depends on every setting of the recipe, but for those that it is said here to do without, each with its reason.
A setting that is new therefore counts everywhere until somebody says where it does not. `Dependence.reason_without` answers for
a whole result: a setting that no step depends on has a reason at each of them. What stands at a local path is told by a digest
of its content, where the recipe has got digests (`Recipe.contents`); only what a step depends on is looked up there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from alora_trainer.basics.disclosure import is_secret_name
from alora_trainer.data.chat import is_chat
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.methods.method import SECTIONS
from alora_trainer.experiment.recipe.contents import by_content
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.stage import digest, plain
from alora_trainer.experiment.run.training_recipe import as_trained, starts_fresh
from alora_trainer.importance.recording.measured import RECORDED, Measured
from alora_trainer.trainer.config import PROTECTING
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.weights.parameterization import Parameterization

# A map in the place of the recording: a digest of its folder's content, or its Hub id with the commit.
Given: TypeAlias = str | Mapping[str, str]

_EVERYWHERE = {
    "name": "it only names the default output folder",
    "output_dir": "it is where a run is kept",
    "importance": "it says what `alora record` makes; every method has its own",
    "methods": "a method's result is its own, whichever others are compared with it",
    "method_options": "what is set for a method is in the sections that it stands over",
}
# The recipe's sections on what is measured without a training.
MEASURING = ("fisher", "curvature")
_HELD_OUT = ("test", "test_bytes")
_WATCHED = ("probe", "probe_tokens")
_TRAINED = ("train", "block_length", "train_tokens", "streaming", "self_text")
_AS_TOKENS = ("max_length", "loss_on", "too_long")
_CURVE = ("curve_steps", "curve_blocks", "curve_items")
# Settings of `evaluation` that results made before they were there do without, while they are not set.
_LATER_ADDED = ("document_tokens", "kl_tokens", "general_tasks", "task_folder")
_SCORES = ("batch_size", "limit", "bootstrap_iters", "scales", *_LATER_ADDED)
# The same of `alora`, with the value that every training had before.
_HOLDING_LATER_ADDED = (("init_adapter", DEFAULT), ("freeze_a", False), ("log_drift", False))
# And of methods' own options.
_OPTIONS_LATER_ADDED = (("spread", False), ("equal_work", False))


@dataclass(frozen=True)
class Dependence:
    """What one step of a run depends on.

    Attributes:
        settings: as plain data: with the same ones, the step has the same outcome.
        without: the recipe's settings (or whole sections of them) that it does not depend on, by dotted name, with the reason.
        method: the method whose step it is; None for one that methods share.
        options: those sections that it takes as ``method_options`` sets them for the method.
        fixed: settings that the method or its options say, whatever the recipe's own section does, with the reason.
        after: the steps whose outcome it starts from.
    """

    settings: dict[str, Any]
    without: Mapping[str, str]
    method: str | None = None
    options: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    after: tuple[Dependence, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the settings."""
        return digest(self.settings)

    @property
    def steps(self) -> Iterator[Dependence]:
        """This step and all that it goes on from, directly or not."""
        yield self
        for earlier in self.after:
            yield from earlier.steps

    def reason_without(self, setting: str) -> str | None:
        """Why neither this step nor any before it depends on a setting; None if one does.

        Args:
            setting: its dotted name in the recipe, such as "tune.learning_rate", "domains.1.max_length" or
                "method_options.replay.fraction".
        """
        reasons = [step._reason(setting.split(".")) for step in self.steps]
        known = [reason for reason in reasons if reason is not None]
        return "; ".join(dict.fromkeys(known)) if len(known) == len(reasons) else None

    def _reason(self, path: Sequence[str]) -> str | None:
        if path[0] == "method_options" and len(path) > 2:
            return self._reason_of_option(path[1], path[2:])
        if path[0] == "domains":  # each of them is the section `domain` of its own steps
            path = ["domain", *path[2:]]
        return self._left_out(path) or self.fixed.get(".".join(path[:2]))

    def _left_out(self, path: Sequence[str]) -> str | None:
        if path[0] in SECTIONS and is_secret_name(path[-1]):
            return "a secret is no setting"  # see `as_settings`
        return self.without.get(path[0]) or self.without.get(".".join(path[:2]))

    def _reason_of_option(self, method: str, path: Sequence[str]) -> str | None:
        if self.method is None:
            return "a step that methods share goes by the recipe's own sections"
        if method != self.method:
            return "it is set for another method"
        if path[0] in SECTIONS:
            return self._left_out(path) if path[0] in self.options else "this step goes by the recipe's own section"
        return None if "options" in self.settings else "it is for the training on the domain"


def held_out(recipe: Recipe) -> Dependence:
    """The files that a run reads: the held-out general text, and the domain's training and test items."""
    without = _EVERYWHERE | _each(
        ("lora", "fresh_lora", "record", "tune", "alora", "map", "fisher", "curvature", "evaluation"),
        "the files are written before all else",
    )
    without |= _each(
        _in("general", _TRAINED + _WATCHED), "it is text that is trained on or watched, not what is held out"
    )
    without |= _each(_in("domain", _AS_TOKENS), "items become tokens when they are read")
    if not is_chat(recipe.domain.task):
        without["model"] = "the items are text; the model's chat template writes those of conversations alone"
    return Dependence(_remaining(recipe, without), without)


def recording(recipe: Recipe, method: Method | None = None) -> Dependence:
    """Stage A: the one that methods share, or that of a `method` which records alone."""
    own = method is not None and method.records_alone
    if own:
        assert method is not None
        recipe = recipe.for_own_recording(method)
    without = _before_the_domain(MEASURING, "it is for what is measured without a training") | _each(
        _in("alora", PROTECTING), "it is for holding what was recorded"
    )
    if own:
        without["lora"] = "the whole model is recorded, without an adapter"
    settings = _remaining(recipe, without)
    if not own:
        return Dependence(settings, without)
    assert method is not None
    settings["parameterization"] = method.parameterization.value
    return Dependence(settings, without, method.name, ("record",), _fixed(recipe, method, ("record",)))


def measurement(recipe: Recipe, measured: Measured, moved: Parameterization = Parameterization.ADAPTER) -> Dependence:
    """What is measured at the base weights, without a training, of those that LoRA adapts or of all."""
    others = [section for section in MEASURING if section != measured.section]
    without = _before_the_domain(["record"], "nothing is trained for what is measured") | {
        "alora": "it is for recording in a training, and for holding",
        "map": "it is for what a training records",
        **_each(others, "it is for what is measured in another way"),
    }
    if moved is Parameterization.FULL:
        without["lora"] = "it is of all parameters, without an adapter"
    settings = _remaining(recipe, without)
    return Dependence(settings | dataclasses.asdict(measured) | {"parameterization": moved.value}, without)


def importance(recipe: Recipe, method: Method, given: Given | None = None) -> Dependence | None:
    """What a method starts from or is held by; None if there is neither.

    Args:
        given: a map in the place of what the method would start from, or be held by.
    """
    if not method.takes_map or given is None:
        if method.measured is not None:
            return measurement(recipe, method.measured, method.parameterization)
        return recording(recipe, method) if method.needs_recording else None
    sections = [key for key in recipe.resolved() if key not in _EVERYWHERE]
    return Dependence({"given": given}, _EVERYWHERE | _each(sections, "the map was given"))


def training(
    recipe: Recipe,
    method: Method,
    given: Given | None = None,
    *,
    before: Dependence | None = None,
    records: bool = False,
) -> Dependence:
    """The training on the domain (or that there is none).

    Args:
        given: as in `importance`.
        before: the training on the domain before this one, of several in a row.
        records: importance is recorded for the domains that come after it.
    """
    own = as_trained(recipe, method, later=before is not None)
    without = _EVERYWHERE | {
        "record": "stage A is a step of its own",
        **_each(MEASURING, "what is measured is a step of its own"),
    }
    if not records:
        without["map"] = "this training records nothing"
    if not method.trains:
        without |= _each(
            ("lora", "fresh_lora", "general", "domain", "tune", "alora", "evaluation"), "nothing is trained"
        )
    else:
        without |= _without_general_text(own, method) | _without_holding(own, method, records, before is None)
    settings = _remaining(own, without) | {"method": method.settings()}
    holding = settings.pop("alora", {})
    if method.penalty:
        settings["protecting"] = {
            key: value
            for key, value in holding.items()
            if key in PROTECTING and (key, value) not in _HOLDING_LATER_ADDED
        }
    if rest := {key: value for key, value in holding.items() if key not in PROTECTING}:
        settings["alora"] = rest
    options = recipe.options(method).own
    if options is not None:
        settings["options"] = {
            key: value for key, value in dataclasses.asdict(options).items() if (key, value) not in _OPTIONS_LATER_ADDED
        }
    source = importance(recipe, method, given)
    if source is not None:
        settings["recording" if method.measured is None else method.measured.section] = source.settings.get(
            "given", source.settings
        )
    if before is not None:
        settings["before"] = before.digest
    if records:
        settings["records"] = True
    after = tuple(step for step in (source, before) if step is not None)
    options_of = ("lora", "tune", "alora")
    return Dependence(settings, without, method.name, options_of, _fixed(recipe, method, options_of), after)


def scores(recipes: Sequence[Recipe], trained: str | Dependence) -> Dependence:
    """An evaluation on the domains of `recipes` (one recipe, each with its domain) and on general text.

    Args:
        trained: what is evaluated, or a digest of what that depends on, the base model among it.
    """
    data = [held_out(recipe) for recipe in recipes]
    without = _EVERYWHERE | _each(
        ("model", "seed", "lora", "fresh_lora", "general", "domain", "record", "tune", "alora", "map", *MEASURING),
        "what is evaluated, and on what, was made before",
    )
    without |= _each(_in("evaluation", _CURVE), "it is for the time of training")
    without["evaluation.scales"] = "every scaled adapter is scored in a folder of its own"
    without |= {
        f"evaluation.{name}": "nobody asks for it" for name in _LATER_ADDED if not getattr(recipes[0].evaluation, name)
    }
    settings: dict[str, Any] = {
        "data": [one.settings for one in data] if len(data) > 1 else data[0].settings,
        "evaluation": _remaining(recipes[0], without)["evaluation"],
        "trained": trained if isinstance(trained, str) else trained.digest,
    }
    return Dependence(settings, without, after=(*data, *(() if isinstance(trained, str) else (trained,))))


def start(recipe: Recipe, method: Method, given: Given | None = None) -> Dependence:
    """What a method is before it learns the first of several domains: the base model, or the recorded adapter on it."""
    source = importance(recipe, method, given) if method.needs_recording else None
    sections = [key for key in recipe.resolved() if key not in ("model", "seed")]
    without = _EVERYWHERE | _each(sections, "nothing is trained yet")
    settings = _remaining(recipe, without) | ({"recording": source.settings} if source is not None else {})
    return Dependence(settings, without, method.name, after=() if source is None else (source,))


def trainings(recipe: Recipe, method: Method, given: Given | None = None) -> list[Dependence]:
    """A method's trainings on the recipe's domains, in their order; one that trains nothing has one that is none."""
    recipes = recipe.each_domain()
    if not method.trains or len(recipes) == 1:
        return [training(recipes[0], method, given)]
    made: list[Dependence] = []
    for position, one in enumerate(recipes):
        records = records_for_later(method, position, len(recipes))
        made.append(training(one, method, given, before=made[-1] if made else None, records=records))
    return made


def result(recipe: Recipe, method: Method, given: Given | None = None) -> Dependence:
    """Everything that a method's result depends on, of one domain or (at its end) of several in a row."""
    return scores(recipe.each_domain(), trainings(recipe, method, given)[-1])


def base_model(recipe: Recipe) -> dict[str, Any]:
    """The base model, as the settings of every step that depends on it have it."""
    model: dict[str, Any] = plain(_in_place("model", recipe.resolved()["model"], recipe))
    return model


def shared(recipe: Recipe) -> dict[str, Any]:
    """Everything that what methods share depends on: the data, the recording, and how things are measured."""
    return {
        "data": [held_out(one).settings for one in recipe.each_domain()],
        "record": recording(recipe).settings,
        **{section: dataclasses.asdict(getattr(recipe, section)) for section in MEASURING},
    }


def records_for_later(method: Method, position: int, domains: int) -> bool:
    """Whether a domain's importance is recorded for those after it: what is measured stays that of the base model.

    Args:
        position: of the domain, from 0.
        domains: how many there are.
    """
    return method.importance == RECORDED and position + 1 < domains


def _before_the_domain(others: Sequence[str], reason: str) -> dict[str, str]:
    """What neither a recording nor what is measured without one depends on; and `others`, for this reason."""
    without = _EVERYWHERE | _each(others, reason)
    without |= _each(("domain", "tune", "fresh_lora", "evaluation"), "it is done before the domain")
    without |= _each(_in("general", _HELD_OUT), "forgetting is measured on it, nothing is trained on it")
    return without | _each(_in("general", _WATCHED), "it is watched while the domain is trained")


def _without_general_text(recipe: Recipe, method: Method) -> dict[str, str]:
    """What of `general` and `evaluation` a training on the domain does not depend on."""
    watched = method.penalty and recipe.watches_general_text
    curve = recipe.evaluation.curve_steps is not None
    without = _each(_in("evaluation", _SCORES), "it is for the scores after the training")
    if not curve:
        without["evaluation"] = "it is for the scores after the training"
        without |= _each(_in("general", _HELD_OUT), "forgetting is measured after the training")
    if not watched:
        without |= _each(_in("general", _WATCHED), "nothing is watched in this training")
    if method.samples_text or not method.needs_general_text:
        read = {"block_length"} if curve or method.samples_text else set()
        read |= {"train", "block_length", "train_tokens", "self_text"} if watched else set()
        unread = [name for name in _TRAINED if name not in read]
        without |= _each(_in("general", unread), "this training reads no general text by it")
    return without


def _without_holding(recipe: Recipe, method: Method, records: bool, first: bool) -> dict[str, str]:
    """What of `alora`, `lora` and `fresh_lora` a training on the domain does not depend on."""
    without = {}
    adapts = method.parameterization is Parameterization.ADAPTER
    new_beside_map = method.penalty and adapts and starts_fresh(recipe)
    if not new_beside_map:
        without["fresh_lora"] = "no new adapter is trained beside an importance map"
    if not new_beside_map and not (first and method.starts_from == "fresh" and adapts):
        without["lora"] = "no new adapter is made: the one that is there is gone on with, or the whole model is tuned"
    if not method.penalty:
        return without | {"alora": "nothing is held"}
    if recipe.alora.init_adapter == DEFAULT:
        choosing = ("init_items", "init_damping", "init_memory")
        without |= _each(_in("alora", choosing), "a new adapter starts in PEFT's own directions")
    if records:
        return without | {"alora.record_tokens": "a domain is recorded to the end of its training"}
    # That the whole model is tuned is a matter of both.
    recorded = [
        item.name
        for item in dataclasses.fields(recipe.alora)
        if item.name not in PROTECTING and item.name != "full_parameters"
    ]
    return without | _each(_in("alora", recorded), "it is for the recording, which is a step of its own")


def _fixed(recipe: Recipe, method: Method, sections: Sequence[str]) -> dict[str, str]:
    """Settings of the recipe's sections that the method or its options stand over."""
    options = recipe.options(method)
    fixed: dict[str, str] = {}
    for section in sections:
        own = {**getattr(method, section, {}), **getattr(options, section)}
        fixed |= _each(_in(section, list(own)), f"{method.name} has a value of its own")
    return fixed


def _remaining(recipe: Recipe, without: Mapping[str, str]) -> dict[str, Any]:
    """The recipe's settings as plain data, but for those in `without`."""
    remaining: dict[str, Any] = {}
    for section, value in recipe.resolved().items():
        if section in without:
            continue
        if isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if f"{section}.{key}" not in without}
            if not value and any(name.startswith(f"{section}.") for name in without):
                continue
        remaining[section] = _in_place(section, value, recipe)
    return remaining


def _in_place(section: str, value: Any, recipe: Recipe) -> Any:
    return value if recipe.contents is None else by_content(section, value, recipe.contents)


def _each(names: Sequence[str], reason: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


def _in(section: str, names: Sequence[str]) -> list[str]:
    return [f"{section}.{name}" for name in names]
