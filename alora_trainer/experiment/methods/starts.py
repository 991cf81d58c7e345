"""What the methods have in common whose adapter starts in directions that are computed, not drawn."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import layer as lora_layers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Collate, Method
from alora_trainer.importance.recording.layer_moments import INPUTS, LayerMoments
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.adapter_settings import first_given

# Rows that go through the model at a time.
_ROWS = 8

# All layers of PEFT's that `adapted_weights` knows and that are not linear.
_OTHER_LAYERS = (lora_layers.Embedding, lora_layers._ConvNd, lora_layers.ParamWrapper)


@dataclass(frozen=True)
class StartOptions:
    """Of a method whose start is computed from data.

    Attributes:
        samples: how many rows of each kind of data it looks at (blocks of general text, items of the domain), evenly spaced
            over all that there are; all of them if there are fewer.

    Raises:
        ALoRAError: there are none.
    """

    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ALoRAError(f"samples={self.samples!r} must be at least 1")


# ---- what is looked at ----


def spread(rows: int, samples: int) -> list[int]:
    """The numbers of `samples` rows (or all, if there are fewer), evenly spaced over `rows`."""
    count = min(samples, rows)
    return [number * rows // count for number in range(count)]


def batches(
    rows: Sequence[Any], samples: int, collate: Collate, device: torch.device, size: int = _ROWS
) -> Iterator[dict[str, torch.Tensor]]:
    """The rows that `spread` names, in batches on `device`."""
    places = spread(len(rows), samples)
    for first in range(0, len(places), size):
        batch = collate([rows[place] for place in places[first : first + size]])
        yield {key: value.to(device) for key, value in batch.items()}


@torch.no_grad()
def input_moments(
    model: Any, weights: Sequence[AdaptedWeight], text: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """E[x x'] (n, n) over the inputs of every layer, padding left out, in float64; layers with one input share the tensor.

    Args:
        model: with an adapter that does nothing yet, so that it is the base model.
        weights: the layers that are meant.
        text: batches with ``input_ids`` and, where there is padding, an ``attention_mask``.

    Raises:
        ALoRAError: nothing has passed through a layer.
    """
    moments = LayerMoments(weights, outputs=False, location="device")
    trained = model.training
    model.eval()
    with moments.watching():
        for batch in text:
            ids = batch["input_ids"]
            mask = batch.get("attention_mask", torch.ones_like(ids))
            moments.begin(mask.bool())
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            moments.end_forward()
    model.train(trained)
    of_leader = {
        leader: moments.sums.pop(f"{INPUTS}.{leader}").to(moments.devices[leader]).double() / count
        for leader, count in moments.rows.items()
    }
    for weight in weights:
        if weight.name not in moments.leaders:
            raise ALoRAError(f"nothing has passed through {weight.name}: leave it out of lora.target_modules")
    return {weight.name: of_leader[moments.leaders[weight.name]] for weight in weights}


# ---- the weights and their factors ----


def all_linear(model: PreTrainedModel) -> set[str]:
    """Names of all linear layers but the output head: PEFT's "all-linear", which its own preparations do not know."""
    head = model.get_output_embeddings()
    return {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def check_rank(name: str, rank: int, shape: Sequence[int], directions: int) -> None:
    """Raises ALoRAError if a weight of this shape has fewer directions than `directions` for each of the adapter's ranks."""
    needed, smaller = directions * rank, min(shape)
    if needed > smaller:
        raise ALoRAError(
            f"this start takes {needed} directions of {name}, which has {smaller}: set lora.r to at most "
            f"{smaller // directions} (or its rank in lora.rank_pattern)"
        )


def linear_weights(model: Any, directions: int = 1) -> list[AdaptedWeight]:
    """The adapted weights of a model, for a start that takes each of them apart.

    Args:
        model: with its adapter.
        directions: how many directions of a weight the start needs for each of the adapter's ranks.

    Raises:
        ALoRAError: one is of another kind of layer than linear, or has fewer directions.
    """
    weights = adapted_weights(model)
    for weight in weights:
        name, layer = weight.name, weight.layer
        if isinstance(layer, _OTHER_LAYERS):
            raise ALoRAError(
                f"this start knows linear layers, and {name} is a {type(layer).__name__}: leave it out of "
                f"lora.{weight.listed_in}"
            )
        check_rank(name, int(layer.r[weight.adapter]), (layer.out_features, layer.in_features), directions)
    return weights


def base_matrix(weight: AdaptedWeight) -> torch.Tensor:
    """A copy of the frozen base weight as a matrix (out_features, in_features), in float64 where its device has that."""
    stored = weight.layer.get_base_layer().weight.detach()
    matrix = stored.T if weight.stored_transposed else stored
    return matrix.to("cpu" if matrix.device.type == "mps" else matrix.device).double()


def set_factors(weight: AdaptedWeight, a: torch.Tensor, b: torch.Tensor) -> None:
    """Make (r, n) `a` and (m, r) `b` the adapter's factors."""
    for parameter, matrix in ((weight.parameter_a, a), (weight.parameter_b, b)):
        parameter.data.copy_(matrix.to(parameter.dtype))


def take_out(weight: AdaptedWeight) -> None:
    """``W0 <- W0 - s B A`` for the factors as they are stored, so that the model as a whole is the base model still."""
    layer = weight.layer.get_base_layer()
    movement = weight.scaling * weight.b.float() @ weight.a.float()
    stored = movement.T if weight.stored_transposed else movement
    layer.weight.data = (layer.weight.data.float() - stored).to(layer.weight.dtype)


# ---- what is taken out of the base weights ----

# What lets more be trained than LoRA's factors, of which PEFT's conversion keeps nothing, or ends in an error.
_BESIDE_FACTORS = ("modules_to_save", "bias", "lora_bias", "trainable_token_indices", "use_dora")


@dataclass(frozen=True)
class TakenOut(Method):
    """A method whose start is a part of the base weights, taken out of them: ``W0 - s B* A* + s B A``.

    It is saved as ``W0 + s [B, -B*] [A; A*]``, an adapter of rank 2 r for the base as it was, by PEFT's own conversion. The
    start is kept beside the checkpoints, so that a training that goes on has the very same one.
    """

    needs_plain_base = True
    is_plain = False
    one_process = True

    def check_config(self, config: LoraConfig) -> None:
        if name := first_given(config, _BESIDE_FACTORS):
            raise ALoRAError(
                f"lora.{name}: {self.name} saves LoRA's factors alone, as an adapter of the base as it was, so that "
                "what is trained beside them would be lost: leave it out"
            )

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        """The base with the adapter at its start, and that taken out of the base's weights; for arguments see `attach`."""
        raise NotImplementedError

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        if config.use_rslora and (config.rank_pattern or config.alpha_pattern):
            raise ALoRAError(
                f"what {self.name} takes out of the base weights is saved with twice the rank, which PEFT cannot do for rsLoRA "
                "with rank_pattern or alpha_pattern: leave lora.use_rslora or the patterns out"
            )
        beginning = inputs.folder / "beginning"
        if beginning.is_dir():
            model = _begun(base, config, beginning)
        else:
            model = self.started(base, config, inputs)
            _refuse_shared(model)
            model.peft_config["default"].init_lora_weights = True
            partial = Path(tempfile.mkdtemp(prefix=".beginning-", suffix=".partial", dir=inputs.folder))
            model.save_pretrained(str(partial))
            partial.rename(beginning)

        def save(target: Path) -> None:
            model.save_pretrained(str(target), path_initial_model_for_weight_conversion=str(beginning))

        return Adapter(model, save)


def _begun(base: PreTrainedModel, config: LoraConfig, beginning: Path) -> Any:
    """The base with the adapter at the start that is kept in the folder `beginning`."""
    config.init_lora_weights = True
    model: Any = get_peft_model(base, config)
    model.load_adapter(str(beginning), "default", is_trainable=True)
    for weight in adapted_weights(model):
        take_out(weight)
    return model


def _refuse_shared(model: Any) -> None:
    """Raises ALoRAError if a weight that something was taken out of is another layer's, too."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for weight in adapted_weights(model):
        if owners[id(weight.layer.get_base_layer().weight)] > 1:
            raise ALoRAError(
                f"the weight of {weight.name} is another layer's, too, which this start has changed with it: leave it out of "
                "lora.target_modules"
            )
