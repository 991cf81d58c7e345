"""Every setting that is ours, in one validated dataclass; all the others are `transformers.TrainingArguments`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import InitVar, asdict, dataclass, fields, replace
from typing import Any

from alora_trainer.basics.output import OlderSpelling
from alora_trainer.basics.registry import Registry
from alora_trainer.basics.shares import check_rise
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.damping import Damping
from alora_trainer.importance.recording.estimators import ESTIMATORS
from alora_trainer.importance.recording.integral import LOCATIONS
from alora_trainer.penalty.backends.choice import BACKENDS
from alora_trainer.trainer.initialization.settings import DEFAULT, KINDS, MEMORIES, check_settings
from alora_trainer.trainer.setting import is_finite, is_whole, number_in, option
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom

LAYER_WEIGHTS = ("l2", "none")
_DEFAULT_BUDGET = 0.01
_DEFAULT_XI = 1e-3


@dataclass
class ALoRAConfig:
    """Settings of recording and protecting (arXiv 2501.13669; equation numbers are the paper's).

    Raises:
        ALoRAError: a value is out of range; the message names the field and what it accepts.
    """

    record: str | None = option(
        None,
        "Record importance while training: 'paper' takes learning rate times gradient for the movement (eq. 13-14), 'path' the "
        "movement that the optimizer really made, 'projected' also an estimate of the weights' true gradient, and 'exact' "
        "that gradient itself, at the cost of one more matrix of each weight's size. None records nothing.",
        "recording",
        ESTIMATORS,
    )
    full_parameters: bool = option(
        False,
        "Record and hold the model's own weights, for a training without LoRA (Synaptic Intelligence and EWC as published). "
        "Takes as much memory again as the weights, once while recording and once while protecting.",
        "both",
    )
    # A parser takes text for this order of types alone; TRL's dictionaries have it, too.
    xi: float | str | None = option(
        _DEFAULT_XI,
        "Damping added to the squared total movement in eq. 15; larger values calm weights that hardly moved. A number is "
        "added as it is, as in the paper; a percentage, with its sign, is that share of each layer's own mean squared "
        "movement. None is 1e-3.",
        "recording",
    )
    basis: str | None = option(
        None,
        "Folder or Hub id of a map of kronecker, ekfac or covariance importance: the path is integrated along its directions, "
        "and what is recorded is ekfac importance in them. None records along the weights' own rows and columns.",
        "recording",
    )
    omega_device: str = option(
        "device",
        "Where the recording keeps its running sums: 'device' beside the weights, 'cpu' in host memory, 'disk' in "
        "memory-mapped files under the output folder.",
        "recording",
        LOCATIONS,
    )
    fold_every: int = option(
        1,
        "Keep the factors of this many steps and fold them into the running sums at once (not for 'exact').",
        "recording",
    )
    record_tokens: int | None = option(
        None,
        "Stop recording after this many tokens, whatever the number of steps or epochs; None sets no such limit.",
        "recording",
    )
    storage: str | None = option(
        None,
        "Format that importance is held in while it protects, of the same names. None keeps the map's own.",
        "protecting",
        FORMATS,
    )
    storage_device: str = option(
        "device",
        "Where importance is held while it protects: 'device' beside the weights, 'cpu' in host memory, from where it is "
        "streamed to the weights' device.",
        "protecting",
        ("device", "cpu"),
    )
    lam: float | str | None = option(
        None,
        "Strength lambda of the penalty (eq. 18), used where an importance map is given; 0 is plain LoRA, bit for bit. 'auto' "
        "sets it from the norms of the two gradients after the first tenth of the training. None is 'auto', steered by budget; "
        "where no general text is watched that could steer it, 0.01 for element-wise importance and 0.001 for curvature.",
        "protecting",
    )
    lam_schedule: str = option(
        "constant",
        "How lambda changes over the training: 'constant', or from lambda to lam_end_factor times lambda, 'linear' in the "
        "steps or along half a 'cosine'.",
        "protecting",
        ("constant", "linear", "cosine"),
    )
    lam_end_factor: float = option(
        0.0,
        "What lambda has been multiplied by at the end of a 'linear' or 'cosine' lam_schedule; above 1 it grows.",
        "protecting",
    )
    application: str = option(
        "coupled",
        "'coupled' adds the penalty to the loss (the paper), so that the optimizer rescales its gradient with the data's. "
        "'decoupled' pulls the weights back after the optimizer's step, by learning rate times lambda, as AdamW decays "
        "weights; it is stable for any lambda.",
        "protecting",
        ("coupled", "decoupled"),
    )
    budget: float | None = option(
        None,
        "How much the loss on general text may rise over its value at the start, as a share of it: 0.01 is one percent of the "
        "mean negative log-likelihood. Lambda is steered to keep it; needs a probe_dataset. None is 0.01 where there is one "
        "and lam is left out, too.",
        "protecting",
    )
    probe_steps: int = option(
        10,
        "Evaluate the probe_dataset every this many optimizer steps.",
        "protecting",
    )
    start: str | None = option(
        None,
        "Where the protected training starts, and what the penalty is on: 'recorded' goes on with the recorded adapter; "
        "'merged' trains a new one (of any rank and target modules) on the base with the recorded adapter merged into it, "
        "'bare' one on the base as it was, and the penalty is on the new adapter's own movement. None is 'recorded', or 'bare' "
        "for a map that was measured at the base weights.",
        "protecting",
        tuple(start.value for start in StartFrom),
    )
    anchor: str | None = option(
        None,
        "What the penalty pulls towards: 'reference' is where the training starts (theta*, eq. 16), 'base' the base model's "
        "own weights. None is 'reference', or 'base' for a map that was measured there.",
        "protecting",
        ("reference", "base"),
    )
    init_adapter: str = option(
        DEFAULT,
        "Which directions a fresh adapter starts in: 'default' are PEFT's; 'natural_gradient' those in which the domain is "
        "learned most for the least change on general text, by the domain's gradient and the map's curvature; 'contrastive' "
        "those in which the domain's inputs are large and general ones small, without a backward pass. To compare with: "
        "'gradient', by the domain alone, and 'null_space', by general inputs alone. All need a map of kronecker, ekfac or "
        "covariance importance; with lam=0 it holds nothing.",
        "protecting",
        (DEFAULT, *KINDS),
    )
    init_items: int = option(
        512,
        "How many items of the domain init_adapter looks at, evenly spaced over all.",
        "protecting",
    )
    init_damping: float = option(
        0.01,
        "What init_adapter adds to the general curvature on both sides, as a share of its mean eigenvalue.",
        "protecting",
    )
    init_memory: str = option(
        "device",
        "Where init_adapter keeps a matrix of each weight's size meanwhile: 'device' beside the weights, 'cpu' in host memory; "
        "'sketch' keeps a few thin products in its place, in twice the passes (for 'natural_gradient').",
        "protecting",
        MEMORIES,
    )
    freeze_a: bool = option(
        False,
        "Train B alone: A stays where it starts, so that the weights move within its directions (LoRA-FA).",
        "protecting",
    )
    missing: str = option(
        "error",
        "Adapted weights without a recorded importance: 'error' refuses them, 'uniform' gives each of their elements the mean "
        "importance of the recorded ones, 'free' lets them move.",
        "protecting",
        ("error", "uniform", "free"),
    )
    # As xi.
    layer_weights: dict[str, float] | str | None = option(
        None,
        "Weight w_l of each layer's penalty: 'l2' is the norm of its importance (eq. 17), 'none' is 1 for all; or a mapping "
        "of names or patterns, as PEFT's rank_pattern has them, to weights (the first that fits counts), which may be text "
        "in JSON. None is 'l2', or 'none' for importance in a basis, which is on one scale over all layers.",
        "protecting",
    )
    normalize: bool = option(
        True,
        "Divide importance by its mean over all adapted weights and w_l by its mean over layers, so that lambda keeps its "
        "meaning between models. False gives eq. 16-18 to the letter.",
        "protecting",
    )
    allow_other_revision: bool = option(
        False,
        "Take an importance map that was recorded on another revision of the base model, with a warning.",
        "protecting",
    )
    backend: str | None = option(
        None,
        "How the penalty is computed: 'blocked' (any device), 'triton' (CUDA, fused), 'gram' (importance kept as thin "
        "factors), or 'dense' (slow, for comparisons). None takes the fastest that fits.",
        "protecting",
        BACKENDS,
    )

    log_drift: bool = option(
        False,
        "Log how far each weight has moved (`drift/NAME`), beside the norm of all together (`drift`), which is always logged.",
        "protecting",
    )

    # An older spelling, folded into `start`; see `StartFrom.parse`.
    fresh_base: InitVar[str | None] = None

    def __post_init__(self, fresh_base: str | None) -> None:
        if self.start is not None or fresh_base is not None:
            self.start = StartFrom.parse(StartFrom.RECORDED if self.start is None else self.start, fresh_base).value
        if self.backend == "factored":
            warnings.warn("backend='factored' is an older spelling: say backend='gram'", OlderSpelling, stacklevel=3)
            self.backend = "gram"
        self._read_texts()
        for each in fields(self):
            self._check_field(each.name, each.default, each.metadata["help"].choices)
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1) and not (name == "record_tokens" and value is None):
                raise ALoRAError(f"{name}={value!r} must be a whole number of at least 1")
        if not (self.basis is None or (isinstance(self.basis, str) and self.basis.strip())):
            raise ALoRAError(f"basis={self.basis!r} must be the folder or Hub id of an importance map, or None")
        self._check_full_parameters()
        self._check_layer_weights()
        self._check_strength()
        self._check_initialization()

    def _read_texts(self) -> None:
        """Numbers and mappings that came as text, as command lines and YAML 1.1 (``1e-3``) have them."""
        for name in _NUMBERS:
            setattr(self, name, number_in(getattr(self, name)))
        self.xi = Damping.parse(_DEFAULT_XI if self.xi is None else self.xi).setting
        if isinstance(self.layer_weights, str) and self.layer_weights.lstrip().startswith("{"):
            try:
                self.layer_weights = json.loads(self.layer_weights)
            except json.JSONDecodeError as error:
                raise ALoRAError(
                    f'layer_weights={self.layer_weights!r} is no JSON ({error}): write it as {{"name": 1.0}}'
                ) from error

    def _check_field(self, name: str, default: object, choices: Collection[str] | None) -> None:
        value = getattr(self, name)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ALoRAError(f"{name}={value!r} must be true or false")
        if choices is None or (value is None and default is None):
            return
        if isinstance(choices, Registry):
            choices.find(value, name)
        elif value not in choices:
            or_none = ", or None" if default is None else ""
            raise ALoRAError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, choices))}{or_none}")

    def _check_full_parameters(self) -> None:
        if not self.full_parameters:
            return
        fit = [name for name, each in ESTIMATORS.items() if Parameterization.FULL in each.parameterizations]
        works = _WITH_FULL_PARAMETERS | {"record": (None, *fit)}
        for name, choices in works.items():
            value = getattr(self, name)
            if value not in choices:
                names = " or ".join(map(repr, choices))
                raise ALoRAError(f"{name}={value!r} is for LoRA: with full_parameters, {name} must be {names}")

    def _check_layer_weights(self) -> None:
        given = self.layer_weights
        if not isinstance(given, Mapping):
            if given not in (None, *LAYER_WEIGHTS):
                names = ", ".join(map(repr, LAYER_WEIGHTS))
                raise ALoRAError(f"layer_weights={given!r} is unknown: use one of {names}, or map names to weights")
            return
        if not given:
            raise ALoRAError("layer_weights is an empty mapping: give names or patterns with their weights, or 'none'")
        for pattern, weight in given.items():
            if not isinstance(pattern, str) or not (is_finite(weight) and weight >= 0):
                raise ALoRAError(f"layer_weights: {pattern!r}: {weight!r} must be a name with a weight of 0 or above")

    def _check_strength(self) -> None:
        if self.lam not in (None, "auto") and not (is_finite(self.lam) and self.lam >= 0):
            raise ALoRAError(f"lam={self.lam!r} must be zero or a positive number, or 'auto'")
        if not (is_finite(self.lam_end_factor) and self.lam_end_factor >= 0):
            raise ALoRAError(f"lam_end_factor={self.lam_end_factor!r} must be zero or a positive number")
        if self.budget is None:
            return
        check_rise(self.budget, "budget")
        if self.lam == 0:
            raise ALoRAError(
                "budget steers lambda, which cannot start from lam=0: leave lam out, or give a start value"
            )
        if self.lam_schedule != "constant":
            raise ALoRAError(
                f"budget steers lambda, and would undo lam_schedule={self.lam_schedule!r}: leave one of the two out"
            )

    def _check_initialization(self) -> None:
        if not (is_finite(self.init_damping) and self.init_damping > 0):
            raise ALoRAError(
                f"init_damping={self.init_damping!r} must be a positive number, a share of the mean eigenvalue"
            )
        if self.init_adapter != DEFAULT:
            check_settings(self.init_adapter, items=self.init_items, damping=self.init_damping, memory=self.init_memory)

    @property
    def start_from(self) -> StartFrom:
        """`start` as a member of the enumeration; "recorded" for None, as for every map with a theta* of its own."""
        return StartFrom.RECORDED if self.start is None else StartFrom(self.start)

    @property
    def parameterization(self) -> Parameterization:
        """What the training moves: an adapter, or the model's own weights (`full_parameters`)."""
        return Parameterization.of(self.full_parameters)

    def watched(self) -> ALoRAConfig:
        """The same for a training that watches general text: with a budget, where nothing else says how strongly to hold."""
        says = self.lam is not None or self.budget is not None or self.lam_schedule != "constant"
        return self if says else replace(self, budget=_DEFAULT_BUDGET)

    def meant_for(self, importance: ImportanceValues | None, *, watched: bool = False) -> ALoRAConfig:
        """The same with `lam`, `budget`, `start`, `anchor` and `layer_weights` as they are meant where they are None.

        This alone says what None means. A map that was measured at the base weights has no adapter to start from or to be
        pulled to; importance in a basis is curvature, which needs no layer weights (see `Importance.layer_weights`). What a
        number for lambda costs depends on model, map and settings, so that a budget stands for it where there is text to
        keep it on.

        Args:
            importance: the map that holds the training; None for none, of which lambda stays None.
            watched: whether general text is watched while protecting.

        Raises:
            ALoRAError: `start` asks for the recorded adapter of a map that has none.
        """
        at_base = importance is not None and importance.at_base and not self.full_parameters
        if at_base and self.start not in (None, StartFrom.BARE.value):
            raise ALoRAError(
                f"start={self.start!r} needs the adapter that a map was recorded with, and this one was measured at the base "
                "weights, without any: train a fresh adapter with start='bare' and anchor='base', or leave both out"
            )
        meant = importance.layer_weights if importance is not None else "l2"
        steered = self.watched() if watched else self
        lam = steered.lam
        if lam is None and importance is not None:
            lam = importance.lam if steered.budget is None else "auto"
        return replace(
            steered,
            lam=lam,
            start=self.start or (StartFrom.BARE if at_base else StartFrom.RECORDED).value,
            anchor=self.anchor or ("base" if at_base else "reference"),
            layer_weights=meant if self.layer_weights is None else self.layer_weights,
        )

    def resolved(self) -> dict[str, Any]:
        """All settings by name as plain data."""
        return asdict(self)

    def resolved_protecting(self) -> dict[str, Any]:
        """Of `resolved`, what only the protected training depends on."""
        settings = self.resolved()
        return {name: settings[name] for name in PROTECTING}


# Python 3.10's `typing.get_type_hints` cannot read an InitVar, and this one is no field.
del ALoRAConfig.__annotations__["fresh_base"]

# What only the protected training depends on; all other settings are about recording, or about both.
PROTECTING = tuple(each.name for each in fields(ALoRAConfig) if each.metadata["help"].read_by == "protecting")
_NUMBERS = (
    *("xi", "lam", "lam_end_factor", "budget", "fold_every"),
    *("record_tokens", "probe_steps", "init_items", "init_damping"),
)
_WHOLE_NUMBERS = ("fold_every", "record_tokens", "probe_steps", "init_items")
_WITH_FULL_PARAMETERS = {
    "basis": (None,),
    "start": (None, StartFrom.RECORDED.value),
    "anchor": (None, "reference"),
    "missing": ("error", "free"),
    "backend": (None,),
    "init_adapter": (DEFAULT,),
    "freeze_a": (False,),
}
