"""What a map's card says of importance in a basis: what it is, how much of it is kept, and what it would take elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alora_trainer.artefact.entries import MapConfig
from alora_trainer.basics.sizes import size_text
from alora_trainer.importance.kinds.ekfac import EKFAC
from alora_trainer.importance.kinds.formats import KINDS, storage_format
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS, InBasis
from alora_trainer.importance.kinds.kronecker import COVARIANCE, KRONECKER

_SIDES = {"outputs": OUTPUT_VECTORS, "inputs": INPUT_VECTORS}
# By which method of a recipe a map of each kind holds (`experiment.methods`).
HELD_BY = {KRONECKER: "kfac", EKFAC: "ekfac", COVARIANCE: "covariance"}
# How each is estimated, by the name that the provenance has; labels are told beside.
CURVATURE_DESCRIPTIONS = {
    KRONECKER: "second moments of each layer's inputs and of the log-likelihood's gradients by its outputs, in one pass over "
    "text and without any training",
    EKFAC: "squared gradients of whole sequences in the eigenvectors of each layer's Kronecker factors, in two passes over "
    "text and without any training",
    COVARIANCE: "second moments of each layer's inputs, and the mean squared gradient of the log-likelihood by its outputs, in "
    "one pass over text and without any training",
}
_LABELS = {
    "sampled": "labels drawn from the model's own predictions (the true Fisher information)",
    "text": "the text's own labels (the empirical Fisher information)",
}


@dataclass(frozen=True)
class Transformer:
    """The linear layers of one of a model's blocks, all of which are alike.

    Attributes:
        name: of the model.
        blocks: how many there are.
        hidden, kv, mlp: widths of the residual stream, of keys and values, and within the MLP.
    """

    name: str
    blocks: int
    hidden: int
    kv: int
    mlp: int

    @property
    def weights(self) -> dict[str, tuple[tuple[int, int], str]]:
        """(m, n) of each linear layer of a block, and which one has the same inputs before it (itself, if none has)."""
        return {
            "q": ((self.hidden, self.hidden), "q"),
            "k": ((self.kv, self.hidden), "q"),
            "v": ((self.kv, self.hidden), "q"),
            "o": ((self.hidden, self.hidden), "o"),
            "gate": ((self.mlp, self.hidden), "gate"),
            "up": ((self.mlp, self.hidden), "gate"),
            "down": ((self.hidden, self.mlp), "down"),
        }


LLAMAS = (
    Transformer("Llama-3.2-3B", blocks=28, hidden=3072, kv=1024, mlp=8192),
    Transformer("Llama-3.1-8B", blocks=32, hidden=4096, kv=1024, mlp=14336),
)
CHOICES: Mapping[str, Sequence[str]] = {
    "q, v": ("q", "v"),
    "all linear layers": ("q", "k", "v", "o", "gate", "up", "down"),
}


def model_bytes(format: type[InBasis], model: Transformer, layers: Sequence[str], keep: int | None) -> int:
    """Bytes that importance of some linear layers of a whole model takes.

    Args:
        layers: of `Transformer.weights`; the first one with the same inputs is among them.
        keep: directions on either side at most; None for all.
    """
    weights = model.weights
    return model.blocks * sum(
        format.stored_bytes(weights[layer][0], keep, inputs_shared=weights[layer][1] != layer) for layer in layers
    )


@dataclass(frozen=True)
class BasisFacts:
    """What a card says of importance in a basis, as the template names it.

    Attributes:
        formula, meaning: of its kind.
        kept: how many directions, and what share of the trace is in them.
        keep: the same as a setting.
        elsewhere: bytes by model and choice of layers, each as a row of texts.
        method: by which a recipe holds with it.
    """

    formula: str
    meaning: str
    kept: str
    keep: str
    elsewhere: tuple[tuple[str, str, str], ...]
    method: str


def basis_facts(config: MapConfig) -> BasisFacts | None:
    """What the card of a map says beside what all cards say; None for importance that is in no basis."""
    format = storage_format(config.storage)
    if not issubclass(format, InBasis):
        return None
    keep = _keep(config)
    rows = [
        (model.name, choice, size_text(model_bytes(format, model, layers, keep)))
        for model in LLAMAS
        for choice, layers in CHOICES.items()
    ]
    kind = KINDS.find(config.kind)
    return BasisFacts(
        formula=kind.formula,
        meaning=kind.meaning,
        kept=kept_text(config),
        keep="all directions kept" if keep is None else f"{keep} directions a side",
        elsewhere=tuple(rows),
        method=HELD_BY.get(config.kind, ""),
    )


def _kept(config: MapConfig, side: str) -> dict[str, int]:
    """By weight, how many directions of a side are kept; empty where the kind keeps none."""
    part, stored = _SIDES[side], config.formats[config.storage]
    return {name: parts[part].shape[1] for name, parts in stored.items() if part in parts}


def _keep(config: MapConfig) -> int | None:
    """The setting by which so many directions are kept; None for all."""
    number = {"outputs": 0, "inputs": 1}
    kept = [
        (count, config.weights[name].shape[axis])
        for side, axis in number.items()
        for name, count in _kept(config, side).items()
    ]
    return None if all(count == size for count, size in kept) else max(count for count, _ in kept)


def kept_text(config: MapConfig) -> str:
    """How much of both sides' bases is kept, in a part of a sentence; empty for importance that is in no basis."""
    texts = []
    for side in _SIDES:
        counts = _kept(config, side).values()
        if not counts:
            continue
        number = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        share = config.kept_trace.get(side)
        held = f", with {_percent(share)} of the trace" if share is not None else ""
        texts.append(f"{number} directions of the {side}{held}")
    return "; ".join(texts)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def labels_text(labels: str | None, draws: int | None) -> str:
    """What the gradients of an estimate are of, after a semicolon; empty where nothing is known."""
    if labels not in _LABELS:
        return ""
    often = f", {draws} times for each batch" if draws is not None and draws > 1 else ""
    return f"; {_LABELS[labels]}{often}"
